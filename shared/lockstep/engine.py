"""`Engine`: submit runs and wait for them, with nothing but this process and a database."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lockstep.compiled import CompiledGraph, by_hash
from lockstep.core.canonical import canonical_bytes
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.core.ordering import shard_of
from lockstep.embedded import Embedded
from lockstep.errors import (
    ConfigurationError,
    RunNotFoundError,
    UnknownGraphError,
)
from lockstep.graph import Graph
from lockstep.models import values_of
from lockstep.options import Options, With, combine, encode_options
from lockstep.ports import Clock
from lockstep.prices import PRICES, Pricing
from lockstep.records import NewRun, RunRow
from lockstep.run import Run, runs_of
from lockstep.streaming import StreamEvent, StreamMode, check_modes
from lockstep.subgraphs import call_input_of, delete_with_children
from lockstep.submission import IfBusy, check_same, check_thread, checked_id, encoded_input, new_run_id
from lockstep.telemetry.spans import current_traceparent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor


class Engine:
    """Runs graphs embedded in this process, over a store.

    `graph` is a Graph or several; `store` is memory://, sqlite:///path, postgresql+psycopg://... or mysql+pymysql://... Options
    come as `with_*()` settings, as one Options object, or both. The engine starts on first use and is a context manager;
    without `with` it ends with the process. Unfinished runs of an engine that died wait in the store for `recover()`.
    `prices` says what calls to models cost: a PriceBook, or a function of yours. On `metrics_port`, if it is not 0, Prometheus
    finds /metrics. Spans go to `traces`, a span processor of OpenTelemetry's SDK, which stays yours to shut down.

    Raises ConfigurationError for a graph or option that is wrong; StoreUnavailableError on first use.
    """

    def __init__(
        self,
        graph: Graph | Sequence[Graph],
        store: str = "memory://",
        *settings: With,
        options: Options | None = None,
        prices: Pricing = PRICES,
        metrics_port: int = 0,
        traces: SpanProcessor | None = None,
    ) -> None:
        graphs = [graph] if isinstance(graph, Graph) else list(graph)
        self._by_name = {compiled.name: compiled for compiled in (g.compile() for g in graphs)}
        if len(self._by_name) < len(graphs):
            raise ConfigurationError("two graphs have the same name; give each Graph(..., name=...)", option="graph")
        self._by_hash = by_hash(self._by_name.values())
        self._options = combine(options, settings)
        self._url = store
        self._pricing = prices
        self._metrics_port = metrics_port
        self._traces = traces
        self._clock: Clock = time  # Tests move theirs, see `lockstep.testing`.
        self._lock = threading.Lock()
        self._parts: Embedded | None = None
        self._closed = False

    def __enter__(self) -> Engine:
        self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> Embedded:
        with self._lock:
            if self._closed:
                raise ConfigurationError("this engine is closed; make a new one", option="engine")
            if self._parts is None:
                self._parts = Embedded(
                    self._url, self._by_hash, self._options, self._pricing, self._clock, self._metrics_port, self._traces
                )
                # For an engine that nobody closes: when it is no longer used, or when the process ends, which must not wait.
                weakref.finalize(self, self._parts.close, drain_seconds=0.0)
            return self._parts

    def close(self) -> None:
        """Stop: hand out nothing more, give running nodes a bounded time, commit what they return. Idempotent."""
        with self._lock:
            self._closed = True
            parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    def submit(
        self,
        input: Any,
        *,
        run_id: str | None = None,
        thread_id: str | None = None,
        graph: str | None = None,
        options: Options | None = None,
        if_busy: IfBusy = "queue",
        context: Any = None,
    ) -> Run:
        """Store a new run, durably, and begin it; returns at once. `graph` is needed where the engine holds several.

        Runs with one `thread_id` share a state: each begins with what the one before has left, its input folded into that, and
        waits until that one has ended. With `if_busy="reject"`, ThreadBusyError is raised instead of waiting.

        Nodes find `context` in `ctx.context`.

        A run_id that is known with the same graph and input gives that run, and goes on with it if its owner has died. Raises
        StateError for an input that does not fit the state, RunExistsError for a run_id of another graph or input,
        GraphVersionError for one that is unfinished and needs another version of its graph, UnknownGraphError,
        ConfigurationError.
        """
        compiled = self._graph(graph)
        chosen = self._options.overridden(options).overridden(Options(context=context))
        run_id = checked_id("run_id", run_id) if run_id is not None else new_run_id()
        if thread_id is not None:
            checked_id("thread_id", thread_id)
        data = _encoded_input(compiled, input, chosen)
        parts = self._running()
        check_thread(parts.store, compiled.name, thread_id, run_id, if_busy)
        new = NewRun(
            run_id=run_id,
            graph=compiled.name,
            graph_hash=compiled.hash,
            input=data,
            options=canonical_bytes(encode_options(chosen)),
            partition_id=parts.lease_id,
            shard=shard_of(thread_id, None, run_id),
            thread_id=thread_id,
            trace_context=current_traceparent(),
        )
        [submitted] = parts.store.submit([new])
        if submitted.created:
            parts.coordinator.take([submitted.row])
        else:
            check_same(submitted.row, compiled.name, data)
            self._go_on_with(parts, submitted.row)
        return Run(run_id, parts, owner=self)

    def invoke(
        self,
        input: Any,
        run_id: str | None = None,
        thread_id: str | None = None,
        options: Options | None = None,
        *,
        graph: str | None = None,
    ) -> dict[str, Any]:
        """Submit a run, wait for its end, and return the final state; raises what `submit` and `Run.result` raise."""
        return self.submit(input, run_id=run_id, thread_id=thread_id, graph=graph, options=options).result()

    async def ainvoke(
        self,
        input: Any,
        run_id: str | None = None,
        thread_id: str | None = None,
        options: Options | None = None,
        *,
        graph: str | None = None,
    ) -> dict[str, Any]:
        """`invoke` without blocking the event loop. Nodes run on the engine's own loop, not on the caller's."""
        run = await asyncio.to_thread(self.submit, input, run_id=run_id, thread_id=thread_id, graph=graph, options=options)
        return await run.aresult()

    def stream(self, input: Any, modes: Sequence[StreamMode] = ("values",), **submission: Any) -> Iterator[StreamEvent]:
        """Submit a run and follow its steps; takes `submit`'s arguments. See `Run.stream`."""
        check_modes(modes)
        return self.submit(input, **submission).stream(modes)

    def astream(self, input: Any, modes: Sequence[StreamMode] = ("values",), **submission: Any) -> AsyncIterator[StreamEvent]:
        """`stream` for asyncio."""
        check_modes(modes)
        return self.submit(input, **submission).astream(modes)

    def run(self, run_id: str) -> Run:
        """The run with this id. Raises RunNotFoundError."""
        parts = self._running()
        if not parts.store.find_runs(run_ids=[run_id]):
            raise RunNotFoundError(f"no run {run_id!r} in {self._url}", run_id=run_id)
        return Run(run_id, parts, owner=self)

    def runs(
        self, *, status: RunStatus | str | None = None, graph: str | None = None, thread_id: str | None = None
    ) -> Iterator[Run]:
        """All runs with this status, graph and thread, ascending by run_id; read in pages as they are asked for."""
        return runs_of(self._running(), self, status, graph, thread_id)

    def recover(self, run_id: str | None = None) -> list[Run]:
        """Take over the unfinished runs of engines that have died, as far as it holds their graphs; they go on at once.

        An engine of this machine counts as dead when its process is gone; another when its lease has ended. No node that had
        journalled its result runs again. With a `run_id` only that run, and its subgraphs; raises GraphVersionError if it
        needs another version of its graph. Those of subgraphs are taken over with theirs, and not listed.
        """
        parts = self._running()
        if run_id is None:
            adopted = parts.coordinator.adopt()
            rows = parts.store.find_runs(run_ids=adopted, limit=max(1, len(adopted)))
            below = {row.run_id for row in rows if call_input_of(row) is not None}
            return [Run(run_id, parts, owner=self) for run_id in adopted if run_id not in below]
        self._go_on_with(parts, self.run(run_id).row())
        return [Run(run_id, parts, owner=self)]

    def _go_on_with(self, parts: Embedded, row: RunRow) -> None:
        """Take over one run if it is unfinished and its owner has died. Raises GraphVersionError."""
        if row.status not in FINISHED:
            parts.check_version(row)
            parts.coordinator.adopt([row.run_id])

    def delete(self, run_id: str) -> bool:
        """Remove a finished run and all that belongs to it; False: it is not there or not finished."""
        return delete_with_children(self._running().store, run_id)

    def _graph(self, name: str | None) -> CompiledGraph:
        if name is None and len(self._by_name) == 1:
            return next(iter(self._by_name.values()))
        known = sorted(self._by_name)
        if name is None or name not in self._by_name:
            raise UnknownGraphError(
                f"no graph {name!r}; this engine holds {', '.join(known)}: name one with graph=...", graph=name, known=known
            )
        return self._by_name[name]


def _encoded_input(graph: CompiledGraph, input: Any, options: Options) -> bytes:
    """The input's canonical bytes. Raises StateError, naming the field."""
    values, schema = values_of(input, "the input"), graph.program.schema
    schema.check_input(values)
    return encoded_input(schema.dumped(values), options)
