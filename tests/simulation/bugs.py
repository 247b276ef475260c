"""Mistakes that the simulation must find: each breaks one rule of the product, for as long as its context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from lockstep.core.records import Finished, Frontier
from lockstep.core.superstep import Step, advance
from lockstep.records import CommitOutcome, Progress, Transition
from lockstep.store.memory import MemoryStore
from lockstep_coordinator.loop import Coordinator
from lockstep_coordinator.relay import CLAIM_SECONDS, RUNS_PER_CLAIM, SinkRelay
from lockstep_coordinator.run import ActiveRun


@contextmanager
def skip_the_fence() -> Iterator[None]:
    """Whoever has lost its lease commits all the same."""

    def commit(store: MemoryStore, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        return [store._commit(transition) for transition in transitions]

    with patch.object(MemoryStore, "commit", commit):
        yield


@contextmanager
def mark_before_publish() -> Iterator[None]:
    """A relay says that events have arrived, and then publishes them."""

    def turn(relay: SinkRelay) -> bool:
        outbox, name = relay._outbox, relay.name
        claimed = outbox.claim(relay._relay_id, name, RUNS_PER_CLAIM, CLAIM_SECONDS)
        outbox.mark(relay._relay_id, name, [Progress(run_id=some.run_id, last=some.events[-1]) for some in claimed])
        for some in claimed:
            relay._sink.publish(some.events)
        return bool(claimed)

    with patch.object(SinkRelay, "turn", turn):
        yield


@contextmanager
def merge_in_completion_order() -> Iterator[None]:
    """Deltas are folded as they have come."""

    def as_they_came(*given: Any) -> Step:
        *head, state, frontier, finished = given
        come: Mapping[bytes, Finished] = finished
        by_path = {item.path: item for item in frontier.items}
        reordered: Frontier = msgspec.structs.replace(frontier, items=tuple(by_path[path] for path in come))
        return advance(*head, state, reordered, come)

    with patch("lockstep_coordinator.run.advance", as_they_came):
        yield


@contextmanager
def drop_the_journal() -> Iterator[None]:
    """Results are kept in memory alone until their step is complete; a new owner knows of none."""
    resume = ActiveRun.resume

    def forgetful(run: ActiveRun, state: Any, frontier: Any, patch_bytes: int, journal: Any, now: float) -> Any:
        return resume(run, state, frontier, patch_bytes, [row for row in journal if row.kind != "done"], now)

    with patch.object(ActiveRun, "resume", forgetful):
        yield


@contextmanager
def dispatch_before_commit() -> Iterator[None]:
    """The next step's tasks are handed out, and then it is committed."""
    commit = Coordinator._commit

    def eager(coordinator: Coordinator) -> bool:
        for run in list(coordinator._moved.values()):
            transition, step = run.transition()
            if step is not None and not step.done:
                run.accept(transition, step)
                coordinator._dispatcher.add(run)
                coordinator._dispatcher.dispatch()
                coordinator._store.commit(coordinator._lease_id, [transition])
            else:
                run._journal = list(transition.journal)
                run._consumed = list(transition.consumed)
        return commit(coordinator)

    with patch.object(Coordinator, "_commit", eager):
        yield


BUGS: dict[str, Callable[[], Any]] = {
    "skip-the-fence": skip_the_fence,
    "mark-before-publish": mark_before_publish,
    "merge-in-completion-order": merge_in_completion_order,
    "drop-the-journal": drop_the_journal,
    "dispatch-before-commit": dispatch_before_commit,
}
