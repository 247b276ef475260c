"""Runs and the runs of their subgraphs, in one coordinator's memory: what becomes of one is told to the other.

Both have the same owner, so nothing has to be sent: after a crash, the child's row is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from lockstep.core.lifecycle import FINISHED
from lockstep.ports import Store
from lockstep.records import RunRow
from lockstep.subgraphs import call_input_of
from lockstep_coordinator.questions import Call
from lockstep_coordinator.run import ActiveRun
from lockstep_coordinator.subgraphs import child_of, end_of, ended_with, is_to_be_revived, not_needed

CALLS_PER_TRANSACTION = 200
"""Runs of subgraphs that are stored at a time."""


class Host(Protocol):
    """What this needs of the loop."""

    def touch(self, run: ActiveRun) -> None:
        """The run may have something to store."""

    def load(self, row: RunRow) -> ActiveRun | None:
        """Put a run into memory."""

    def go_on_with(self, rows: Iterable[RunRow]) -> None:
        """Put runs into memory that others have moved before."""

    def owns(self, row: RunRow) -> bool:
        """Whether this coordinator may move the run."""

    def fetch(self, run_id: str, again: Callable[[], None]) -> None:
        """Take over a run whose owner has died, or will soon be known to have; then call `again`."""


def batched(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """In portions, each for one transaction."""
    for start in range(0, len(calls), CALLS_PER_TRANSACTION):
        yield calls[start : start + CALLS_PER_TRANSACTION]


class Families:
    """`runs` are those in memory, by id."""

    def __init__(self, store: Store, runs: Mapping[str, ActiveRun], host: Host) -> None:
        self._store = store
        self._runs = runs
        self._host = host

    def join(self, run: ActiveRun) -> None:
        """A run is in memory: let it and its parent know each other. One whose parent has ended, ends."""
        called = call_input_of(run.row)
        if called is None or run.row.parent_run_id is None:
            return
        parent = self._runs.get(run.row.parent_run_id)
        if parent is not None:
            parent.adopt(called.path, run)
            return
        for row in self._store.find_runs(run_ids=[run.row.parent_run_id]):
            if row.status in FINISHED:
                run.fail(ended_with(row))

    def make_calls(self, run_id: str) -> None:
        """Begin what the items of a run have called, and that is committed."""
        run = self._runs.get(run_id)
        if run is not None:
            for calls in batched(run.questions.new_calls()):
                self._attend(run, calls)

    def _attend(self, parent: ActiveRun, calls: Sequence[Call]) -> None:
        """Begin the runs of subgraphs, or go on with them."""
        submitted = self._store.submit([child_of(parent, call) for call in calls])
        for call, one in zip(calls, submitted, strict=True):
            self._see_to(parent, call, one.row)

    def _see_to(self, parent: ActiveRun, call: Call, row: RunRow) -> None:
        """Go on with the run of a subgraph; if it has ended, that is the answer to the item that waits for it."""
        run = self._runs.get(row.run_id)
        if run is not None:
            parent.adopt(call.path, run)  # Its end will be heard of.
            self._host.touch(parent)
            return
        revived = is_to_be_revived(row, parent.questions.answers_of(call.path))
        if row.status in FINISHED and not revived:
            parent.children.pop(call.path, None)
            parent.answer_call(call, end_of(self._store, parent, call, row))
            self._host.touch(parent)
        elif not self._host.owns(row):
            self._host.fetch(row.run_id, lambda: self._attend_again(parent.run_id, call))
        elif revived:
            if (run := self._host.load(row)) is not None:
                run.revive()
        else:
            self._host.go_on_with([row])

    def _attend_again(self, parent_run_id: str, call: Call) -> None:
        parent = self._runs.get(parent_run_id)
        if parent is not None and parent.questions.call_at(call.path) == call:
            self._attend(parent, [call])

    def end_children(self, run: ActiveRun) -> None:
        """A run has ended, and its subgraphs do so with it."""
        for child in run.children.values():
            child.fail(ended_with(run.row))
            self._host.touch(child)

    def tell_parent_of_end(self, row: RunRow) -> None:
        """A run has ended: the item of which it was the work has its answer."""
        parent = self._runs.get(row.parent_run_id or "")
        called = call_input_of(row) if parent is not None else None
        call = parent.questions.call_at(called.path) if parent is not None and called is not None else None
        if parent is not None and call is not None:
            self._see_to(parent, call, row)

    def tell_parent(self, run: ActiveRun) -> None:
        """A run waits for people, or goes on: so may its parent."""
        if run.parent is not None:
            run.parent.hear_of(run)
            self._host.touch(run.parent)

    def end_abandoned(self, run: ActiveRun) -> None:
        """Subgraphs that a run does not wait for any more end."""
        for child in run.abandoned():
            child.fail(not_needed(run.row))
            self._host.touch(child)
