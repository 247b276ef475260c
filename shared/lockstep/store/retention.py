"""Which runs a retention lets go: the part of `Store.prune` that all stores share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lockstep.core.lifecycle import FINISHED
from lockstep.records import PrunedTo, Retention, RunRow

NEVER, ALWAYS = -1, 2**63 - 1
"""Times before and after that of any run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A retention in times: runs go that were created and changed at `too_old` or earlier, or created before `beyond`."""

    too_old: int
    beyond: int

    @property
    def newest(self) -> int:
        """No run that was created later goes."""
        return max(self.too_old, self.beyond - 1)

    def reached(self, row: RunRow) -> PrunedTo:
        """That the pass has come to this run."""
        return PrunedTo(row.created_at, row.run_id, self.too_old, self.beyond)

    def passed_by(self, row: RunRow) -> bool:
        """Whether the run goes, as far as its row tells."""
        is_old = max(row.created_at, row.updated_at) <= self.too_old
        return row.status in FINISHED and (is_old or row.created_at < self.beyond)


def limits_of(
    retention: Retention, after: PrunedTo | None, now: Callable[[], int], created_at: Callable[[int], int | None]
) -> Limits:
    """The limits of a retention: those of the pass, or, where one begins, those of now.

    `created_at` gives the time of the n-th newest run; None: there are fewer. It costs more than all else, with many runs.
    """
    if after is not None:
        return Limits(after.too_old, after.beyond)
    too_old, beyond = NEVER, NEVER
    if retention.max_age_seconds is not None:
        too_old = now() - int(retention.max_age_seconds * 1000)
    if retention.max_runs is not None:
        found = created_at(retention.max_runs) if retention.max_runs else ALWAYS
        beyond = NEVER if found is None else found
    return Limits(too_old, beyond)
