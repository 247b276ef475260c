"""For tests of graphs: an engine in which time is moved by hand and nodes fail when told to, and a model with a script."""

from __future__ import annotations

import inspect
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import msgspec

from lockstep.compiled import CompiledGraph, NodeSpec
from lockstep.core.lifecycle import FINISHED
from lockstep.engine import Engine
from lockstep.errors import ConfigurationError, WaitTimeoutError
from lockstep.explain import explain
from lockstep.graph import Graph
from lockstep.options import Options, With
from lockstep.prices import PRICES, Pricing
from lockstep.run import Run

REST_SECONDS = 10.0
"""How long `rest` waits."""


class TestEngine(Engine):
    """An Engine for tests: in memory unless `store` says otherwise, with a clock that `advance` moves, and faults on request.

    `executions` counts how often each node was called, attempts that failed included. Isolated nodes run as they are: they are
    neither counted nor made to fail. Nodes find `resources`, if given, in `ctx.resources`, and the graph's are not opened.
    """

    __test__ = False  # It is none itself.

    def __init__(
        self,
        graph: Graph | Sequence[Graph],
        *settings: With,
        store: str = "memory://",
        options: Options | None = None,
        prices: Pricing = PRICES,
        resources: Any = None,
    ) -> None:
        super().__init__(graph, store, *settings, options=options, prices=prices)
        self.executions: Counter[str] = Counter()
        self._clock = self._moved = MovedClock()
        self._faults: dict[str, deque[BaseException]] = {}
        self._faults_lock = threading.Lock()
        self._stand_in = nullcontext(resources) if resources is not None else None
        self._by_hash = {graph_hash: self._watched(compiled) for graph_hash, compiled in self._by_hash.items()}

    def __enter__(self) -> TestEngine:
        self._running()
        return self

    def advance(self, seconds: float) -> None:
        """Let so much time pass at once for all that waits: nodes that sleep, deadlines, pauses between attempts."""
        if not seconds >= 0:
            raise ConfigurationError(f"seconds={seconds!r}: time does not go back", option="seconds")
        self._moved.offset += seconds
        self._running().coordinator.wake_for_commands()

    def rest(self, run: Run, timeout_seconds: float = REST_SECONDS) -> None:
        """Wait until a run has ended, or all that is due of it waits: for time to pass, or for people.

        Raises WaitTimeoutError.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._rests(run):
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    f"run {run.run_id} still does something after {timeout_seconds:g} s",
                    run_id=run.run_id,
                    timeout_seconds=timeout_seconds,
                )
            time.sleep(0.001)

    def _rests(self, run: Run) -> bool:
        row = run.row()
        if run.is_settled(row):
            return True
        items = explain(run.backend.reader, row, None, self._moved.time()).items
        states = {item.state for item in items if item.state != "subgraph"}
        below = [Run(item.where, run.backend) for item in items if item.state == "subgraph" and item.where is not None]
        if below:
            return states <= {"done", "timer", "answer"} and all(map(self._rests_below, below))
        # Of a step that is all done, the commit is under way.
        return bool(states) and states <= {"done", "timer", "answer"} and states != {"done"}

    def _rests_below(self, run: Run) -> bool:
        """Of the run of a subgraph: that it has begun, and rests, but has not ended, for then its parent is to go on."""
        return bool(run.backend.reader.find_runs(run_ids=[run.run_id])) and run.status not in FINISHED and self._rests(run)

    def fail(self, node: str, error: BaseException, *, times: int = 1) -> None:
        """Let the next calls of a node raise this instead of being made. Raises ConfigurationError for an unknown node."""
        known = sorted({name for compiled in self._by_hash.values() for name in compiled.nodes if not name.startswith("__")})
        if node not in known:
            raise ConfigurationError(f"no node {node!r}; there are {', '.join(known)}", option="node")
        with self._faults_lock:
            self._faults.setdefault(node, deque()).extend([error] * times)

    def _watched(self, compiled: CompiledGraph) -> CompiledGraph:
        nodes = {name: self._watched_node(spec) for name, spec in compiled.nodes.items()}
        opens = compiled.resources if self._stand_in is None else self._shared
        return msgspec.structs.replace(compiled, nodes=nodes, resources=opens)

    def _shared(self) -> Any:
        return self._stand_in

    def _watched_node(self, spec: NodeSpec) -> NodeSpec:
        if spec.function is None or spec.isolation != "none":
            return spec
        engine, function = weakref.proxy(self), spec.function

        def called(*arguments: Any) -> Any:
            engine._begin(spec.node_id)
            return function(*arguments)

        async def awaited(*arguments: Any) -> Any:
            engine._begin(spec.node_id)
            return await function(*arguments)

        is_async = inspect.iscoroutinefunction(function)
        return msgspec.structs.replace(spec, function=awaited if is_async else called)

    def _begin(self, node: str) -> None:
        with self._faults_lock:
            self.executions[node] += 1
            faults = self._faults.get(node)
            error = faults.popleft() if faults else None
        if error is not None:
            raise error


class MovedClock:
    """The time, and `offset` seconds."""

    def __init__(self) -> None:
        self.offset = 0.0

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() + self.offset

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.offset


class FakeModel:
    """Answers like a chat model that is compatible with OpenAI's, from a script: texts, whole replies, or exceptions to raise.

    Call it with a request, in a node or inside of `ctx.record`; `requests` are those that it got. A word is a token. Raises
    AssertionError when it is asked more often than the script says. For asyncio, `await model.aask(request)`.
    """

    def __init__(self, replies: Iterable[str | Mapping[str, Any] | BaseException], *, model: str = "fake") -> None:
        self.requests: list[Any] = []
        self._replies = deque(replies)
        self._model = model
        self._lock = threading.Lock()

    def __call__(self, request: Any) -> dict[str, Any]:
        """The next reply."""
        with self._lock:
            self.requests.append(request)
            if not self._replies:
                raise AssertionError(
                    f"the model was asked for the {len(self.requests)}. time, and its script is over: {request!r}"
                )
            reply = self._replies.popleft()
        if isinstance(reply, BaseException):
            raise reply
        if not isinstance(reply, str):
            return dict(reply)
        return {
            "model": self._model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}],
            "usage": {"prompt_tokens": len(str(request).split()), "completion_tokens": len(reply.split())},
        }

    async def aask(self, request: Any) -> dict[str, Any]:
        """`__call__` for asyncio."""
        return self(request)
