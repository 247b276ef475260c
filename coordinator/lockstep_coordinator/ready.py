"""The items of a run's step that can be handed out, in the lanes in which they wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from lockstep.compiled import CompiledGraph
from lockstep.core.records import WorkItem

Lane = tuple[str, str]
"""What an item waits for room in: its queue and, if its node has max_concurrent, the node of the graph's version; else ""."""


def lane_of(graph: CompiledGraph, item: WorkItem) -> Lane:
    """The lane of an item: those in one lane are handed out in their order, and hold back none in another."""
    node = graph.nodes[item.place]
    return node.queue, "" if node.max_concurrent is None else f"{graph.hash}/{node.node_id}"


class Ready:
    """Starts empty. In each lane, items stand in ascending order_key, but for those that come back: they are first."""

    def __init__(self, graph: CompiledGraph) -> None:
        self._graph = graph
        self._lanes: dict[Lane, deque[WorkItem]] = {}

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def add(self, item: WorkItem) -> None:
        """Behind the others of its lane."""
        self._lanes.setdefault(lane_of(self._graph, item), deque()).append(item)

    def add_first(self, item: WorkItem) -> None:
        """Before the others of its lane."""
        self._lanes.setdefault(lane_of(self._graph, item), deque()).appendleft(item)

    def discard(self, paths: Collection[bytes]) -> None:
        """Without the items of these paths."""
        for lane, items in self._lanes.items():
            if any(item.path in paths for item in items):
                self._lanes[lane] = deque(item for item in items if item.path not in paths)

    def take(self, full: Collection[Lane]) -> WorkItem | None:
        """The first item in order_key order whose lane is not full; None: there is none. All lanes of a full queue are full."""
        lanes = [items for lane, items in self._lanes.items() if items and lane not in full and (lane[0], "") not in full]
        return min(lanes, key=lambda items: items[0].order_key).popleft() if lanes else None
