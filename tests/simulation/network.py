"""Redis as coordinators and workers see it, in one thread: queues, claims, streams of results; it may forget everything."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from lockstep.records import HandedBack, Message, Outstanding, Task, TaskResult, Wake

STRIKES = 2
"""How many sweeps in a row miss a task before it is lost, as with the real broker."""
TRUSTED_SECONDS = 4.0
"""How long after it has lost its memory the server is not believed."""

Key = tuple[str, bytes, int]
"""A delivery: run, path, number."""


def key_of(answer: Task | TaskResult | HandedBack | Outstanding) -> Key:
    """Which delivery it is of."""
    return answer.run_id, answer.path, answer.delivery


class Claimed(msgspec.Struct):
    """What a worker has taken, by delivery. Of a dead or silent one, nobody counts on it."""

    name: str
    tasks: dict[Key, Task] = {}
    silent: bool = False


class Network:
    """What all share. `now` is the virtual time in seconds."""

    def __init__(self, queue_depth: int, now: Callable[[], float]) -> None:
        self.queue_depth = queue_depth
        self.now = now
        self.workers: dict[str, Claimed] = {}
        self.offered: Callable[[SimulatedBroker, Task], None] = lambda broker, task: None
        self.memory = 0
        self.forget_everything()

    def forget_everything(self) -> None:
        """FLUSHALL. Workers go on with what they have."""
        self.queues: dict[str, deque[Task]] = defaultdict(deque)
        self.streams: dict[str, dict[int, Message]] = defaultdict(dict)
        self.epochs: dict[str, int] = {}
        self.memory += 1
        self.forgot_at = self.now()
        self._numbers = 0

    def send(self, partition_id: str, message: Message) -> None:
        """Add to a partition's stream."""
        # Numbers go on rising: the real ones are times.
        self._numbers += 1
        self.streams[partition_id][self.memory * 1_000_000 + self._numbers] = message

    def claimed(self) -> dict[Key, Task]:
        """What workers have that are not silent."""
        return {key: task for worker in self.workers.values() if not worker.silent for key, task in worker.tasks.items()}


class Followed(msgspec.Struct):
    """A task that a broker has handed out, or found."""

    delivery: int
    memory: int
    strikes: int = 0


class SimulatedBroker:
    """A `Broker` over the network, for one incarnation of a coordinator. It does what `RedisBroker` does, at once."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.owned: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._read: dict[str, list[int]] = defaultdict(list)
        self._followed: dict[tuple[str, bytes], Followed] = {}
        self._memory = network.memory
        self._trusted_from = 0.0

    def own(self, partitions: Mapping[str, int]) -> None:
        for partition_id in partitions.keys() - self.owned.keys():
            self._positions[partition_id] = 0
        for partition_id in self.owned.keys() - partitions.keys():
            self._positions.pop(partition_id, None)
            self._read.pop(partition_id, None)
        self.owned = dict(partitions)
        for partition_id, epoch in partitions.items():
            self._network.epochs[partition_id] = max(epoch, self._network.epochs.get(partition_id, 0))

    def _is_older(self, partition_id: str) -> bool:
        return self._network.epochs.get(partition_id, 0) > self.owned.get(partition_id, 0)

    def permit(self, tasks: Sequence[Task]) -> list[bool]:
        return [True] * len(tasks)

    def offer(self, tasks: Sequence[Task]) -> list[bool]:
        if self._network.memory != self._memory:
            return [False] * len(tasks)  # The owners are forgotten, too: who may hand out is said at the next sweep.
        full: set[str] = {task.queue for task in tasks if self._is_older(task.partition_id)}
        return [self._put(task, full) for task in tasks]

    def _put(self, task: Task, full: set[str]) -> bool:
        queue = self._network.queues[task.queue]
        if task.queue in full or len(queue) >= self._network.queue_depth:
            full.add(task.queue)
            return False
        self._network.offered(self, task)
        self._network.epochs[task.partition_id] = self.owned.get(task.partition_id, 0)
        queue.append(task)
        self._followed[task.run_id, task.path] = Followed(task.delivery, self._memory)
        return True

    def receive(self, timeout_seconds: float) -> list[Message]:
        messages: list[Message] = []
        for partition_id, position in self._positions.items():
            for number, message in self._network.streams[partition_id].items():
                if number > position:
                    messages.append(message)
                    self._positions[partition_id] = number
                    self._read[partition_id].append(number)
        for message in messages:
            if isinstance(message, TaskResult | HandedBack):
                followed = self._followed.get((message.run_id, message.path))
                if followed is not None and followed.delivery <= message.delivery:
                    del self._followed[message.run_id, message.path]
        return messages

    def acknowledge(self) -> None:
        for partition_id, numbers in self._read.items():
            if not self._is_older(partition_id):
                for number in numbers:
                    self._network.streams[partition_id].pop(number, None)
        self._read.clear()

    def wake(self) -> None:
        for partition_id in list(self.owned)[:1]:
            self._network.send(partition_id, Wake())

    def _look_for_amnesia(self) -> None:
        if self._network.memory != self._memory:
            self._memory = self._network.memory
            self._trusted_from = self._network.forgot_at + TRUSTED_SECONDS
            self._positions = dict.fromkeys(self._positions, 0)
            self.own(self.owned)

    def _there(self) -> set[Key]:
        queued = {key_of(task) for queue in self._network.queues.values() for task in queue}
        return queued | self._network.claimed().keys()

    def outstanding(self, run_ids: Collection[str]) -> list[Outstanding]:
        self._look_for_amnesia()
        newest: dict[tuple[str, bytes], int] = {}
        for run_id, path, delivery in self._there():
            if run_id in run_ids:
                newest[run_id, path] = max(delivery, newest.get((run_id, path), 0))
        for item, delivery in newest.items():
            self._followed[item] = Followed(delivery, self._memory)
        return [Outstanding(run_id=item[0], path=item[1], delivery=delivery) for item, delivery in sorted(newest.items())]

    def lost(self) -> list[Outstanding]:
        self._look_for_amnesia()
        if self._network.now() < self._trusted_from:
            return []
        there, lost = self._there(), []
        for (run_id, path), followed in list(self._followed.items()):
            followed.strikes = 0 if (run_id, path, followed.delivery) in there else followed.strikes + 1
            if followed.strikes >= STRIKES:
                forgotten = followed.memory != self._memory
                lost.append(Outstanding(run_id=run_id, path=path, delivery=followed.delivery, forgotten=forgotten))
                del self._followed[run_id, path]
        return lost

    def set_aside(self, partition_id: str, result: TaskResult, reason: str) -> None:
        raise AssertionError(f"a result of a simulated worker cannot be used: {reason}")

    def withdraw(self, run_id: str) -> list[bytes]:
        return []

    def forget(self, run_id: str) -> None:
        self._followed = {item: followed for item, followed in self._followed.items() if item[0] != run_id}

    def cancel(self, run_id: str, partition_id: str) -> None:
        self.forget(run_id)

    def depth(self, queue: str) -> int:
        return len(self._network.queues[queue])
