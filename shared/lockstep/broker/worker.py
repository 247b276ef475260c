"""The worker's side of Redis: claim jobs, send results, say which jobs it holds."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from lockstep.broker.connection import connect
from lockstep.broker.live import CHUNKS_PER_RUN, CHUNKS_SECONDS
from lockstep.broker.names import EXECUTION, Names
from lockstep.broker.presence import PRESENCE_TTL_SECONDS, WorkerInfo
from lockstep.broker.quarantine import Quarantine
from lockstep.broker.scripts import CANCELLED, CLAIM
from lockstep.broker.signing import Signer
from lockstep.records import Chunk, HandedBack, Task, TaskResult
from lockstep.wire import TaskMessage, decode_task, encode_chunk, encode_results, split_job

STATE_CACHE_BYTES = 64 * 1024 * 1024
"""States by reference that a worker keeps: the tasks of a step share one."""

RESULTS_PER_ENTRY = 64
"""Results in one entry of a stream, at most."""

COMPARE_SECONDS = 5.0
"""How often the claims in Redis are compared with the jobs that have arrived here."""

CANCELLED_PER_LOOK = 1000
"""Cancelled runs that a worker learns of in one look; of more, at the next one."""

Answer = TaskResult | HandedBack

log = structlog.get_logger()


class ClaimedJob(msgspec.Struct, frozen=True):
    """A job that this worker holds. `refused` are those of its tasks that cannot be done here, with the reason."""

    job_id: str
    queue: str
    tasks: Sequence[Task]
    refused: Sequence[HandedBack] = ()


class SentEntry(msgspec.Struct, frozen=True):
    """Where a batch of results stands: the partition, and the entry's id in its stream."""

    partition_id: str
    entry_id: bytes


