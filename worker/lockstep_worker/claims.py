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


class HeldJob(msgspec.Struct, eq=False):
    """A job and those of its tasks that are not answered, by (run_id, path, delivery).

    `waiting` are those that have no slot yet. They take one after the other, since tasks share a job only if they are short;
    the last one did at `taken_at`.
    """

    job_id: str
    queue: str
    open: dict[tuple[str, bytes, int], Task]
    waiting: deque[Task]
    taken_at: float


class Settled(msgspec.Struct, frozen=True):
    """Where an answer goes, and the jobs (id and queue) of which nothing is left to answer."""

    partition_id: str
    finished: Sequence[tuple[str, str]]


class Claims:
    """`free` says how many slots are free. Methods may be called from any thread."""

    def __init__(self, free: Callable[[], int]) -> None:
        self._free = free
        self._changed = threading.Condition()
        self._ready: deque[HeldJob] = deque()
        self._jobs: dict[str, HeldJob] = {}
        self._jobs_with: dict[tuple[str, bytes, int], list[HeldJob]] = {}

    def add(self, job: ClaimedJob, refused: Sequence[HandedBack]) -> None:
        """Hold a job; its tasks wait for a slot, but for those that are refused.

        Whoever took this worker for dead, and then lost its memory, may hand out once more what it has: one answer will do.
        """
        held = HeldJob(job.job_id, job.queue, {_key(task): task for task in job.tasks}, deque(), time.monotonic())
        with self._changed:
            unwanted = {_key(task) for task in refused} | (held.open.keys() & self._jobs_with.keys())
            self._jobs[job.job_id] = held
            held.waiting.extend(task for key, task in held.open.items() if key not in unwanted)
            for key in held.open:
                self._jobs_with.setdefault(key, []).append(held)
            if held.waiting:
                self._ready.append(held)

    def take(self) -> Task | None:
        """The next task that waits for a slot. The executor calls this whenever one is free."""
        with self._changed:
            if self._ready:
                held = self._ready.popleft()
                held.taken_at = time.monotonic()
                return held.waiting.popleft()
            self._changed.notify_all()
            return None

    def wait_for_room(self, seconds: float) -> int:
        """How many slots are free, once no job waits for one; 0 if that takes longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._ready and self._free() > 0, seconds)
            return 0 if self._ready else self._free()

    def give_up_waiting(self, after_seconds: float, reason: str) -> list[HandedBack]:
        """Take back what waits in jobs none of whose tasks has got a slot for so long; others may have slots."""
        now = time.monotonic()
        tasks: list[Task] = []
        with self._changed:
            for held in self._jobs.values():
                if held.waiting and now - held.taken_at >= after_seconds:
                    tasks += held.waiting
                    held.waiting.clear()
            self._ready = deque(held for held in self._ready if held.waiting)
            self._changed.notify_all()
        return [task.handed_back(reason) for task in tasks]

    def give_up_run(self, run_id: str, reason: str) -> list[HandedBack]:
        """Take back what waits of a run."""
        with self._changed:
            tasks = [task for held in self._jobs.values() for task in held.waiting if task.run_id == run_id]
            for held in self._jobs.values():
                held.waiting = deque(task for task in held.waiting if task.run_id != run_id)
            self._ready = deque(held for held in self._ready if held.waiting)
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
            # The thread that has just answered takes the next one of the same job.
            self._ready.extendleft(held for held in holding if held.waiting and held not in self._ready)
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
