"""Removes finished runs whose time has come, beside a coordinator, and far from its loop."""

from __future__ import annotations

import threading

import structlog

from lockstep.errors import StoreUnavailableError
from lockstep.ports import Store
from lockstep.records import PrunedTo, Retentions

PRUNE_SECONDS = 60.0
"""How often old runs are looked for."""

RUNS_PER_BATCH = 100
"""Runs that are removed in one transaction, so that none takes long."""

BATCH_PAUSE_SECONDS = 0.1
"""The pause between two batches: whoever has work to do comes first."""

log = structlog.get_logger()


class Pruner:
    """Prunes until `stop`. Any number may do so at once: what one has locked, the others leave alone."""

    def __init__(self, store: Store, retentions: Retentions) -> None:
        self._store = store
        self._retentions = retentions
        self._stopping = threading.Event()

    def run(self) -> None:
        """Look at once, and then now and then."""
        while not self._stopping.is_set():
            try:
                self.prune()
            except StoreUnavailableError as error:
                log.warning("old runs are not removed now", error=str(error))
            self._stopping.wait(PRUNE_SECONDS)

    def prune(self) -> int:
        """Remove what may go; how many runs. Raises StoreUnavailableError."""
        removed = 0
        for graph in self._store.graphs():
            retention = self._retentions.of(graph)
            after: PrunedTo | None = None
            while not retention.keeps_all and not self._stopping.is_set():
                pruned = self._store.prune(graph, retention, after=after, limit=RUNS_PER_BATCH)
                removed += len(pruned.run_ids)
                after = pruned.last
                if after is None:
                    break
                self._stopping.wait(BATCH_PAUSE_SECONDS)
        return removed

    def stop(self) -> None:
        """Make `run` return after its batch."""
        self._stopping.set()
