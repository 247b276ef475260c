"""What the broker suites share: tasks, the worker's side of Redis, and `RedisWorld`, a namespace that a test has to itself."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from typing import Any, TypeVar

import redis

from lockstep.broker.beat import say_alive
from lockstep.broker.names import Names
from lockstep.broker.presence import WorkerInfo
from lockstep.broker.redis import RedisBroker
from lockstep.broker.worker import ClaimedJob, WorkerLink
from lockstep.records import HandedBack, Message, Outstanding, Task, TaskResult

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""After this long a wait has failed. What passes never waits for it."""
SILENT_MS = 6001
"""After this long without a beat a worker is dead: 3 beats of 2 s. Written out, for it is a promise."""
TRUSTED_MS = 4000
"""After this long the server's memory is old enough: 2 beats."""
LARGE_STATE = b'{"text":"%s"}' % (b"x" * 5000)


def path_of(name: str) -> bytes:
    return sha256(name.encode()).digest()


def task(name: str, queue: str = "default", **fields: Any) -> Task:
    """A task that `name_of` knows again."""
    defaults: dict[str, Any] = {
        "run_id": "run-1",
        "partition_id": "p",
        "graph_hash": "hash-1",
        "step_id": 1,
        "node_id": "node",
        "path": path_of(name),
        "order_key": bytes(8),
        "scheduled_step": 0,
        "attempt": 1,
        "delivery": 1,
        "run_seed": 7,
        "timeout_seconds": 30.0,
        "max_payload_bytes": 4096,
        "state": b'{"n":1}',
        "payload": json.dumps(name).encode(),
    }
    return Task(queue=queue, **(defaults | fields))


def tasks(prefix: str, count: int, queue: str = "default", **fields: Any) -> list[Task]:
    return [task(f"{prefix}{n}", queue, **fields) for n in range(count)]


def name_of(one: Task) -> str:
    name: str = json.loads(one.payload or b"null")
    return name


def names_of(some: Iterable[Task]) -> list[str]:
    return [name_of(one) for one in some]


def result(one: Task, latency_ms: float = 50.0) -> TaskResult:
    """What a worker answers. The outcome tells whose it is."""
    return TaskResult(
        run_id=one.run_id, path=one.path, delivery=one.delivery, outcome=one.payload, latency_ms=latency_ms, worker="w"
    )


def answers_in(messages: Iterable[Message]) -> list[str]:
    """The names of the tasks whose results these are, in order."""
    return [json.loads(message.outcome or b"null") for message in messages if isinstance(message, TaskResult)]


def outstanding(one: Task) -> Outstanding:
    return Outstanding(run_id=one.run_id, path=one.path, delivery=one.delivery)


def by_path(some: Iterable[Outstanding]) -> list[Outstanding]:
    return sorted(some, key=lambda each: each.path)


class InThread:
    """A call that goes on beside the test."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._answers: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(call()), daemon=True)
        self._thread.start()

    def answer(self) -> Any:
        """What it returned; fails instead of hanging."""
        self._thread.join(PATIENCE_SECONDS)
        assert self._answers, "the call does not return"
        return self._answers[0]


class Worker:
    """A worker without slots or threads: it takes, answers and beats when it is told to."""

    def __init__(self, world: RedisWorld, info: WorkerInfo) -> None:
        self.info = info
        self._world = world
        self.link = WorkerLink(world.url, world.namespace, info)

    def beat(self) -> None:
        say_alive(self._world.redis, self._world.names, self.info)

    def fall_silent(self) -> None:
        """As if the last beat had been too long ago."""
        self._world.redis.zincrby(self._world.names.beats, -SILENT_MS, self.info.name)

    def claim(self, room: int = 1) -> list[ClaimedJob]:
        return self.link.claim(room)

    def take(self, room: int = 1) -> list[Task]:
        """The tasks of the jobs that it claims."""
        return [one for job in self.claim(room) for one in job.tasks]

    def take_all(self) -> list[Task]:
        """Everything in the queues, job after job."""
        taken: list[Task] = []
        while some := self.take():
            taken += some
        return taken

    def send(self, *answers: TaskResult | HandedBack, partition: str = "p", jobs: Collection[ClaimedJob] = ()) -> None:
        """Send answers, and give up the claims of jobs."""
        self.link.send({partition: list(answers)} if answers else {}, [(job.job_id, job.queue) for job in jobs])

    def work(self, jobs: Iterable[ClaimedJob], latency_ms: float = 50.0) -> None:
        """Answer all tasks of jobs."""
        for job in jobs:
            self.send(*[result(one, latency_ms) for one in job.tasks], jobs=[job])

    def leave(self) -> None:
        self.link.leave()


class RedisWorld:
    """A namespace of Redis: brokers and workers in it, and `redis`, a connection that belongs to none of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.names = Names(self.namespace)
        self._stack = ExitStack()
        self.redis: Any = self._stack.enter_context(redis.Redis.from_url(url))

    def __enter__(self) -> RedisWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def broker(self, queue_depth: int = 1024, owns: Mapping[str, int] | None = None) -> RedisBroker:
        """A coordinator's broker, which owns the partitions with these epochs."""
        broker = self._stack.enter_context(closing(RedisBroker(self.url, self.namespace, queue_depth)))
        broker.own({"p": 1} if owns is None else owns)
        return broker

    def worker(self, name: str = "w", *queues: str, slots: int = 1, beats: bool = True) -> Worker:
        """A worker, by default of the queue "default", that has beaten once."""
        info = WorkerInfo(name=name, host="here", pid=1, slots=slots, queues=queues or ("default",), graphs=("hash-1",))
        worker = Worker(self, info)
        self._stack.callback(worker.link.close)
        if beats:
            worker.beat()
        return worker

    def settled(self, broker: RedisBroker, *others: RedisBroker) -> RedisBroker:
        """The same broker, once it and the others believe what they see: the server's memory is old enough."""
        self.forget_everything(ago_ms=TRUSTED_MS, keys=False)
        assert [each.lost() for each in (broker, *others)] == [[] for _ in (broker, *others)]
        return broker

    def forget_everything(self, ago_ms: float = 0.0, *, keys: bool = True) -> None:
        """As if the server had lost its memory so long ago, and somebody had set the marker anew at once."""
        if keys:
            self.redis.flushall()
        seconds, micros = self.redis.time()
        self.redis.set(self.names.marker, f"{uuid.uuid4().hex}:{seconds * 1000 + micros // 1000 - int(ago_ms)}")

    def job_ids(self, queue: str = "default") -> list[str]:
        """The ids in a queue's list, first to be claimed first."""
        return [job_id.decode() for job_id in self.redis.lrange(self.names.queue(queue), 0, -1)]

    def sizes(self, queue: str = "default") -> list[int]:
        """How many tasks each job in a queue holds."""
        return [len(json.loads(self.redis.hget(self.names.job(job_id), "tasks"))) for job_id in self.job_ids(queue)]

    def keys(self, *, lasting: bool = False) -> set[str]:
        """All keys of the namespace, without it, or only those that do not expire."""
        keys = [key for key in self.redis.scan_iter(f"{self.namespace}:*") if not lasting or self.redis.ttl(key) == -1]
        return {key.decode().removeprefix(f"{self.namespace}:") for key in keys}

    def entries(self, partition: str = "p") -> int:
        """How many entries a partition's stream holds."""
        count: int = self.redis.xlen(self.names.results(partition))
        return count


def in_turn(some: Sequence[T], others: Sequence[T]) -> list[T]:
    """Two lists of one length as one: a first, a first, a second, a second, ..."""
    return [one for pair in zip(some, others, strict=True) for one in pair]