class WorkerLink:
    """What a worker says to Redis and asks of it. Methods may be called from any thread; they raise redis-py's errors.

    With a `signer`, it signs its results, and takes no task that is not signed.
    """

    def __init__(self, url: str, namespace: str, info: WorkerInfo, signer: Signer | None = None) -> None:
        self.names = Names(namespace)
        self._redis = connect(url)
        self._signer = signer
        self._quarantine = Quarantine(self._redis, self.names)
        self.quarantined = 0
        """Jobs and tasks that cannot be used."""
        self._info = info
        self._queues = deque(info.queues)
        self._states: OrderedDict[str, bytes] = OrderedDict()
        self._state_bytes = 0
        self._held: set[str] = set()
        self._next_comparison = 0.0
        self._cancelled_until = 0

    def claim(self, room: int) -> list[ClaimedJob]:
        """As many jobs as there is room for, from each queue in turn; none while workers are suspended."""
        names = self.names
        self._drop_unknown_claims()
        self._queues.rotate(-1)
        claimed: Any = self._redis.eval(
            CLAIM,
            3,
            names.suspended,
            names.claims(self._info.name),
            names.beats,
            names.job_prefix,
            names.queue_prefix,
            names.depth_prefix,
            names.bell_prefix,
            names.refused_prefix,
            names.running_prefix,
            room,
            PRESENCE_TTL_SECONDS,
            EXECUTION,
            self._info.name,
            *self._queues,
        )
        jobs = []
        for job_id, queue, data in claimed:
            if messages := self._readable(queue.decode(), data):
                jobs.append(self._with_states(job_id.decode(), queue.decode(), messages))
            else:
                self.release([(job_id.decode(), queue.decode())])
        self._held.update(job.job_id for job in jobs)
        return jobs

    def _readable(self, queue: str, job: bytes) -> list[TaskMessage]:
        """The tasks of a job that can be used; what cannot is kept aside, and its coordinator will miss it."""
        try:
            tasks = split_job(job)
        except ValueError as error:
            self._set_aside(queue, error, job)
            return []
        messages = []
        for task in tasks:
            try:
                if self._signer is not None:
                    self._signer.check_task(queue, task)
                messages.append(decode_task(task))
            except ValueError as error:
                self._set_aside(queue, error, task)
        return messages

    def _set_aside(self, queue: str, error: ValueError, data: bytes) -> None:
        self._quarantine.add("task", queue, str(error), data)
        self.quarantined += 1

    def _drop_unknown_claims(self) -> None:
        """Give up the claims of jobs that never arrived here, since the answer got lost: nobody else would miss them."""
        if time.monotonic() < self._next_comparison:
            return
        claims: Any = self._redis.hgetall(self.names.claims(self._info.name))
        self.release(
            [(job_id.decode(), json.loads(claim)[0]) for job_id, claim in claims.items() if job_id.decode() not in self._held]
        )
        self._next_comparison = time.monotonic() + COMPARE_SECONDS

    def newly_cancelled(self) -> list[tuple[str, float]]:
        """The runs that were cancelled since the last call, and how many seconds ago."""
        answer: Any = self._redis.eval(CANCELLED, 1, self.names.cancelled, self._cancelled_until, CANCELLED_PER_LOOK)
        now, *pairs = answer
        runs = [(run.decode(), int(at)) for run, at in zip(pairs[::2], pairs[1::2], strict=True)]
        if runs:
            self._cancelled_until = runs[-1][1]
        return [(run_id, (int(now) - at) / 1000) for run_id, at in runs]

    def wait(self, seconds: int) -> None:
        """Wait until a job is put into one of the queues, at most this long. It may be gone when this returns."""
        self._redis.blpop([self.names.bell(queue) for queue in self._queues], timeout=seconds)

    def _with_states(self, job_id: str, queue: str, messages: Sequence[TaskMessage]) -> ClaimedJob:
        tasks, refused = [], []
        for message in messages:
            state = self._state_of(message)
            tasks.append(message.task(state or b""))
            if state is None:
                # The reason is the state's hash, so that the coordinator knows what to upload again.
                refused.append(tasks[-1].handed_back(message.state_sha256 or ""))
        return ClaimedJob(job_id, queue, tasks, refused)

    def _state_of(self, message: TaskMessage) -> bytes | None:
        """The state of a task; None: it is not there, most likely because it travels by reference and has expired."""
        digest = message.state_sha256
        if digest is None:
            return None if message.state is msgspec.UNSET else bytes(message.state)
        if digest in self._states:
            self._states.move_to_end(digest)
            return self._states[digest]
        state: Any = self._redis.get(self.names.state(digest))
        if state is not None and hashlib.sha256(state).hexdigest() != digest:
            state = None  # Somebody has changed it; the coordinator uploads it again.
        if state is not None:
            self._states[digest] = state
            self._state_bytes += len(state)
            while self._state_bytes > STATE_CACHE_BYTES and len(self._states) > 1:
                self._state_bytes -= len(self._states.popitem(last=False)[1])
        return None if state is None else bytes(state)

    def send(
        self, answers: Mapping[str, Sequence[Answer]], finished: Collection[tuple[str, str]]
    ) -> tuple[list[tuple[SentEntry, Sequence[Answer]]], str]:
        """Send results to the owners of their partitions, and give up the claims of `finished` jobs (id and queue), at once.

        Returns where the results stand, and the marker: another one than before says that the server has lost its memory.
        """
        pipe = self._redis.pipeline(transaction=True)
        batches = [
            (partition_id, some[start : start + RESULTS_PER_ENTRY])
            for partition_id, some in answers.items()
            for start in range(0, len(some), RESULTS_PER_ENTRY)
        ]
        for partition_id, some in batches:
            fields: Any = {"results": encode_results(some)}
            if self._signer is not None:
                fields["signed"] = self._signer.sign_results(partition_id, fields["results"])
            pipe.xadd(self.names.results(partition_id), fields)
        self._add_release(pipe, finished)
        pipe.get(self.names.marker)
        replies = pipe.execute()
        self._held.difference_update(job_id for job_id, _ in finished)
        entries = [
            (SentEntry(partition_id, entry_id), some) for (partition_id, some), entry_id in zip(batches, replies, strict=False)
        ]
        return entries, (replies[-1] or b"").decode()

    def stream(self, chunks: Sequence[Chunk]) -> None:
        """Add what nodes have streamed to the streams of their runs."""
        pipe = self._redis.pipeline(transaction=False)
        for chunk in chunks:
            fields: Any = {"chunk": encode_chunk(chunk)}
            pipe.xadd(self.names.live(chunk.run_id), fields, maxlen=CHUNKS_PER_RUN, approximate=True)
        for run_id in {chunk.run_id for chunk in chunks}:
            pipe.expire(self.names.live(run_id), CHUNKS_SECONDS)
        pipe.execute()

    def release(self, jobs: Collection[tuple[str, str]]) -> None:
        """Give up claims of jobs (id and queue)."""
        pipe = self._redis.pipeline(transaction=True)
        self._add_release(pipe, jobs)
        pipe.execute()
        self._held.difference_update(job_id for job_id, _ in jobs)

    def _add_release(self, pipe: Any, jobs: Collection[tuple[str, str]]) -> None:
        if jobs:
            pipe.hdel(self.names.claims(self._info.name), *[job_id for job_id, _ in jobs])
        for job_id, queue in jobs:
            pipe.zrem(self.names.running_prefix + queue, job_id + EXECUTION)

    def first_entries(self, partitions: Iterable[str]) -> tuple[dict[str, bytes | None], str]:
        """The oldest entry that is left in the stream of each partition (older ones are stored), and the marker."""
        names, wanted = self.names, list(partitions)
        pipe = self._redis.pipeline(transaction=True)
        for partition_id in wanted:
            pipe.xrange(names.results(partition_id), count=1)
        pipe.get(names.marker)
        *streams, marker = pipe.execute()
        first = {name: entries[0][0] if entries else None for name, entries in zip(wanted, streams, strict=True)}
        return first, (marker or b"").decode()

    def reclaim(self, jobs: Mapping[str, tuple[str, str]]) -> None:
        """Say again which jobs this worker holds, after the server has lost its memory: queue and tasks of each, by id."""
        if jobs:
            claims: Any = {job_id: f"[{json.dumps(queue)},{tasks}]" for job_id, (queue, tasks) in jobs.items()}
            self._redis.hset(self.names.claims(self._info.name), mapping=claims)
            self._redis.expire(self.names.claims(self._info.name), PRESENCE_TTL_SECONDS)

    def depths(self) -> dict[str, int]:
        """How many tasks each of this worker's queues holds."""
        queues = sorted(self._info.queues)
        depths: Any = self._redis.mget([self.names.depth(queue) for queue in queues])
        return {queue: int(depth or 0) for queue, depth in zip(queues, depths, strict=True)}

    def leave(self) -> None:
        """Take this worker's keys away: it holds nothing any more."""
        self._redis.zrem(self.names.beats, self._info.name)
        self._redis.delete(self.names.claims(self._info.name), self.names.worker(self._info.name))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._redis.close()
