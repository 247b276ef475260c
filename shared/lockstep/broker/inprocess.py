"""Queues within one process, with the same bounded depth as the distributed ones."""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence

from lockstep.records import HandedBack, Message, Outstanding, Task, TaskResult, Wake


class InProcessBroker:
    """A `Broker` and the worker's side of it, for a coordinator and a worker that share a process."""

    def __init__(self, queue_depth: int) -> None:
        self._queue_depth = queue_depth
        self._waiting: deque[Task] = deque()
        self._depths: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._permits: dict[tuple[str, str], set[tuple[str, bytes]]] = {}
        self._permitted: dict[tuple[str, bytes], tuple[str, str]] = {}
        self._on_offer: Callable[[], None] = lambda: None
        self._on_cancel: Callable[[str], None] = lambda run_id: None

    def connect(self, on_offer: Callable[[], None], on_cancel: Callable[[str], None]) -> None:
        """Call `on_offer` when there may be new tasks, and `on_cancel` with a run whose results nobody wants any more."""
        self._on_offer = on_offer
        self._on_cancel = on_cancel

    def permit(self, tasks: Sequence[Task]) -> list[bool]:
        with self._lock:
            return [self._permit(task) for task in tasks]

    def _permit(self, task: Task) -> bool:
        assert task.max_concurrent is not None, "only tasks of a node with a limit need a permit"
        node, item = (task.graph_hash, task.place), (task.run_id, task.path)
        held = self._permits.setdefault(node, set())
        if item not in held and len(held) >= task.max_concurrent:
            return False
        held.add(item)
        self._permitted[item] = node
        return True

    def _give_back(self, run_id: str, path: bytes) -> None:
        node = self._permitted.pop((run_id, path), None)
        if node is not None:
            self._permits[node].discard((run_id, path))

    def offer(self, tasks: Sequence[Task]) -> list[bool]:
        full: set[str] = set()
        taken = []
        for task in tasks:
            # Once full, a queue stays so for this call, whatever is taken meanwhile: no task overtakes one that was refused.
            taken.append(self._put(task, is_full=task.queue in full))
            if not taken[-1]:
                full.add(task.queue)
        return taken

    def _put(self, task: Task, *, is_full: bool) -> bool:
        with self._lock:
            if is_full or self._depths[task.queue] >= self._queue_depth:
                self._give_back(task.run_id, task.path)
                return False
            self._depths[task.queue] += 1
            self._waiting.append(task)
        self._on_offer()
        return True

    def take(self) -> Task | None:
        """The task that has waited longest, now out of its queue; None: all queues are empty."""
        with self._lock:
            if not self._waiting:
                return None
            task = self._waiting.popleft()
            self._depths[task.queue] -= 1
            return task

    def deliver(self, result: TaskResult | HandedBack) -> None:
        """Send an answer to the coordinator."""
        with self._lock:
            self._give_back(result.run_id, result.path)
        self._messages.put(result)

    def receive(self, timeout_seconds: float) -> list[Message]:
        messages: list[Message] = []
        try:
            messages.append(self._messages.get(timeout=max(timeout_seconds, 0.0)))
            while True:
                messages.append(self._messages.get_nowait())
        except queue.Empty:
            return messages

    def own(self, partitions: Mapping[str, int]) -> None:
        """Nothing: there is one coordinator."""

    def acknowledge(self) -> None:
        """Nothing: a message that was received is gone."""

    def wake(self) -> None:
        self._messages.put(Wake())

    def outstanding(self, run_ids: Collection[str]) -> list[Outstanding]:
        return []  # Whoever owned these runs before was another process; its queues went with it.

    def lost(self) -> list[Outstanding]:
        return []  # Nothing gets lost within a process that lives.

    def close(self) -> None:
        """Nothing: there are no connections."""

    def forget(self, run_id: str) -> None:
        """Nothing: tasks are not followed."""

    def set_aside(self, partition_id: str, result: TaskResult, reason: str) -> None:
        raise AssertionError(f"a result of this very process cannot be used: {reason}")

    def withdraw(self, run_id: str) -> list[bytes]:
        with self._lock:
            withdrawn = [task for task in self._waiting if task.run_id == run_id]
            self._waiting = deque(task for task in self._waiting if task.run_id != run_id)
            self._depths.subtract(task.queue for task in withdrawn)
            for task in withdrawn:
                self._give_back(task.run_id, task.path)
            return [task.path for task in withdrawn]

    def cancel(self, run_id: str, partition_id: str) -> None:
        self.withdraw(run_id)
        self._on_cancel(run_id)

    def depth(self, queue: str) -> int:
        with self._lock:
            return self._depths[queue]
