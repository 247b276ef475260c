"""One task from its bytes to its outcome's bytes: decode, call the node, read what it returned, ask its routers, encode."""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from lockstep.compiled import CompiledGraph, NodeSpec, Router
from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import unknown_target
from lockstep.core.merge import Schema, fold
from lockstep.core.ordering import END, START
from lockstep.core.outside import UPDATE
from lockstep.core.policy import ConflictPolicy
from lockstep.core.records import Failure, Finished, Route, Write
from lockstep.core.state import State
from lockstep.core.superstep import Program
from lockstep.errors import LockstepError, NodeFailedError, NodeTimeoutError, RouteError, StateError, text_of
from lockstep.graph import Command, Overwrite, Send
from lockstep.interrupts import ASKS
from lockstep.models import instance_of, values_of
from lockstep.records import Task
from lockstep.wire import encode_outcome
from lockstep_worker.context import NodeContext
from lockstep_worker.subgraphs import call_subgraph

T = TypeVar("T")


Isolated = Callable[[NodeSpec, Any], Any]
"""Calls a node with its argument in a process of its own."""


async def execute(graph: CompiledGraph, task: Task, context: NodeContext, isolated: Isolated) -> bytes:
    """The outcome of a task, see `encode_outcome`. Raises whatever the node or a router raises, StateError, or RouteError.

    The coroutine of a node without async parts never suspends: `without_loop` runs it in a plain thread.
    """
    spec = graph.nodes[task.place]
    called = None if task.node_id == UPDATE else spec.handler if task.stands_for is not None else spec
    returned = None
    if called is spec and spec.isolation == "process":
        returned = isolated(spec, _argument(graph, task))
    elif called is spec and spec.subgraph is not None:
        returned = await call_subgraph(graph, spec, _argument(graph, task), context)
    elif called is not None and called.function is not None:
        returned = await _call(called.function, called.takes_context, _argument(graph, task), context)
    parts = returned if isinstance(returned, list) else [returned]
    to_parent = [part for part in parts if isinstance(part, Command) and part.graph == Command.PARENT]
    if to_parent and graph.parent is None:
        raise RouteError(
            f"node {task.node_id!r} returned Command(graph=Command.PARENT), and graph {graph.name!r} is nobody's subgraph",
            target=Command.PARENT,
        )
    writes, routes = _read(graph.program, task, [part for part in parts if not any(part is one for one in to_parent)])
    up = None
    if to_parent:
        assert graph.parent is not None
        written, chosen = _read(graph.parent, task, to_parent)
        up = Finished(tuple(written), tuple(chosen))
    for router in spec.routers if up is None else ():
        seen = _seen_by_router(graph, task, writes)
        chosen = await _call(router.function, router.takes_context, seen, context)
        routes += _routes(graph.program, task, _labelled(router, spec.node_id, _listed(chosen)))
    outcome = encode_outcome(writes, routes, context.events, context.end_calls(), up)
    _check_size(outcome, task, f"what node {task.node_id!r} returned")
    return outcome


def _read(program: Program, task: Task, parts: Iterable[Any]) -> tuple[list[Write], list[Route]]:
    """What a node returned, as the graph has it for which it is meant."""
    writes: list[Write] = []
    routes: list[Route] = []
    for part in parts:
        update, goto = (part.update, part.goto) if isinstance(part, Command) else (part, ())
        writes += _writes(program.schema, task.place, update)
        routes += _routes(program, task, _listed(goto))
    return writes, routes


def without_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a node that is not declared with `async def` returned something to wait for; declare it so")


def failure_of(error: BaseException, task: Task) -> Failure:
    """An exception as a record: our own errors as they are, anything else as NodeFailedError."""
    kinds = tuple(kind.__name__ for kind in type(error).__mro__ if kind is not object)
    if not isinstance(error, LockstepError):
        error = NodeFailedError(
            f"node {task.node_id!r} raised {type(error).__name__}: {text_of(error)}",
            error_type=type(error).__name__,
            traceback="".join(traceback.format_exception(error)),
        )
    located = error.located(run_id=task.run_id, step_id=task.step_id, node_id=task.node_id, attempt=task.attempt)
    return Failure(located.to_record(), kinds)


