"""Whether what is stored of a run is what was committed, computed again without its graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter

from lockstep.core.frontier import decode_frontier
from lockstep.core.lifecycle import RunStatus
from lockstep.core.ordering import idempotency_key_of, path_of
from lockstep.core.outside import outside_kind
from lockstep.core.state import State
from lockstep.history import STEPS_PER_READ, items_in_place
from lockstep.ports import Reader
from lockstep.records import Event, JournalRow, RunRow, SnapshotRow, StepRow, StoredRow
from lockstep.wire import decode_meta, decode_outcome

KINDS: dict[str, type[StoredRow]] = {"step": StepRow, "snapshot": SnapshotRow, "event": Event, "journal": JournalRow}
NAMES = {kind: name for name, kind in KINDS.items()}
NO_ENTRY = (False, b"", "", 0)
BEFORE_ALL = -1
"""The step of the events of a run that ended before its first one."""
NO_EVENTS: tuple[int, Iterable[Event]] = (-2, ())


def stored_rows(reader: Reader, row: RunRow) -> Iterator[StoredRow]:
    """All that belongs to a run, step by step: the step, its snapshot, its events, the journal of the items that it left."""
    events = groupby(reader.events(row.run_id), attrgetter("step_id"))
    step_id, some = next(events, NO_EVENTS)
    if step_id == BEFORE_ALL:
        yield from some
        step_id, some = next(events, NO_EVENTS)
    for first in range(0, row.step_id + 1, STEPS_PER_READ):
        steps = reader.steps(row.run_id, first, min(first + STEPS_PER_READ - 1, row.step_id))
        if not steps:
            return
        whole = [step.step_id for step in steps] == list(range(first, first + len(steps)))
        snapshots = _snapshots(reader, row.run_id, steps) if whole else {}
        for step in steps:
            yield step
            if step.step_id in snapshots:
                yield SnapshotRow(run_id=row.run_id, step_id=step.step_id, state=snapshots[step.step_id])
            if step.step_id == step_id:
                yield from some
                step_id, some = next(events, NO_EVENTS)
            items = decode_frontier(step.frontier, step.step_id).items
            _, journal = items_in_place(reader, row.run_id, items)
            due = {item.path for item in items}
            # Those of error handlers come behind those of the nodes that name them.
            for path in sorted(journal, key=lambda path: (path not in due, path)):
                yield from journal[path]


def _snapshots(reader: Reader, run_id: str, steps: list[StepRow]) -> dict[int, bytes]:
    """The snapshots among these steps: the latest is so many patches before the last step, and so on before that one."""
    found: dict[int, bytes] = {}
    at = steps[-1].step_id
    while at >= steps[0].step_id:
        state, patches = reader.snapshot(run_id, at)
        at -= len(patches)
        if at >= steps[0].step_id:
            found[at] = state
        at -= 1
    return found


class Unfit(Exception):
    """A row is not what must come here."""


class Check:
    """Follows the rows of a run in the order of its file, and computes again what can be computed without its graph."""

    def __init__(self, row: RunRow) -> None:
        self._row = row
        self._step_id = -1
        self._state = State()
        self._paths: set[bytes] = set()
        self._handlers: dict[bytes, bytes] = {}
        self._done: set[bytes] = set()
        self._results: set[bytes] = set()
        self._last_entry: tuple[bool, bytes, str, int] = NO_ENTRY
        self._last_event = (0, -1)

    def follow(self, record: StoredRow) -> None:
        """Take in the next row. Raises Unfit."""
        if record.run_id != self._row.run_id:
            raise Unfit(f"it belongs to run {record.run_id!r}")
        match record:
            case StepRow():
                self._follow_step(record)
            case SnapshotRow():
                self._require(record, record.step_id == self._step_id, "is out of order")
                self._require(record, record.state == self._state.to_bytes(), "is not the state there")
            case Event():
                place = record.sequence, record.position
                self._require(record, record.step_id == self._step_id and place > self._last_event, "is out of order")
                self._last_event = place
            case JournalRow():
                entry = record.path in self._handlers, record.path, record.kind, record.n
                self._require(record, record.step_id == self._step_id + 1 and entry > self._last_entry, "is out of order")
                self._require(record, record.path in self._paths or entry[0], "is of an item that there is not")
                self._last_entry = entry
                with self._reading(record):
                    self._follow_journal(record)

    def _follow_journal(self, row: JournalRow) -> None:
        if row.kind == "done":
            decode_outcome(row.payload)
            # A handler's result is that of the item in whose place it ran.
            self._done.add(self._handlers.get(row.path, row.path))
            self._results.add(row.path)
        elif row.kind == "failed" and (handler := decode_meta(row.meta).handler) is not None and row.path in self._paths:
            self._handlers[path_of(row.path, handler, 0)] = row.path

    def _follow_step(self, step: StepRow) -> None:
        self._require(step, step.step_id == self._step_id + 1, "is out of order")
        from_outside = outside_kind(step.run_id, step.step_id, step.state_hash, step.idempotency_key) is not None
        complete = self._done == self._paths and len(self._results) == len(self._paths)
        self._require(step, complete or from_outside, "was stored without the results of all its items")
        with self._reading(step):
            state, frontier = self._state.patched(step.patch), decode_frontier(step.frontier, step.step_id)
        self._require(step, state.hash() == step.state_hash, "does not lead to a state with its hash")
        key = idempotency_key_of(step.run_id, step.step_id, self._results, step.state_hash)
        self._require(step, from_outside or key == step.idempotency_key, "does not have the key of its items")
        self._step_id, self._state, self._paths = step.step_id, state, {item.path for item in frontier.items}
        self._last_entry, self._handlers, self._done, self._results = NO_ENTRY, {}, set(), set()

    def end(self) -> None:
        """All rows have come. Raises Unfit."""
        state_hash = self._state.hash() if self._step_id >= 0 else None
        if (self._step_id, state_hash) != (self._row.step_id, self._row.state_hash):
            raise Unfit(f"the run stands after step {self._row.step_id}, and its steps end with {self._step_id}")
        if self._row.status is RunStatus.SUCCEEDED and self._paths:
            raise Unfit(f"it has succeeded, and {len(self._paths)} items are left to run")
        if self._row.status is RunStatus.RUNNING and not self._paths:
            raise Unfit("it is running, and nothing is left to run")
        if (self._row.error is not None) is not (self._row.status in (RunStatus.FAILED, RunStatus.CANCELLED)):
            raise Unfit(f"it is {self._row.status}, and {'has' if self._row.error else 'has no'} error")

    def _require(self, record: StoredRow, fits: bool, how: str) -> None:
        if not fits:
            raise Unfit(f"the {NAMES[type(record)]} of step {record.step_id} {how}")

    @contextmanager
    def _reading(self, record: StoredRow) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # There is no end to what damaged bytes can be taken for.
            raise Unfit(f"the {NAMES[type(record)]} of step {record.step_id} cannot be read") from error
