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


class NotItsTurn(Exception):
    """Another run of the thread comes first."""


def first_state(reader: Reader, row: RunRow, *, to_end_it: bool) -> State | None:
    """What the runs before in its thread have left for a run that has not begun; None: nothing, its graph's defaults hold.

    Raises NotItsTurn while another one is under way, unless this is `to_end_it`; StateError if what is left is damaged.
    """
    if row.thread_id is None or to_end_it:
        return None
    place = reader.before_in_thread(row)
    if not place.is_free:
        raise NotItsTurn(row.run_id)
    previous = place.previous
    while previous is not None and previous.step_id < 0:
        previous = reader.before_in_thread(previous).previous  # It was cancelled while it waited.
    return None if previous is None else read_position(reader, previous.run_id, previous.step_id).state