def timeout_of(task: Task) -> NodeTimeoutError:
    """The error of a task that ran past its time."""
    return NodeTimeoutError(
        f"node {task.node_id!r} ran longer than {task.timeout_seconds:g} s; make it faster, or raise its timeout_seconds",
        error_type="TimeoutError",
        timeout_seconds=task.timeout_seconds,
    )


async def _call(function: Any, takes_context: bool, argument: Any, context: NodeContext) -> Any:
    asks = ASKS.set(context.ask)
    try:
        result = function(argument, context) if takes_context else function(argument)
        return await result if inspect.isawaitable(result) else result
    finally:
        ASKS.reset(asks)


def _argument(graph: CompiledGraph, task: Task) -> Any:
    """A Send's payload, or the state in the author's type. Decoded anew for each item, so no node sees another's mutations."""
    schema = graph.program.schema
    if task.payload is None:
        return instance_of(graph.state, schema.loaded(json.loads(task.state)))
    return schema.loaded_payload(task.payload)


def _writes(schema: Schema, node_id: str, update: Any) -> Iterator[Write]:
    if update is None:
        return
    allowed = "a dict of state fields, a Command, None or a list of these"
    for name, value in values_of(update, f"what node {node_id!r} returns ({allowed})").items():
        field = schema.field(name)
        overwrite = isinstance(value, Overwrite)
        plain = field.dumped(value.value if overwrite else value)
        # Checked here, where the field is known; the bytes of the whole outcome are made at the end.
        canonical_bytes(plain, field=name)
        yield Write(name, plain, overwrite)


def _routes(program: Program, task: Task, targets: Iterable[Any]) -> Iterator[Route]:
    topology = program.topology
    for target in targets:
        name = target.node if isinstance(target, Send) else target
        if not isinstance(name, str) or name == START or (name not in topology.nodes and name != END):
            raise RouteError(unknown_target(task.node_id, str(name), topology), target=str(name))
        yield Route(name, _payload(program, task, target) if isinstance(target, Send) else None)


def _payload(program: Program, task: Task, send: Send) -> bytes:
    """The canonical bytes of what a Send carries; state fields in it go through their codec."""
    fields = program.schema.fields
    payload = send.payload
    if isinstance(payload, Mapping):
        payload = {name: fields[name].dumped(v) if name in fields else v for name, v in payload.items()}
    data = canonical_bytes(payload, field=f"Send({send.node!r})")
    _check_size(data, task, f"Send({send.node!r})")
    return data


def _seen_by_router(graph: CompiledGraph, task: Task, writes: list[Write]) -> Any:
    """S(k-1) plus the node's own delta, in the author's type."""
    schema = graph.program.schema
    state = fold(schema, ConflictPolicy.FAIL, State.from_bytes(task.state), [(task.node_id, writes)])
    return instance_of(graph.state, schema.loaded(json.loads(state.to_bytes())))


def _labelled(router: Router, node_id: str, chosen: Iterable[Any]) -> Iterator[Any]:
    """What a router chose, its labels turned into nodes. END and Sends need no label."""
    for choice in chosen:
        if router.labels is None or isinstance(choice, Send) or choice == END:
            yield choice
        elif isinstance(choice, Hashable) and choice in router.labels:
            yield router.labels[choice]
        else:
            known = ", ".join(map(repr, router.labels))
            raise RouteError(
                f"router {router.name!r} of node {node_id!r} returned {choice!r}; its path_map has {known}", target=str(choice)
            )


def _listed(targets: Any) -> Iterable[Any]:
    if isinstance(targets, (list, tuple)):
        return targets
    return (targets,)


def _check_size(data: bytes, task: Task, what: str) -> None:
    if len(data) > task.max_payload_bytes:
        raise StateError(
            f"{what} takes {len(data)} bytes, more than max_payload_bytes={task.max_payload_bytes}; "
            f"keep large data elsewhere and pass a reference, or raise the option"
        )
