"""What the core talks about, as frozen records."""

from __future__ import annotations

from typing import Any

import msgspec


class WorkItem(msgspec.Struct, frozen=True):
    """A node due in a step. `payload` holds a Send's canonical bytes; None means that the node runs on the state.

    The item of an error handler is known by the handler's name, and `stands_for` the node that failed: it has that node's
    place in the step and in the graph.
    """

    node_id: str
    path: bytes
    parent_path: bytes
    edge_index: int
    order_key: bytes
    scheduled_step: int
    payload: bytes | None = None
    stands_for: str | None = None

    @property
    def place(self) -> str:
        """The node of the graph whose edges, queue and rules are the item's."""
        return self.stands_for or self.node_id


class Route(msgspec.Struct, frozen=True):
    """Where a finished node sends the run, beside its static edges. With a payload it is a Send."""

    node_id: str
    payload: bytes | None = None


class Write(msgspec.Struct, frozen=True):
    """One node's wish to change one field, as JSON values."""

    field: str
    value: Any
    overwrite: bool = False


class Finished(msgspec.Struct, frozen=True):
    """What a work item came to: its delta, and its routes in index order (Command.goto first, then the routers').

    With `up`, its run ends with this step: that is what the item comes to of which the run is the subgraph.
    """

    writes: tuple[Write, ...] = ()
    routes: tuple[Route, ...] = ()
    up: Finished | None = None


class Failure(msgspec.Struct, frozen=True):
    """One failed attempt: the error as a record, and the names of the exception's class and its parents."""

    error: dict[str, Any]
    kinds: tuple[str, ...] = ()


class Waiting(msgspec.Struct, frozen=True):
    """An item of a `defer=True` node, held back until nothing else is left; `trigger_step` first asked for it."""

    node_id: str
    parent_path: bytes
    edge_index: int
    trigger_step: int
    payload: bytes | None = None

    @property
    def place(self) -> str:
        """The node of the graph."""
        return self.node_id


class Frontier(msgspec.Struct, frozen=True):
    """What a step leaves to be done: the ordered items of the next step, deferred ones, and half-filled barriers.

    `arrived` maps a barrier's index in the topology to the members that have finished since it last fired.
    """

    items: tuple[WorkItem, ...] = ()
    deferred: tuple[Waiting, ...] = ()
    arrived: dict[int, frozenset[str]] = {}
