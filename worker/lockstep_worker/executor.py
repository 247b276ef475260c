"""The executor: runs tasks in a bounded number of slots, on an event loop or in threads, each within its time.

Embedded engines and worker processes use the same one. It takes a task only when a slot is free, so the rest stays visible in
the queue, where any other worker may take it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import structlog

from lockstep.compiled import CompiledGraph, NodeSpec
from lockstep.core.records import Failure
from lockstep.costs import encode_usage
from lockstep.errors import GraphVersionError
from lockstep.interrupts import Question
from lockstep.ports import Clock
from lockstep.prices import PRICES, Pricing, priced
from lockstep.records import Chunk, HandedBack, Task, TaskResult
from lockstep.telemetry.spans import Spans
from lockstep_worker.context import NodeContext
from lockstep_worker.execute import Isolated, execute, failure_of, timeout_of, without_loop
from lockstep_worker.isolation import Children, Loan, NodeRaised
from lockstep_worker.resources import Resources, is_async_manager, none_for
from lockstep_worker.threads import DaemonThreads, EventLoop
from lockstep_worker.tracing import context_of, node_span
from lockstep_worker.watchdog import Watchdog

log = structlog.get_logger()

CLOSE_SECONDS = 1.0
"""How long `close` waits for threads that have nothing left to do."""


LOOP_GRACE_SECONDS = 0.5
"""How long after its time an async node may still be, before its event loop counts as held up."""


class Running:
    """A task in a slot. Whoever takes it out of the executor's set first, its end or its timeout, answers for it."""

    __slots__ = ("child", "context", "coroutine", "deadline", "is_unwanted", "loop", "started", "started_at", "task")

    def __init__(self, task: Task, stream: Callable[[Chunk], None], clock: Clock) -> None:
        self.task = task
        self.loop: EventLoop | None = None
        self.is_unwanted = False
        self.child: Loan | None = None
        self.coroutine: Callable[[], object] | None = None
        self.context = NodeContext(task, send=stream)
        self.started_at = int(clock.time() * 1000)
        self.started = time.perf_counter()
        self.deadline = self.started + task.timeout_seconds

    def cancel(self) -> None:
        """Nobody wants the result any more: say so to the node, and cancel or kill what can be."""
        self.context.cancelled = True
        if self.coroutine is not None:
            self.coroutine()
        if self.child is not None:
            self.child.kill()


