"""The jobs that a worker process holds: which of their tasks wait for a slot, and which are not answered yet."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from lockstep.broker.worker import ClaimedJob
from lockstep.records import HandedBack, Task, TaskResult


class HeldJob(msgspec.Struct):
    """A job and those of its tasks that are not answered, by (run_id, path, delivery)."""

    job_id: str
    queue: str
    open: dict[tuple[str, bytes, int], Task]


class Settled(msgspec.Struct, frozen=True):
    """Where an answer goes, and the jobs (id and queue) of which nothing is left to answer."""

    partition_id: str
    finished: Sequence[tuple[str, str]]


class Claims:
    """`free` says how many slots are free. Methods may be called from any thread."""

    def __init__(self, free: Callable[[], int]) -> None:
        self._free = free
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._waiting_since = 0.0
        self._jobs: dict[str, HeldJob] = {}
        self._jobs_with: dict[tuple[str, bytes, int], list[HeldJob]] = {}

    def add(self, job: ClaimedJob, refused: Sequence[HandedBack]) -> None:
        """Hold a job; its tasks wait for a slot, but for those that are refused.

        Whoever took this worker for dead, and then lost its memory, may hand out once more what it has: one answer will do.
        """
        held = HeldJob(job.job_id, job.queue, {_key(task): task for task in job.tasks})
        with self._changed:
            unwanted = {_key(task) for task in refused} | (held.open.keys() & self._jobs_with.keys())
            self._jobs[job.job_id] = held
            self._waiting.extend(task for key, task in held.open.items() if key not in unwanted)
            for key in held.open:
                self._jobs_with.setdefault(key, []).append(held)
            self._waiting_since = time.monotonic()

    def take(self) -> Task | None:
        """The next task that waits for a slot. The executor calls this whenever one is free."""
        with self._changed:
            if self._waiting:
                self._waiting_since = time.monotonic()
                return self._waiting.popleft()
            self._changed.notify_all()
            return None

    def wait_for_room(self, seconds: float) -> int:
        """How many slots are free, once no task waits for one; 0 if that takes longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._free() > 0, seconds)
            return 0 if self._waiting else self._free()

    def give_up_waiting(self, after_seconds: float, reason: str) -> list[HandedBack]:
        """Take back the tasks that wait for a slot, if none has got one for so long; others may have slots."""
        with self._changed:
            if not self._waiting or time.monotonic() - self._waiting_since < after_seconds:
                return []
            tasks = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        return [task.handed_back(reason) for task in tasks]

    def settle(self, answer: TaskResult | HandedBack) -> Settled | None:
        """A task is answered; None: it was before."""
        key = _key(answer)
        with self._changed:
            holding = self._jobs_with.pop(key, None)
            if holding is None:
                return None
            tasks = [held.open.pop(key) for held in holding]
            finished = [(held.job_id, held.queue) for held in holding if not held.open]
            for job_id, _ in finished:
                del self._jobs[job_id]
                self._changed.notify_all()
            return Settled(tasks[0].partition_id, finished)

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait until every task is answered; False: it takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, seconds)

    def unanswered(self, reason: str) -> list[HandedBack]:
        """All tasks without an answer, as handed back."""
        with self._changed:
            return [task.handed_back(reason) for held in self._jobs.values() for task in held.open.values()]

    def described(self) -> dict[str, tuple[str, str]]:
        """The queue and the unanswered tasks of each job, as the claims in Redis have them."""
        with self._changed:
            return {job_id: (held.queue, _identities(list(held.open))) for job_id, held in self._jobs.items()}

    def __len__(self) -> int:
        return len(self._jobs)


def _key(task: Task | TaskResult | HandedBack) -> tuple[str, bytes, int]:
    return task.run_id, task.path, task.delivery


def _identities(keys: Sequence[tuple[str, bytes, int]]) -> str:
    return json.dumps([[run_id, path.hex(), delivery] for run_id, path, delivery in keys])
