"""A node that is a graph: it asks for the end of a run of that graph, and returns what the run has come to."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lockstep.compiled import CompiledGraph, NodeSpec, Subgraph
from lockstep.core.canonical import canonical_bytes
from lockstep.core.merge import Schema
from lockstep.core.records import Finished, Write
from lockstep.errors import StateError, SubgraphError
from lockstep.graph import Command, Overwrite, Send
from lockstep.interrupts import Question
from lockstep.models import instance_of, values_of
from lockstep.subgraphs import Failed, Result, decode_end
from lockstep_worker.context import NodeContext


async def call_subgraph(graph: CompiledGraph, spec: NodeSpec, given: Any, context: NodeContext) -> Any:
    """What the node returns. Raises Question for the first time, SubgraphError if the run did not succeed."""
    assert spec.subgraph is not None
    ends = [decode_end(answer) for answer in context.task.answers]
    for end in ends:
        if isinstance(end, Result):
            return await _returned(graph, spec.subgraph, end)
    if ends and isinstance(last := ends[-1], Failed) and last.attempt == context.attempt:
        raise SubgraphError(
            f"the run of subgraph {spec.node_id!r}, {last.run_id}, is {last.status}: {last.error_type}: {last.message}",
            error_type=last.error_type,
            child_run_id=last.run_id,
        )
    raise Question(len(ends), await _input(spec, spec.subgraph, given, context), subgraph=True)


async def _input(spec: NodeSpec, subgraph: Subgraph, given: Any, context: NodeContext) -> bytes:
    """The input of the run, as canonical bytes."""
    schema = subgraph.graph.program.schema
    if isinstance(subgraph.input, Mapping):
        has = values_of(given, f"what subgraph {spec.node_id!r} gets")
        values = {their: has[our] for their, our in subgraph.input.items() if our in has}
    else:
        made = subgraph.input(given)
        values = values_of(await made if inspect.isawaitable(made) else made, f"the input of subgraph {spec.node_id!r}")
    plain = schema.dumped(values)
    for name, value in plain.items():
        canonical_bytes(value, field=name)
    data = canonical_bytes(plain)
    if len(data) > context.task.max_payload_bytes:
        raise StateError(
            f"the input of subgraph {spec.node_id!r} takes {len(data)} bytes, more than "
            f"max_payload_bytes={context.task.max_payload_bytes}; pass less, or a reference, or raise the option"
        )
    return data


async def _returned(graph: CompiledGraph, subgraph: Subgraph, end: Result) -> Any:
    """What a node may return, of what the run came to."""
    if end.up is not None:
        return _commands(graph.program.schema, end.up)
    schema = subgraph.graph.program.schema
    if not isinstance(subgraph.output, Mapping):
        made = subgraph.output(instance_of(subgraph.graph.state, schema.loaded(end.state)))
        return await made if inspect.isawaitable(made) else made
    return [{subgraph.output[write.field]: _value(schema, write)} for write in end.writes if write.field in subgraph.output]


def _commands(schema: Schema, up: Finished) -> list[Any]:
    sends = [
        route.node_id if route.payload is None else Send(route.node_id, schema.loaded_payload(route.payload))
        for route in up.routes
    ]
    return [*({write.field: _value(schema, write)} for write in up.writes), Command(goto=sends)]


def _value(schema: Schema, write: Write) -> Any:
    value = schema.field(write.field).loaded(write.value)
    return Overwrite(value) if write.overwrite else value
