"""Which workers are alive, what they say of themselves, and which jobs they hold."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import redis

from lockstep.broker.names import EXECUTION, Names

BEAT_SECONDS = 2.0
"""How often a worker says that it is alive."""

BEATS_TO_MISS = 3
"""How many beats a worker may miss before its tasks are given to others."""

PRESENCE_TTL_SECONDS = 60
"""How long the keys of a silent worker stay."""


_TASKS = msgspec.json.Decoder(list[tuple[str, str, int]])
_CLAIM = msgspec.json.Decoder(tuple[str, msgspec.Raw])
"""A claim as the claim script writes it: the job's queue, and what it is for."""


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself. `graphs` are the hashes of the graphs that it has loaded."""

    name: str
    host: str
    pid: int
    slots: int
    queues: tuple[str, ...]
    graphs: tuple[str, ...]


class Presence(msgspec.Struct):
    """The workers as they were at one moment. `tasks` holds what each claimed job of a living worker is for, as JSON."""

    workers: list[WorkerInfo] = []
    tasks: dict[str, bytes] = {}
    claimed_by: dict[str, str] = {}
    jobs_of_dead: set[str] = set()

    @property
    def jobs(self) -> set[str]:
        """The jobs that living workers hold."""
        return set(self.tasks)

    def slots(self, queue: str) -> int:
        """How many tasks of a queue can run at a time."""
        return sum(worker.slots for worker in self.workers if queue in worker.queues)


def tasks_of(described: bytes | None) -> list[tuple[str, bytes, int]]:
    """The tasks that a job is for: run, path and delivery of each. None if that cannot be read: then they will be missed."""
    try:
        return [(run_id, bytes.fromhex(path), delivery) for run_id, path, delivery in _TASKS.decode(described or b"[]")]
    except ValueError:
        return []


def read_presence(client: redis.Redis, names: Names) -> Presence:
    """The workers of a namespace, as two exchanges with the server find them. Clears away what dead ones leave behind."""
    beats: Any = client.zrange(names.beats, 0, -1, withscores=True)
    if not beats:
        return Presence()
    pipe = client.pipeline(transaction=False)
    pipe.time()
    for name, _ in beats:
        pipe.get(names.worker(name.decode()))
        pipe.hgetall(names.claims(name.decode()))
    (seconds, micros), *answers = pipe.execute()
    now = seconds * 1000 + micros / 1000
    presence = Presence()
    for (name, beat), info, claims in zip(beats, answers[::2], answers[1::2], strict=True):
        alive = now - beat <= BEAT_SECONDS * BEATS_TO_MISS * 1000
        if alive and info is not None:
            # One that cannot be read is no worker of ours.
            with suppress(ValueError):
                presence.workers.append(msgspec.json.decode(info, type=WorkerInfo))
        for job_id, claim in claims.items():
            try:
                queue, tasks = _CLAIM.decode(claim)
            except ValueError:
                queue, tasks = "", msgspec.Raw(b"[]")
            if alive:
                presence.tasks[job_id.decode()] = bytes(tasks)
                presence.claimed_by[job_id.decode()] = name.decode()
            else:
                presence.jobs_of_dead.add(job_id.decode())
                pipe.zrem(names.running_prefix + queue, job_id.decode() + EXECUTION)
        if now - beat > PRESENCE_TTL_SECONDS * 1000:
            pipe.zrem(names.beats, name)
    pipe.execute()
    return presence
