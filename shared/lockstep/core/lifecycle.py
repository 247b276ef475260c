"""The states of a run, and the moves between them. Whoever moves a run asks this table.

pending     ─> running, succeeded, failed, cancelled
running     ─> succeeded, failed, cancelled, interrupted, paused
interrupted ─> running (answered), paused, failed, cancelled
paused      ─> running (resumed), failed, cancelled
failed      ─> running (retried)
"""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    """Submitted; its owner has not committed step 0 yet."""
    RUNNING = "running"
    """Steps are being executed."""
    INTERRUPTED = "interrupted"
    """Awaits a person's answer; nothing else can run."""
    PAUSED = "paused"
    """Halted at a commit by an operator or a cost budget."""
    SUCCEEDED = "succeeded"
    """The frontier is empty; the state is the result."""
    FAILED = "failed"
    """An error ended it; its last commit and its journalled results are kept, and `retry` goes on from there."""
    CANCELLED = "cancelled"
    """Ended by request or deadline."""


TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset({RunStatus.RUNNING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.RUNNING: frozenset(set(RunStatus) - {RunStatus.PENDING}),
    RunStatus.INTERRUPTED: frozenset({RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.PAUSED: frozenset({RunStatus.RUNNING, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.SUCCEEDED: frozenset(),
    RunStatus.FAILED: frozenset({RunStatus.RUNNING}),
    RunStatus.CANCELLED: frozenset(),
}

FINISHED = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})
"""The statuses in which a run needs no owner."""

SETTLED = FINISHED | {RunStatus.INTERRUPTED, RunStatus.PAUSED}
"""The statuses in which nothing happens before somebody outside acts."""


def may_move(old: RunStatus, new: RunStatus) -> bool:
    """Whether a run may go from one status to the other."""
    return new in TRANSITIONS[old]
