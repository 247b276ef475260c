"""Runs of one thread: each begins with what the one before has left, and waits until that has ended."""

from __future__ import annotations

from collections.abc import Iterable

from lockstep.core.state import State
from lockstep.history import read_position
from lockstep.ports import Reader
from lockstep.records import RunRow


def first_of_threads(rows: Iterable[RunRow]) -> list[RunRow]:
    """Of runs that have not begun, those without a thread, and of each thread and graph the one submitted first."""
    free, first = [], dict[tuple[str, str], RunRow]()
    for row in rows:
        if row.thread_id is None:
            free.append(row)
            continue
        key = row.thread_id, row.graph
        if key not in first or (row.created_at, row.run_id) < (first[key].created_at, first[key].run_id):
            first[key] = row
    return [*free, *first.values()]


def thread_state(reader: Reader, previous: RunRow | None) -> State | None:
    """The state that the runs before have left; None: none of them has begun. Raises StateError if it is damaged."""
    while previous is not None and previous.step_id < 0:
        previous = reader.before_in_thread(previous).previous  # It was cancelled while it waited.
    return None if previous is None else read_position(reader, previous.run_id, previous.step_id).state
