"""Permits: how many tasks of a node are handed out at a time, counted in Redis over all coordinators.

A permit is a lease. Its coordinator renews it; of one that has died, it ends by itself, or goes to the next owner of the run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import redis

from lockstep.broker.names import Names
from lockstep.broker.scripts import GIVE_BACK, PERMIT, RENEW
from lockstep.records import Task

PERMIT_SECONDS = 30.0
"""How long a permit holds without being renewed. A dead coordinator's runs have another owner before, who renews theirs."""

PERMIT_MS = int(PERMIT_SECONDS * 1000)

ITEMS_PER_CALL = 1000
"""Items in one call of a script: Lua's stack is bounded."""

Item = tuple[str, bytes]


class Held(msgspec.Struct):
    """A permit, as far as this side knows: of which node, and until when, by time.monotonic, it can still be there."""

    node: str
    until: float


class Permits:
    """The permits that one coordinator holds. Methods raise redis-py's errors."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._redis = client
        self._names = names
        self._held: dict[Item, Held] = {}
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
            pipe.eval(PERMIT, 2, *self._keys(node), limit, PERMIT_MS, stream, *[_member(_item(task)) for task in some])
        permitted: set[Item] = set()
        for (node, some), verdicts in zip(by_node.items(), pipe.execute(), strict=True):
            for task, verdict in zip(some, verdicts, strict=True):
                if verdict:
                    self._held[_item(task)] = Held(node, time.monotonic() + PERMIT_SECONDS)
                    permitted.add(_item(task))
        return [_item(task) in permitted for task in tasks]

    def give_back(self, items: Iterable[Item]) -> None:
        """These are out no more; said at the next `flush`. Those that need no permit are left alone."""
        if self._held:
            self._given_back += [item for item in items if item in self._held]

    def flush(self) -> None:
        """Give back what is to be given back."""
        if self._given_back:
            self._for_each_node(self._given_back, lambda pipe, node, some: pipe.eval(GIVE_BACK, 2, *self._keys(node), *some))
            for item in self._given_back:
                self._held.pop(item, None)
            self._given_back.clear()

    def renew(self, is_out: Callable[[Item], bool]) -> None:
        """Hold on to the permits of what is out. The others end by themselves, or when their nodes, told to end, do so."""
        self.flush()
        now = time.monotonic()
        self._held = {item: held for item, held in self._held.items() if held.until > now or is_out(item)}
        out = [item for item in self._held if is_out(item)]
        if out:
            self._for_each_node(out, lambda pipe, node, some: pipe.eval(RENEW, 1, self._keys(node)[0], PERMIT_MS, *some))
        for item in out:
            self._held[item].until = now + PERMIT_SECONDS

    def _for_each_node(self, items: Iterable[Item], say: Callable[[Any, str, list[str]], None]) -> None:
        by_node: dict[str, list[str]] = defaultdict(list)
        for item in items:
            if item in self._held:
                by_node[self._held[item].node].append(_member(item))
        pipe = self._redis.pipeline(transaction=False)
        for node, some in by_node.items():
            for first in range(0, len(some), ITEMS_PER_CALL):
                say(pipe, node, some[first : first + ITEMS_PER_CALL])
        pipe.execute()

    def _keys(self, node: str) -> tuple[str, str]:
        return self._names.permits(node), self._names.permits_waited_for(node)


def _item(task: Task) -> Item:
    return task.run_id, task.path


def _member(item: Item) -> str:
    return f"{item[0]}:{item[1].hex()}"
