"""The graph as the core sees it: nodes, edges with their indexes, barriers. Made by `lockstep.graph`."""

from __future__ import annotations

import msgspec

from lockstep.core.ordering import Ordering


class Edge(msgspec.Struct, frozen=True):
    """A static edge; its place in its node's tuple is its edge_index. `barrier` is an index into the topology's barriers."""

    target: str
    barrier: int | None = None


class Barrier(msgspec.Struct, frozen=True):
    """`add_edge([a, b], c)`: the target runs once when every member has finished, in whatever step, and then re-arms."""

    members: tuple[str, ...]
    target: str


class Node(msgspec.Struct, frozen=True):
    """A node's place in the graph. `routers` are the names of its conditional edges, in declaration order."""

    node_id: str
    edges: tuple[Edge, ...] = ()
    routers: tuple[str, ...] = ()
    defer: bool = False


class Topology(msgspec.Struct, frozen=True):
    """All nodes by id (START among them), all barriers, and the rule by which a step's items are ordered."""

    nodes: dict[str, Node]
    barriers: tuple[Barrier, ...] = ()
    ordering: Ordering = "edge"
