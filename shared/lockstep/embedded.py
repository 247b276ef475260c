"""Coordinator, broker and worker in one process: the same loop and executor as the distributed ones."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lockstep.backend import ReplayReport
from lockstep.broker.inprocess import InProcessBroker
from lockstep.broker.live import HubReader, LiveHub
from lockstep.compiled import CompiledGraph, queues_of, serving
from lockstep.core.lifecycle import SETTLED
from lockstep.core.merge import Schema
from lockstep.errors import ConfigurationError, GraphVersionError, LockstepError, StoreUnavailableError
from lockstep.options import Options
from lockstep.ports import Clock, Reader, Store
from lockstep.prices import PRICES, Pricing
from lockstep.records import Command, NewRun, RunRow
from lockstep.replay import replay_run
from lockstep.store import open_store
from lockstep.subgraphs import run_with_ancestors
from lockstep.telemetry.spans import Spans
from lockstep_coordinator.lease import LeaseKeeper
from lockstep_coordinator.loop import Coordinator
from lockstep_coordinator.run import ActiveRun
from lockstep_worker.executor import Executor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from lockstep.telemetry.server import Server

DRAIN_SECONDS = 5.0
"""How long `close` waits for nodes that are running; what they return later is lost, and they run again after `recover`."""

CAUSES_KEPT = 1000
"""Exceptions of failed runs that are kept for `result()`; older ones are raised without their cause."""


def _spans_to(processor: SpanProcessor | None) -> Spans | None:
    if processor is None:
        return None
    # Here and not above: who wants no spans need not load what makes them.
    from lockstep.telemetry.otel import ProcessedSpans

    return ProcessedSpans(processor, "lockstep-engine")


class Embedded:
    """The running parts of an engine. Also the `Backend` of its Runs, and the `LoopObserver` of its coordinator."""

    def __init__(
        self,
        url: str,
        graphs: dict[str, CompiledGraph],
        options: Options,
        pricing: Pricing = PRICES,
        clock: Clock = time,
        metrics_port: int = 0,
        traces: SpanProcessor | None = None,
    ) -> None:
        self._graphs = graphs
        self._subscribers: dict[str, list[tuple[Callable[[], None], bool]]] = {}
        self._stuck: dict[str, LockstepError] = {}
        self._causes: OrderedDict[str, BaseException] = OrderedDict()
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._closed = False
        self._queues = queues_of(graphs)
        self.store: Store = open_store(url)
        self._lease = LeaseKeeper(self.store, on_loss=self._lose_lease)
        self.lease_id = self._lease.lease_id
        broker = InProcessBroker(options.queue_depth)
        self._hub = LiveHub(self._streamed)
        self._spans = _spans_to(traces)
        self.executor = Executor(
            graphs, options.slots, "embedded", broker.take, broker.deliver, self._hub.put, pricing, clock, self._spans
        )
        broker.connect(self.executor.pump, self.executor.cancel)
        self.coordinator = Coordinator(self.store, broker, self.lease_id, graphs, observer=self, clock=clock, spans=self._spans)
        self._thread = threading.Thread(target=self.coordinator.run, name="lockstep-coordinator", daemon=True)
        self._thread.start()
        self._broker = broker
        self._server = None
        if metrics_port:
            try:
                self._server = self._serve(metrics_port)
            except ConfigurationError:
                self.close(0.0)
                raise

    def _serve(self, port: int) -> Server:
        """Answer to Prometheus and to probes."""
        # Here and not above: most engines have no port, and need not load what answers.
        from lockstep.telemetry.metrics import Readings
        from lockstep.telemetry.server import Server

        def trouble() -> str | None:
            return None if self._thread.is_alive() else f"the engine has stopped: {self._error!r}"

        return Server(port, Readings("engine", self._reading, self.executor.reading), livez=trouble, readyz=trouble)

    def _reading(self) -> Mapping[str, Any]:
        from lockstep.telemetry.metrics import reading_of

        return {
            **reading_of(self.coordinator.counts),
            "langgraph_queue_depth": {queue: self._broker.depth(queue) for queue in self._queues},
            "lockstep_active_runs": self.coordinator.active,
            "lockstep_oldest_run_seconds": self.coordinator.oldest_seconds,
            "lockstep_partitions": self.coordinator.partitions,
        }

    announces = True

    @property
    def reader(self) -> Reader:
        return self.store

    def subscribe(self, run_id: str, wake: Callable[[], None], *, each_step: bool) -> Callable[[], None]:
        subscriber = (wake, each_step)
        with self._lock:
            self._subscribers.setdefault(run_id, []).append(subscriber)

        def unsubscribe() -> None:
            with self._lock:
                subscribers = self._subscribers[run_id]
                subscribers.remove(subscriber)
                if not subscribers:
                    del self._subscribers[run_id]

        return unsubscribe

    def failing(self, run: ActiveRun) -> None:
        with self._lock:
            self._causes.pop(run.run_id, None)
            if run.cause is not None:
                self._causes[run.run_id] = run.cause
                if len(self._causes) > CAUSES_KEPT:
                    self._causes.popitem(last=False)

    def moved(self, run: ActiveRun) -> None:
        settled = run.row.status in SETTLED
        with self._lock:
            wakes = [wake for wake, each_step in self._subscribers.get(run.run_id, ()) if settled or each_step]
        for wake in wakes:
            wake()

    def _streamed(self, run_id: str) -> None:
        with self._lock:
            wakes = [wake for wake, each_step in self._subscribers.get(run_id, ()) if each_step]
        for wake in wakes:
            wake()

    def live(self, run_id: str) -> HubReader:
        return self._hub.reader(run_id)

    def emitted(self) -> None:
        pass  # A relay of its own finds them.

    def stuck(self, run: ActiveRun, error: LockstepError) -> None:
        with self._lock:
            self._stuck[run.run_id] = error
            wakes = [wake for wake, _ in self._subscribers.get(run.run_id, ())]
        for wake in wakes:
            wake()

    def stopped(self, error: Exception | None) -> None:
        with self._lock:
            self._error = error or self._error
            wakes = [wake for subscribers in self._subscribers.values() for wake, _ in subscribers]
        for wake in wakes:
            wake()

    def _lose_lease(self) -> None:
        with self._lock:
            self._error = StoreUnavailableError(
                "this engine lost its lease, most likely because the process was suspended; make a new one and recover()"
            )
        self.coordinator.stop()

    def check(self, run_id: str) -> None:
        if run_id in self._stuck:
            raise self._stuck[run_id]
        if isinstance(self._error, LockstepError):
            raise self._error
        if self._error is not None:
            raise StoreUnavailableError(f"the engine stopped: {self._error!r}; make a new one and recover()") from self._error
        if self._closed:
            raise ConfigurationError("this engine is closed; the run goes on when another recovers it", option="engine")

    def check_version(self, row: RunRow) -> None:
        """Raise GraphVersionError if the run is pinned to a graph that is not loaded here."""
        if serving(self._graphs, row.graph_hash) is None:
            raise GraphVersionError(
                f"run {row.run_id} is pinned to version {row.graph_hash[:12]} of graph {row.graph!r}, which is not loaded; "
                f"load that version, give the new one a migration, or submit a new run",
                run_id=row.run_id,
                graph=row.graph,
                graph_hash=row.graph_hash,
            )

    def send(self, command: Command) -> None:
        if command.kind in ("retry", "update"):
            [row] = self.store.find_runs(run_ids=[command.run_id])
            self.check_version(row)
        self.coordinator.adopt(run_with_ancestors(self.store, command.run_id))
        self.store.send(command)
        self.coordinator.wake_for_commands()

    def schema_of(self, row: RunRow) -> Schema | None:
        graph = self._graphs.get(row.graph_hash)
        return graph.program.schema if graph is not None else None

    def cause_of(self, run_id: str) -> BaseException | None:
        with self._lock:
            return self._causes.get(run_id)

    def begin(self, run: NewRun) -> RunRow:
        [submitted] = self.store.submit([msgspec.structs.replace(run, partition_id=self.lease_id)])
        if submitted.created:
            self.coordinator.take([submitted.row])
        return submitted.row

    def replay(self, row: RunRow) -> ReplayReport:
        return replay_run(self.store, row, self._graphs, self._spans)

    def close(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Stop everything, in the order in which nothing is lost. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._server is not None:
            self._server.close()
        self.coordinator.stop()
        # The garbage collector may close an engine from any thread, this one included.
        if threading.current_thread() is not self._thread:
            self._thread.join()
        try:
            if self._error is None:
                self.coordinator.drain(drain_seconds)
        finally:
            self.executor.close()
            self._lease.close()
            self.store.close()
