"""What the engine runs: a graph that was validated, with its functions, and the hash that runs are pinned to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from lockstep.core.policy import RetryPolicy
from lockstep.core.superstep import Program

NodeFunction = Callable[..., Any]
Isolation = Literal["none", "process"]
OpenResources = Callable[[], Any]
"""Makes a context manager, sync or async, for what the nodes of one process share."""


class Router(msgspec.Struct, frozen=True):
    """A conditional edge: `function` returns labels, names or Sends; `labels` maps what it returns to nodes; None: any node."""

    name: str
    function: NodeFunction
    labels: dict[Any, str] | None
    takes_context: bool


class Handler(msgspec.Struct, frozen=True):
    """What runs in a node's place when that has failed for good."""

    name: str
    function: NodeFunction
    takes_context: bool


class Subgraph(msgspec.Struct, frozen=True):
    """The graph of which a node's work is a run of its own.

    `input` and `output` say which fields of it get and give which ones of the parent, or are functions that make its input,
    and of its final state what the node returns.
    """

    graph: CompiledGraph
    input: Mapping[str, str] | NodeFunction
    output: Mapping[str, str] | NodeFunction


class NodeSpec(msgspec.Struct, frozen=True):
    """A node as the worker runs it: START has neither `function` nor `subgraph`, others have one of them.

    `is_async`: it, its handler or one of its routers must run on an event loop.
    """

    node_id: str
    function: NodeFunction | None
    routers: tuple[Router, ...]
    takes_context: bool
    is_async: bool
    queue: str
    retry: RetryPolicy | None
    timeout_seconds: float | None
    handler: Handler | None = None
    isolation: Isolation = "none"
    max_concurrent: int | None = None
    subgraph: Subgraph | None = None


class Migration(msgspec.Struct, frozen=True):
    """How runs of another version go on with this one: what becomes of their state (JSON values), and of their nodes' names."""

    function: Callable[[dict[str, Any]], dict[str, Any]]
    nodes: dict[str, str]


class CompiledGraph(msgspec.Struct, frozen=True):
    """A validated graph: the core's program, the functions, and the hash that runs are pinned to.

    `migrations` are by the hash of the version that runs come from; `parent` is the program of the graph of which this is a
    subgraph. `resources` opens what `ctx.resources` gives to nodes.
    """

    name: str
    hash: str
    state: type
    program: Program
    nodes: dict[str, NodeSpec]
    migrations: dict[str, Migration] = {}
    parent: Program | None = None
    resources: OpenResources | None = None


def by_hash(graphs: Iterable[CompiledGraph]) -> dict[str, CompiledGraph]:
    """These graphs and all their subgraphs."""
    return {graph.hash: graph for top in graphs for graph in _with_subgraphs(top)}


def queues_of(graphs: Mapping[str, CompiledGraph]) -> list[str]:
    """The queues that the nodes of these graphs name."""
    return sorted({node.queue for graph in graphs.values() for node in graph.nodes.values()})


def _with_subgraphs(graph: CompiledGraph) -> Iterator[CompiledGraph]:
    yield graph
    for node in graph.nodes.values():
        if node.subgraph is not None:
            yield from _with_subgraphs(node.subgraph.graph)


def serving(graphs: Mapping[str, CompiledGraph], graph_hash: str) -> CompiledGraph | None:
    """The one of these graphs with which a run of that version goes on: that version, or one that has a migration from it."""
    found = graphs.get(graph_hash)
    return found or next((graph for graph in graphs.values() if graph_hash in graph.migrations), None)


def served(graphs: Mapping[str, CompiledGraph]) -> set[str]:
    """The hashes of all versions whose runs go on with one of these graphs."""
    return {*graphs, *(graph_hash for graph in graphs.values() for graph_hash in graph.migrations)}
