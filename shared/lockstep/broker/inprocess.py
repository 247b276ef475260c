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
        self._on_offer: Callable[[], None] = lambda: None
        self._on_cancel: Callable[[str], None] = lambda run_id: None

    def connect(self, on_offer: Callable[[], None], on_cancel: Callable[[str], None]) -> None:
        """Call `on_offer` when there may be new tasks, and `on_cancel` with a run whose results nobody wants any more."""
        self._on_offer = on_offer
        self._on_cancel = on_cancel

    def offer(self, tasks: Sequence[Task]) -> list[bool]:
        full: set[str] = set()
        taken = []
        for task in tasks:
            # Once full, a queue stays so for this call, whatever is taken meanwhile: no task overtakes one that was refused.
            taken.append(task.queue not in full and self._put(task))
            if not taken[-1]:
                full.add(task.queue)
        return taken

    def _put(self, task: Task) -> bool:
        with self._lock:
            if self._depths[task.queue] >= self._queue_depth:
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
            return [task.path for task in withdrawn]

    def cancel(self, run_id: str, partition_id: str) -> None:
        self.withdraw(run_id)
        self._on_cancel(run_id)

    def depth(self, queue: str) -> int:
        with self._lock:
            return self._depths[queue]
