"""Permits: how many tasks of a node are handed out at a time, counted in Redis over all coordinators.

A permit is a lease. Its coordinator renews it; of one that has died, it ends by itself, or goes to the next owner of the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis

from lockstep.broker.names import Names
from lockstep.broker.scripts import GIVE_BACK, PERMIT, RENEW
from lockstep.records import Task

PERMIT_SECONDS = 30.0
"""How long a permit holds without being renewed. A dead coordinator's runs have another owner before, who renews theirs."""

Item = tuple[str, bytes]


class Permits:
    """The permits that one coordinator holds. Methods raise redis-py's errors."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._redis = client
        self._names = names
        self._node_of: dict[Item, str] = {}
        self._given_back: list[Item] = []

    def take(self, tasks: Sequence[Task]) -> list[bool]:
        """Of each task, whether it has a permit now."""
        self.flush()
        by_node: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            by_node[f"{task.graph_hash}:{task.place}"].append(task)
        pipe = self._redis.pipeline(transaction=False)
        for node, some in by_node.items():
            limit, stream = some[0].max_concurrent or 0, self._names.results(some[0].partition_id)
            pipe.eval(PERMIT, 2, *self._keys(node), limit, _MILLISECONDS, stream, *[_member(_item(task)) for task in some])
        permitted: set[Item] = set()
        for (node, some), verdicts in zip(by_node.items(), pipe.execute(), strict=True):
            for task, verdict in zip(some, verdicts, strict=True):
                if verdict:
                    self._node_of[_item(task)] = node
                    permitted.add(_item(task))
        return [_item(task) in permitted for task in tasks]

    def give_back(self, items: Iterable[Item]) -> None:
        """These are out no more; said at the next `flush`. Those that need no permit are left alone."""
        if self._node_of:
            self._given_back += [item for item in items if item in self._node_of]

    def flush(self) -> None:
        """Give back what is to be given back."""
        if self._given_back:
            self._for_each_node(self._given_back, lambda pipe, node, some: pipe.eval(GIVE_BACK, 2, *self._keys(node), *some))
            for item in self._given_back:
                self._node_of.pop(item, None)
            self._given_back.clear()

    def renew(self, is_out: Callable[[Item], bool]) -> None:
        """Hold on to the permits of what is out; the others end by themselves."""
        self.flush()
        for item in [item for item in self._node_of if not is_out(item)]:
            del self._node_of[item]
        if self._node_of:
            self._for_each_node(
                self._node_of, lambda pipe, node, some: pipe.eval(RENEW, 1, self._keys(node)[0], _MILLISECONDS, *some)
            )

    def _for_each_node(self, items: Iterable[Item], say: Callable[[Any, str, list[str]], None]) -> None:
        by_node: dict[str, list[str]] = defaultdict(list)
        for item in items:
            if item in self._node_of:
                by_node[self._node_of[item]].append(_member(item))
        pipe = self._redis.pipeline(transaction=False)
        for node, some in by_node.items():
            for first in range(0, len(some), ITEMS_PER_CALL):
                say(pipe, node, some[first : first + ITEMS_PER_CALL])
        pipe.execute()

    def _keys(self, node: str) -> tuple[str, str]:
        return self._names.permits(node), self._names.permits_waited_for(node)


ITEMS_PER_CALL = 1000
"""Items in one call of a script: Lua's stack is bounded."""
_MILLISECONDS = int(PERMIT_SECONDS * 1000)


def _item(task: Task) -> Item:
    return task.run_id, task.path


def _member(item: Item) -> str:
    return f"{item[0]}:{item[1].hex()}"
