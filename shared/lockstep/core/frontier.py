"""From the routes of a step to the ordered work items of the next one.

The finished items are walked in order_key order, each item's targets in edge_index order. The place at which a target comes up
in this walk is its rank; that is why map-reduce results come back in list order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from lockstep.core.canonical import encode_json, quoted
from lockstep.core.ordering import END, ROOT_PATH, START, Ordering, order_key_of, path_of
from lockstep.core.records import Finished, Frontier, Route, Waiting, WorkItem
from lockstep.core.topology import Topology
from lockstep.errors import NoProgressError, RouteError


def first_frontier(topology: Topology, root: bytes = ROOT_PATH) -> Frontier:
    """F(1): the targets of START, or the hidden item `__start__` when START has routers to run first.

    `root` is the parent's path of the first items: of a subgraph, that of the item whose work it is.
    """
    start = topology.nodes[START]
    if start.routers:
        entry = Waiting(START, root, 0, trigger_step=0)
        return Frontier(items=ranked([entry], topology.ordering, 0))
    return _release(topology, Frontier(), list(_targets_of(topology, START, root, (), {}, 0)), 0)


def next_frontier(topology: Topology, frontier: Frontier, step_id: int, finished: Mapping[bytes, Finished]) -> Frontier:
    """F(k+1) from F(k) and what each of its items came to, keyed by path; `step_id` is k.

    Empty if one of them ends the run. Raises RouteError for a target that is no node, NoProgressError when nothing can run but
    a barrier is half filled.
    """
    if any(one.up is not None for one in finished.values()):
        return Frontier()
    arrived, firing = _fill_barriers(topology, frontier)
    triggered: list[Waiting] = []
    for item in frontier.items:
        parent = item.parent_path if item.node_id == START else item.path
        routes = finished[item.path].routes
        triggered += _targets_of(topology, item.place, parent, routes, firing, step_id)
    following = _release(topology, Frontier(deferred=frontier.deferred, arrived=arrived), triggered, step_id)
    starving = [index for index in arrived if topology.barriers[index].target != END]
    if not following.items and starving:
        waiting = sorted({topology.barriers[index].target for index in starving})
        missing = sorted({m for index in starving for m in set(topology.barriers[index].members) - arrived[index]})
        raise NoProgressError(
            f"nothing is left to run, but {', '.join(waiting)} still waits for {', '.join(missing)} to finish; "
            f"route to the missing nodes, or use plain edges instead of add_edge([...], ...)",
            step_id=step_id,
            waiting=waiting,
        )
    return following


def _fill_barriers(topology: Topology, frontier: Frontier) -> tuple[dict[int, frozenset[str]], dict[int, None]]:
    """The barriers still half filled after this step, and those that it completes."""
    if not topology.barriers:
        return {}, {}
    done = {item.place for item in frontier.items}
    arrived: dict[int, frozenset[str]] = {}
    firing: dict[int, None] = {}
    for index, barrier in enumerate(topology.barriers):
        members = frontier.arrived.get(index, frozenset()) | (done & set(barrier.members))
        if len(members) == len(barrier.members):
            firing[index] = None
        elif members:
            arrived[index] = members
    return arrived, firing


def _targets_of(
    topology: Topology,
    node_id: str,
    parent: bytes,
    routes: Sequence[Route],
    firing: dict[int, None],
    step_id: int,
) -> Iterator[Waiting]:
    """The targets of one finished item that make items, by edge_index; each takes an index, also END and an unfilled barrier.

    A completed barrier is taken out of `firing` by the first of its members in the walk, to whom its item belongs.
    """
    edges = topology.nodes[node_id].edges
    for index, edge in enumerate(edges):
        if edge.barrier is not None:
            if edge.barrier not in firing:
                continue
            del firing[edge.barrier]
        if edge.target != END:
            yield Waiting(edge.target, parent, index, step_id)
    for index, route in enumerate(routes, start=len(edges)):
        if route.node_id == END:
            continue
        if route.node_id not in topology.nodes or route.node_id == START:
            raise RouteError(unknown_target(node_id, route.node_id, topology), node_id=node_id, target=route.node_id)
        yield Waiting(route.node_id, parent, index, step_id, route.payload)


def unknown_target(node_id: str, target: str, topology: Topology) -> str:
    """The message for a route to nowhere."""
    known = ", ".join(sorted(topology.nodes.keys() - {START}))
    return f"node {node_id!r} routes to {target!r}, which is no node; known nodes: {known}, or END to stop"


def _release(topology: Topology, base: Frontier, triggered: Iterable[Waiting], step_id: int) -> Frontier:
    """Coalesce what was triggered, hold back deferred nodes while others are due, and rank the rest."""
    due: list[Waiting] = []
    deferred = list(base.deferred)
    named = {waiting.node_id for waiting in deferred if waiting.payload is None}
    for waiting in triggered:
        if waiting.payload is None:
            if waiting.node_id in named:
                continue
            named.add(waiting.node_id)
        (deferred if topology.nodes[waiting.node_id].defer else due).append(waiting)
    if not due:
        due, deferred = deferred, []
    return Frontier(ranked(due, topology.ordering, step_id), tuple(deferred), base.arrived)


def ranked(due: Sequence[Waiting], ordering: Ordering, step_id: int) -> tuple[WorkItem, ...]:
    """The items in ascending (order_key, path); in "edge" ordering the given order is that already.

    In "langgraph" ordering, those on the state come first, by the name of their node; then Sends, in the given order.
    """
    if ordering == "langgraph":
        on_state = sorted((waiting for waiting in due if waiting.payload is None), key=lambda waiting: waiting.node_id)
        due = [*on_state, *(waiting for waiting in due if waiting.payload is not None)]
    items = []
    for rank, waiting in enumerate(due):
        path = path_of(waiting.parent_path, waiting.node_id, waiting.edge_index)
        key = order_key_of(ordering, rank, path)
        items.append(WorkItem(waiting.node_id, path, waiting.parent_path, waiting.edge_index, key, step_id, waiting.payload))
    return in_order(items) if ordering == "hash" else tuple(items)


def stand_in(item: WorkItem, handler: str) -> WorkItem:
    """The item of an error handler for one that failed: its child by identity, at its rank, with its input."""
    path = path_of(item.path, handler, 0)
    key = item.order_key[:4] + path[:4]
    return WorkItem(handler, path, item.path, 0, key, item.scheduled_step, item.payload, stands_for=item.node_id)


def in_order(items: Iterable[WorkItem]) -> tuple[WorkItem, ...]:
    """Ascending order_key; items whose keys collide (only "hash" ordering can) by their whole path, so the order is total."""
    return tuple(sorted(items, key=lambda item: (item.order_key, item.path)))


def encode_frontier(frontier: Frontier, ordering: Ordering) -> bytes:
    """The frontier as canonical JSON, each parent written once: a fan-out of 10,000 shares one. "edge" ordering is left out.

    {"arrived":{"0":["a"]},"deferred":[[node, parent, edge_index, trigger_step, payload?]],
     "items":[[node, parent, edge_index, payload?]],"ordering":"hash","parents":["hex"],"stands_for":{"0":node}}
    """
    parents: dict[bytes, int] = {}

    def entry(of: WorkItem | Waiting, *more: int) -> bytes:
        parent = parents.setdefault(of.parent_path, len(parents))
        parts = [quoted(of.node_id), b"%d" % parent, b"%d" % of.edge_index, *(b"%d" % number for number in more)]
        if of.payload is not None:
            parts.append(of.payload)
        return b"[" + b",".join(parts) + b"]"

    deferred = b",".join([entry(waiting, waiting.trigger_step) for waiting in frontier.deferred])
    items = b",".join([entry(item) for item in frontier.items])
    arrived = _json({str(index): sorted(members) for index, members in frontier.arrived.items()}) if frontier.arrived else b"{}"
    listed = b",".join([b'"%s"' % parent.hex().encode() for parent in parents])
    standing = {str(index): item.stands_for for index, item in enumerate(frontier.items) if item.stands_for is not None}
    stand = b',"stands_for":%b' % _json(standing) if standing else b""
    rule = b"" if ordering == "edge" else b'"ordering":%b,' % _json(ordering)
    return b'{"arrived":%b,"deferred":[%b],"items":[%b],%b"parents":[%b]%b}' % (
        arrived,
        deferred,
        items,
        rule,
        listed,
        stand,
    )


def decode_frontier(data: bytes, step_id: int) -> Frontier:
    """The inverse of `encode_frontier`; `step_id` is the step whose commit made the frontier."""
    record = json.loads(data)
    parents = [bytes.fromhex(parent) for parent in record["parents"]]
    due = [
        Waiting(node_id, parents[parent], edge_index, step_id, _json(payload[0]) if payload else None)
        for node_id, parent, edge_index, *payload in record["items"]
    ]
    deferred = tuple(
        Waiting(node_id, parents[parent], edge_index, trigger_step, _json(payload[0]) if payload else None)
        for node_id, parent, edge_index, trigger_step, *payload in record["deferred"]
    )
    arrived = {int(index): frozenset(members) for index, members in record["arrived"].items()}
    items = ranked(due, record.get("ordering", "edge"), step_id)
    if standing := record.get("stands_for"):
        items = tuple(msgspec.structs.replace(item, stands_for=standing.get(str(index))) for index, item in enumerate(items))
    return Frontier(items, deferred, arrived)


def _json(value: object) -> bytes:
    """Canonical JSON of a value that was canonical before, so that it needs no checks."""
    return encode_json(value).encode()
