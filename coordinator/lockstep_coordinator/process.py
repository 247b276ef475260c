"""The coordinator process: one incarnation after another, each with a lease of its own.

Whatever goes wrong outside (a database that restarts, a Redis that is away, a lease that was lost), the incarnation ends, and
the next one starts from what is stored: there is one way back, and it is the one that is taken after a crash.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from lockstep.compiled import CompiledGraph
from lockstep.errors import BrokerUnavailableError, LockstepError, StoreUnavailableError
from lockstep.ports import Broker, Store
from lockstep.telemetry.counts import Counts
from lockstep.telemetry.pulse import Pulse
from lockstep.telemetry.spans import Spans
from lockstep_coordinator.lease import LeaseKeeper
from lockstep_coordinator.loop import Coordinator
from lockstep_coordinator.run import ActiveRun

RESTART_PAUSE_SECONDS = 0.5
"""The pause before the next incarnation, after one that ended by an error."""

log = structlog.get_logger()


class ClosingBroker(Broker, Protocol):
    """A broker with connections of its own."""

    def close(self) -> None:
        """Close them."""


class CoordinatorProcess:
    """Moves its share of all runs until `stop`. `graphs` are the graphs it has loaded, by hash.

    `open_broker` makes a broker for an incarnation. `run` blocks; the other methods may be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        open_broker: Callable[[], ClosingBroker],
        graphs: Mapping[str, CompiledGraph],
        spans: Spans | None = None,
    ) -> None:
        self._store = store
        self._open_broker = open_broker
        self._graphs = graphs
        self._spans = spans
        self._stopping = threading.Event()
        self._coordinator: Coordinator | None = None
        self._unclosed: list[LeaseKeeper] = []
        self._error: Exception | None = None
        self.counts = Counts()
        self.pulse = Pulse()
        self.on_events: Callable[[], None] = lambda: None
        """Called after each commit of events, from the loop's thread: it must be quick and must not raise."""

    def stop(self) -> None:
        """Make `run` return after its turn: the lease is given back, and others take over at once."""
        self._stopping.set()
        self._stop_current()

    def _stop_current(self) -> None:
        coordinator = self._coordinator
        if coordinator is not None:
            # It may be closing its broker right now; and without being woken, it looks within a sweep.
            with contextlib.suppress(BrokerUnavailableError):
                coordinator.stop()

    def run(self) -> None:
        """Incarnation after incarnation. Only an error of our own making ends it, besides `stop`."""
        while not self._stopping.is_set():
            try:
                self._incarnate()
            except (StoreUnavailableError, BrokerUnavailableError) as error:
                self.counts.store_errors += isinstance(error, StoreUnavailableError)
                self.counts.redis_errors += isinstance(error, BrokerUnavailableError)
                self.pulse.beat()
                log.warning("the coordinator holds, and tries again", error=str(error))
                self._stopping.wait(RESTART_PAUSE_SECONDS)
        self._give_leases_back()

    def _incarnate(self) -> None:
        self._give_leases_back()
        broker = self._open_broker()
        try:
            lease = LeaseKeeper(self._store, self._lose_lease, embedded=False)
            self._unclosed.append(lease)
            self._error = None
            self._coordinator = Coordinator(
                self._store,
                broker,
                lease.lease_id,
                self._graphs,
                observer=self,
                shares=True,
                counts=self.counts,
                on_turn=self.pulse.beat,
                spans=self._spans,
            )
            if not self._stopping.is_set():
                log.info("coordinating", lease=lease.lease_id)
                self._coordinator.run()
            lease.stop_renewing()
            if self._error is not None:
                raise self._error
        finally:
            self._coordinator = None
            broker.close()

    def _give_leases_back(self) -> None:
        while self._unclosed:
            self._unclosed[0].close()
            self._unclosed.pop(0)

    def _lose_lease(self) -> None:
        self.counts.lost_leases += 1
        log.warning("the lease was taken away, most likely because this process was suspended; a new one is taken")
        self._stop_current()

    @property
    def dropped_spans(self) -> int:
        """Spans that no collector took."""
        return self._spans.dropped if self._spans is not None else 0

    @property
    def current(self) -> Coordinator | None:
        """The incarnation of this moment; None: between two of them, or the database or Redis is away."""
        return self._coordinator

    def failing(self, run: ActiveRun) -> None:
        """See `LoopObserver`: nobody asks here for exceptions."""

    def moved(self, run: ActiveRun) -> None:
        """See `LoopObserver`: nobody waits here."""

    def emitted(self) -> None:
        """See `LoopObserver`."""
        self.on_events()

    def stuck(self, run: ActiveRun, error: LockstepError) -> None:
        """See `LoopObserver`."""
        log.error("the database refuses even the failure of a run; it is dropped", run_id=run.run_id, error=str(error))

    def stopped(self, error: Exception | None) -> None:
        """See `LoopObserver`."""
        self._error = error