class Executor:
    """Runs the tasks that `take` yields and hands their results to `deliver`.

    `graphs` are the loaded graphs by hash, `slots` how many tasks run at a time, `name` what results call this worker;
    `pricing` says what calls to models cost.
    `take` returns None when no task waits; it, `deliver`, and `stream`, which gets what nodes stream, are called from several
    threads.
    """

    def __init__(
        self,
        graphs: Mapping[str, CompiledGraph],
        slots: int,
        name: str,
        take: Callable[[], Task | None],
        deliver: Callable[[TaskResult | HandedBack], None],
        stream: Callable[[Chunk], None],
        pricing: Pricing = PRICES,
        clock: Clock = time,
        spans: Spans | None = None,
    ) -> None:
        self._graphs = graphs
        self._slots = slots
        self._name = name
        self._take = take
        self._deliver = deliver
        self._stream = stream
        self._pricing = pricing
        self._clock = clock
        self._spans = spans
        self._lock = threading.Lock()
        self._running: set[Running] = set()
        self._closed = False
        self._threads = DaemonThreads("lockstep-node", after=self.pump)
        self._loop: EventLoop | None = None
        self._watchdog: Watchdog | None = None
        self._children = Children()
        self._resources = Resources()
        self.abandoned = 0
        """Nodes past their time that could not be stopped: in threads, or holding up their loop. Their results are dropped."""

    def pump(self) -> None:
        """Start waiting tasks while slots are free. Called after each new task, and by each slot that has become free."""
        while (running := self._next()) is not None:
            self._start(running)

    def _start(self, running: Running) -> None:
        graph = self._graphs.get(running.task.graph_hash)
        if graph is None:
            self._fail(running, GraphVersionError(f"no graph {running.task.graph_hash} is loaded here"))
        elif graph.nodes[running.task.place].is_async:
            # Its own timeout ends it, unless it holds up the loop, which only another thread can see.
            running.deadline += LOOP_GRACE_SECONDS
            self._watch(running.deadline)
            running.loop = self._event_loop()
            running.loop.spawn(self._run_async(graph, running))
        else:
            self._watch(running.deadline)
            self._threads.submit(lambda: self._run_in_thread(graph, running))

    def _inside(self, task: Task) -> AbstractContextManager[None]:
        """While a node runs, spans that it makes are children of its own."""
        return nullcontext() if self._spans is None else self._spans.inside(lambda: context_of(task))

    def _give_resources(self, graph: CompiledGraph, running: Running) -> None:
        """Let a sync node have what its graph's nodes share, when it asks for it."""
        opens = graph.resources
        if opens is not None and not is_async_manager(opens):
            running.context.open_resources = partial(self._resources.get, opens)
        elif opens is not None:
            running.context.open_resources = none_for(running.task.node_id, "its graph's are for async nodes, and it is none")

    def _run_in_thread(self, graph: CompiledGraph, running: Running) -> bool:
        """Run a task, and then those that wait, as long as this thread may serve: handing them to another would cost more."""
        while True:
            self._give_resources(graph, running)
            try:
                with self._inside(running.task):
                    outcome = without_loop(execute(graph, running.task, running.context, self._isolated(running)))
            except BaseException as error:  # also SystemExit: a node must not end its slot's thread
                serves = self._fail(running, error)
            else:
                serves = self._finish(running, outcome=outcome)
            following = self._next() if serves else None
            if following is None:
                return serves
            found = self._graphs.get(following.task.graph_hash)
            if found is None or found.nodes[following.task.place].is_async:
                self._start(following)
                return serves
            graph, running = found, following
            self._watch(running.deadline)

    def _next(self) -> Running | None:
        """A waiting task, now in a slot; None: none waits, or no slot is free."""
        with self._lock:
            if self._closed or len(self._running) >= self._slots:
                return None
            task = self._take()
            if task is None:
                return None
            running = Running(task, self._stream, self._clock)
            self._running.add(running)
            return running

    async def _run_async(self, graph: CompiledGraph, running: Running) -> None:
        limit = asyncio.timeout(running.task.timeout_seconds)
        mine, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert mine is not None
        running.coroutine = lambda: loop.call_soon_threadsafe(mine.cancel)
        try:
            async with limit:
                if running.context.cancelled:
                    raise asyncio.CancelledError
                await self._open_resources(graph, running)
                with self._inside(running.task):
                    outcome = await execute(graph, running.task, running.context, self._isolated(running))
        except BaseException as error:
            running.context.cancelled = True
            self._fail(running, timeout_of(running.task) if limit.expired() else error)
        else:
            self._finish(running, outcome=outcome)
        self.pump()

    async def _open_resources(self, graph: CompiledGraph, running: Running) -> None:
        """Let an async node have what its graph's nodes share; what is opened asynchronously, is so now."""
        opens, loop = graph.resources, running.loop
        if opens is None or loop is None or not is_async_manager(opens):
            self._give_resources(graph, running)
            return
        opened = await loop.resources.get(opens)
        running.context.open_resources = lambda: opened

    def _fail(self, running: Running, error: BaseException) -> bool:
        if running.is_unwanted:
            return self._finish(running, handed_back="its run was cancelled")
        if isinstance(error, Question):
            asked = (error.number, error.value)
            return self._finish(running, question=asked, calls=error.calls, timer=error.timer, subgraph=error.subgraph)
        if isinstance(error, NodeRaised):
            return self._finish(running, failure=error.failure, cause=error.__cause__)
        return self._finish(running, failure=failure_of(error, running.task), cause=error)

    def _isolated(self, running: Running) -> Isolated:
        """How a task's node is called in a process of its own, which `running` then knows."""

        def call(spec: NodeSpec, argument: Any) -> Any:
            def started(child: Loan) -> None:
                running.child = child
                if running.context.cancelled:
                    child.kill()

            return self._children.call(spec, argument, running.context, started)

        return call

    def _finish(
        self,
        running: Running,
        outcome: bytes | None = None,
        failure: Failure | None = None,
        cause: BaseException | None = None,
        question: tuple[int, bytes] | None = None,
        calls: bytes | None = None,
        timer: bytes | None = None,
        subgraph: bool = False,
        handed_back: str | None = None,
    ) -> bool:
        """Free the slot and deliver the result; False: the task's time had passed, and the result is dropped."""
        with self._lock:
            if running not in self._running:
                return False
            self._running.remove(running)
        if handed_back is not None:
            self._deliver(running.task.handed_back(handed_back))
            return True
        usage = [priced(one, self._pricing) for one in running.context.usage]
        latency_ms = round((time.perf_counter() - running.started) * 1000, 3)
        if self._spans is not None:
            self._spans.emit(
                partial(
                    node_span,
                    running.task,
                    outcome=_outcome(outcome, failure, subgraph),
                    error=f"{failure.error['type']}: {failure.error['message']}" if failure is not None else None,
                    usage=usage,
                    started_ns=running.started_at * 1_000_000,
                    latency_ms=latency_ms,
                    worker=self._name,
                )
            )
        self._deliver(
            TaskResult(
                run_id=running.task.run_id,
                path=running.task.path,
                delivery=running.task.delivery,
                outcome=outcome,
                failure=failure,
                question=question,
                calls=calls,
                timer=timer,
                subgraph=subgraph,
                usage=encode_usage(usage) if usage else None,
                cause=cause,
                started_at=running.started_at,
                latency_ms=latency_ms,
                worker=self._name,
            )
        )
        return True

    def _watch(self, deadline: float) -> None:
        if self._watchdog is None:
            with self._lock:
                self._watchdog = self._watchdog or Watchdog(self._end_overdue)
        self._watchdog.watch(deadline)

    def _end_overdue(self) -> float | None:
        """Answer for tasks whose time has passed; the next deadline, if any."""
        now = time.perf_counter()
        with self._lock:
            waiting = list(self._running)
        overdue = [running for running in waiting if running.deadline <= now]
        for running in overdue:
            if running.loop is not None:
                self._retire(running.loop)
            if self._fail(running, timeout_of(running.task)):
                running.cancel()
                self.abandoned += running.child is None
        if overdue:
            self.pump()
        return min((running.deadline for running in waiting if running.deadline > now), default=None)

    def cancel(self, run_id: str, started_before: float = math.inf) -> None:
        """Nothing of the run is wanted now: async nodes are cancelled, isolated ones killed, the others see `ctx.cancelled`.

        `started_before` leaves out what has started later (by time.perf_counter). What a node raises now is no failure of it.
        """
        with self._lock:
            for running in self._running:
                if running.task.run_id == run_id and running.started < started_before:
                    running.is_unwanted = True
                    running.cancel()

    def _retire(self, loop: EventLoop) -> None:
        """Some node holds this loop up: those that come now get another one."""
        with self._lock:
            if self._loop is loop:
                self._loop = None
                loop.retire()

    def _event_loop(self) -> EventLoop:
        if self._loop is None:
            with self._lock:
                self._loop = self._loop or EventLoop()
        return self._loop

    def reading(self) -> Mapping[str, Any]:
        """What is to be said to Prometheus."""
        return {
            "langgraph_inflight_nodes": self.running,
            "lockstep_slots": self._slots,
            "lockstep_abandoned_nodes_total": self.abandoned,
            "lockstep_dropped_spans_total": self._spans.dropped if self._spans is not None else 0,
        }

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self._running)

    def close(self) -> None:
        """Take nothing more, drop what still runs, and end the threads. Idempotent."""
        with self._lock:
            self._closed = True
            for running in self._running:
                running.cancel()
            self._running.clear()
        if self._watchdog is not None:
            self._watchdog.close()
        if self._loop is not None:
            self._loop.close(CLOSE_SECONDS)
        self._threads.close(CLOSE_SECONDS)
        self._children.close()
        try:
            self._resources.close()
        except Exception as error:  # of the user's; the others are closed all the same
            log.warning("resources of nodes could not be closed", error=repr(error))


def _outcome(outcome: bytes | None, failure: Failure | None, subgraph: bool) -> str:
    """How an execution has ended, in a word."""
    if outcome is not None:
        return "done"
    if failure is not None:
        return "failed"
    return "called" if subgraph else "asked"
