"""`RedisBroker`: the `Broker` contract over Redis, with queues that RQ's tools can read.

Redis may forget everything at any moment. What was handed out and is nowhere any more is found by comparing what this broker
knows with the queues and with the claims of workers that are alive.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from lockstep.broker.connection import check_server, connect, translated
from lockstep.broker.names import Names, rq_moment, rq_now
from lockstep.broker.permits import Permits
from lockstep.broker.presence import BEAT_SECONDS, Presence, read_presence, tasks_of
from lockstep.broker.quarantine import Quarantine
from lockstep.broker.scripts import ACKNOWLEDGE, CANCEL, ENQUEUE, MARK, OWN, RECOUNT
from lockstep.broker.signing import Signer
from lockstep.records import HandedBack, Message, Outstanding, Task, TaskResult, Unreadable, Wake
from lockstep.wire import JOB_HEAD, JOB_TAIL, decode_results, encode_results, encode_task

BATCH_TASKS = 64
"""Tasks in one job, at most."""

SHORT_NODE_MS = 10.0
"""Nodes whose mean is below this travel in batches; for others a job of their own costs little."""

MEAN_WEIGHT = 0.2
"""How much the newest latency moves a node's mean."""

STATE_INLINE_BYTES = 4096
"""A state above this travels by reference: once for all tasks of a step."""

STATE_TTL_SECONDS = 3600
"""How long a state by reference can be asked for; it is uploaded again when half of that has passed."""

STATES_REMEMBERED = 4096
"""States of which this broker remembers that they are uploaded."""

JOB_TTL_SECONDS = 24 * 3600
"""How long a job waits in its queue; then it is handed out anew."""

ENTRIES_PER_READ = 256
"""Entries of one partition's stream that are read at a time."""

GATHER_SECONDS = 0.003
GATHER_SHARE = 4
"""When less than one in so many of the tasks that are out has been answered, more answers are waited for, for a moment: a
transaction costs as much for one as for many."""

CANCELLED_SECONDS = 60.0
"""How long workers can learn that a run is cancelled. They look every second; one that cannot for so long lets nodes run on."""

STRIKES = 2
"""How many sweeps in a row miss a task before it is lost: between two reads it may just have been on its way."""

log = structlog.get_logger()


class Dispatched(msgspec.Struct):
    """A task that was handed out and is not answered."""

    delivery: int
    job_id: str
    marker: str
    node: tuple[str, str] | None = None
    strikes: int = 0


class RedisBroker:
    """A `Broker` on the Redis at `url`. One thread uses it; `wake` and `depth` may be called from any.

    With a `signer`, it signs its tasks, and takes no result that is not signed.
    """

    def __init__(self, url: str, namespace: str, queue_depth: int, signer: Signer | None = None) -> None:
        self._url = url
        self._names = Names(namespace)
        self._queue_depth = queue_depth
        self._redis = connect(url)
        check_server(self._redis, url)
        self._signer = signer
        self._quarantine = Quarantine(self._redis, self._names)
        self._permits = Permits(self._redis, self._names)
        self._incarnation = uuid.uuid4().hex
        self._batches = itertools.count(1)
        self._owned: dict[str, int] = {}
        self._positions: dict[str, bytes] = {}
        self._read: dict[str, list[bytes]] = defaultdict(list)
        self._dispatched: dict[str, dict[bytes, Dispatched]] = {}
        self._means: dict[tuple[str, str], float] = {}
        self._uploaded: OrderedDict[str, float] = OrderedDict()
        self._presence = Presence()
        self._marker = ""
        self._trusted_from = 0.0
        self._woken = threading.Event()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with translated(self._url):
            yield

    def own(self, partitions: Mapping[str, int]) -> None:
        for partition_id in partitions.keys() - self._owned.keys():
            self._positions[partition_id] = b"0"
        for partition_id in self._owned.keys() - partitions.keys():
            self._positions.pop(partition_id, None)
            self._read.pop(partition_id, None)
        self._owned = dict(partitions)
        with self._translated():
            # Now, not with the first task: the owner before must not delete what it has read since.
            self._say_what_is_owned()

    def _say_what_is_owned(self) -> None:
        if self._owned:
            self._redis.eval(OWN, 1, self._names.epochs, *[value for pair in self._owned.items() for value in pair])

    def permit(self, tasks: Sequence[Task]) -> list[bool]:
        with self._translated():
            return self._permits.take(tasks)

    def offer(self, tasks: Sequence[Task]) -> list[bool]:
        by_queue: dict[str, list[Task]] = {}
        for task in tasks:
            by_queue.setdefault(task.queue, []).append(task)
        with self._translated():
            if not self._marker:
                self._look_for_amnesia()
            pipe = self._redis.pipeline(transaction=False)
            digests = {state: self._add_upload(pipe, state) for state in {task.state for task in tasks}}
            uploads = len(pipe)
            for queue, some in by_queue.items():
                encoded: list[bytes | str] = []
                for task in some:
                    alone = "" if self._travels_in_batch(task) else "1"
                    body = encode_task(task, digests[task.state])
                    body = body if self._signer is None else self._signer.sign_task(queue, body)
                    encoded += (body, _identity(task), alone)
                self._add_enqueue(pipe, queue, some, encoded)
            answers: list[list[bytes] | None] = self._answers(pipe)[uploads:]
        accepted: dict[str, int] = {}
        for (queue, some), jobs in zip(by_queue.items(), answers, strict=True):
            accepted[queue] = self._note(some, jobs or [])
        verdicts = []
        for task in tasks:
            accepted[task.queue] -= 1
            verdicts.append(accepted[task.queue] >= 0)
        self._permits.give_back((task.run_id, task.path) for task, taken in zip(tasks, verdicts, strict=True) if not taken)
        return verdicts

    def _answers(self, pipe: Any) -> list[Any]:
        """The answers to a pipeline; None for what the server has no memory for, so it is to be tried again."""
        answers = pipe.execute(raise_on_error=False)
        errors = [answer for answer in answers if isinstance(answer, RedisError)]
        for error in errors:
            if not isinstance(error, OutOfMemoryError):
                raise error
        if errors:
            log.warning("Redis has no memory left; tasks wait", error=str(errors[0]))
            self._uploaded.clear()
        return [None if isinstance(answer, RedisError) else answer for answer in answers]

    def _add_enqueue(self, pipe: Any, queue: str, tasks: Sequence[Task], encoded: Sequence[bytes | str]) -> None:
        names = self._names
        chunk = self._chunk(queue, tasks)
        partitions = sorted({task.partition_id for task in tasks})
        key = names.queue(queue)
        keys = (key, names.queues, names.depth(queue), names.bell(queue), names.epochs, names.refused(queue), names.marker)
        pipe.eval(
            ENQUEUE,
            len(keys),
            *keys,
            names.job_prefix,
            key,
            queue,
            self._queue_depth,
            chunk,
            f"{self._incarnation}-{next(self._batches)}",
            rq_now(),
            JOB_TTL_SECONDS,
            names.results(tasks[0].partition_id),
            JOB_HEAD,
            JOB_TAIL,
            len(partitions),
            *partitions,
            *[self._owned.get(partition_id, 0) for partition_id in partitions],
            self._marker,
            *encoded,
        )

    def _chunk(self, queue: str, tasks: Sequence[Task]) -> int:
        """How many tasks share a job: so many that all slots get some, but of very short ones as many as make a job short."""
        slots = self._presence.slots(queue)
        if not slots:
            return 1
        mean = max(self._means.get((task.graph_hash, task.node_id), SHORT_NODE_MS) for task in tasks)
        return min(BATCH_TASKS, max(1, -(-len(tasks) // slots), int(SHORT_NODE_MS / max(mean, 0.01))))

    def _note(self, tasks: Sequence[Task], jobs: Sequence[bytes]) -> int:
        """Remember which task is in which job; how many tasks the jobs hold."""
        taken = 0
        for job in jobs:
            job_id = job.decode()
            size = int(job_id.rpartition("-")[2])
            for task in tasks[taken : taken + size]:
                node = (task.graph_hash, task.node_id)
                self._dispatched.setdefault(task.run_id, {})[task.path] = Dispatched(task.delivery, job_id, self._marker, node)
            taken += size
        return taken

    def _add_upload(self, pipe: Any, state: bytes) -> str | None:
        """The hash of a large state, which is uploaded if need be; None for a small one, which travels with its task."""
        if len(state) <= STATE_INLINE_BYTES:
            return None
        digest = hashlib.sha256(state).hexdigest()
        now = time.monotonic()
        if self._uploaded.get(digest, 0.0) <= now:
            pipe.set(self._names.state(digest), state, ex=STATE_TTL_SECONDS)
            self._uploaded[digest] = now + STATE_TTL_SECONDS / 2
            self._uploaded.move_to_end(digest)
            if len(self._uploaded) > STATES_REMEMBERED:
                self._uploaded.popitem(last=False)
        return digest

    def _travels_in_batch(self, task: Task) -> bool:
        """Whether a task may share a job: its node is known to be short, and it was not handed out before."""
        return task.delivery == 1 and self._means.get((task.graph_hash, task.node_id), SHORT_NODE_MS) < SHORT_NODE_MS

    def receive(self, timeout_seconds: float) -> list[Message]:
        if not self._owned:
            self._woken.wait(timeout_seconds)
            self._woken.clear()
            return []
        block = max(1, int(min(timeout_seconds, BEAT_SECONDS) * 1000)) if timeout_seconds > 0 else None
        messages = self._read_streams(block)
        if messages and block is not None and sum(map(len, self._dispatched.values())) > GATHER_SHARE * len(messages):
            # Many more are on their way. Those of the next moment share a transaction with these.
            time.sleep(GATHER_SECONDS)
            messages += self._read_streams(None)
        return messages

    def _read_streams(self, block: int | None) -> list[Message]:
        """What is in the streams of the owned partitions and was not read before; waits for it at most `block` ms."""
        streams: Any = {self._names.results(partition_id): position for partition_id, position in self._positions.items()}
        with self._translated():
            streams_read: Any = self._redis.xread(streams, count=ENTRIES_PER_READ, block=block)
        prefix = len(self._names.results_prefix)
        messages: list[Message] = []
        for stream, entries in streams_read:
            partition_id = stream.decode()[prefix:]
            for entry_id, fields in entries:
                messages += self._decoded(partition_id, fields)
                self._positions[partition_id] = entry_id
                self._read[partition_id].append(entry_id)
        return messages

    def _decoded(self, partition_id: str, fields: Mapping[bytes, bytes]) -> list[Message]:
        data = fields.get(b"results")
        if data is None:
            return [Wake(look=True)]
        try:
            if self._signer is not None:
                self._signer.check_results(partition_id, data, fields.get(b"signed"))
            results = decode_results(data)
        except ValueError as error:
            with self._translated():
                self._quarantine.add("result", partition_id, str(error), data, fields.get(b"signed", b""))
            return [Unreadable()]
        for result in results:
            self._settle(result)
        return list(results)

    def _settle(self, result: TaskResult | HandedBack) -> None:
        """An answer has come: forget the task, and learn how long its node takes."""
        task = self._dispatched.get(result.run_id, {}).get(result.path)
        if task is None:
            self._permits.give_back([(result.run_id, result.path)])  # Its run is followed no more, but it has ended only now.
        elif task.delivery <= result.delivery:
            self._forget(result.run_id, result.path)
            if task.node is not None and isinstance(result, TaskResult):
                mean = self._means.get(task.node, result.latency_ms)
                self._means[task.node] = mean + MEAN_WEIGHT * (result.latency_ms - mean)
        if isinstance(result, HandedBack):
            self._uploaded.pop(result.reason, None)  # A reason that is the hash of a state: it is not there any more.

    def acknowledge(self) -> None:
        with self._translated():
            self._permits.flush()
        read = {partition_id: entries for partition_id, entries in self._read.items() if entries}
        if not read:
            return
        args: list[Any] = [self._names.results_prefix]
        for partition_id, entries in read.items():
            args += (partition_id, self._owned[partition_id], len(entries), *entries)
        with self._translated():
            self._redis.eval(ACKNOWLEDGE, 1, self._names.epochs, *args)
        self._read.clear()

    def wake(self) -> None:
        self._woken.set()
        for partition_id in itertools.islice(self._owned, 1):
            # If this does not work, `receive` says so, or returns soon by itself.
            with suppress(RedisError, OSError):
                self._redis.xadd(self._names.results(partition_id), {"wake": ""})

    def lost(self) -> list[Outstanding]:
        with self._translated():
            self._look_for_amnesia()
            self._permits.renew(lambda item: item[1] in self._dispatched.get(item[0], ()))
            queued = self._queued()
            self._presence = read_presence(self._redis, self._names)
        if time.monotonic() < self._trusted_from:
            return []
        alive = queued | self._presence.jobs
        lost = []
        for run_id, tasks in self._dispatched.items():
            for path, task in tasks.items():
                task.strikes = 0 if task.job_id in alive else task.strikes + 1
                if task.strikes >= STRIKES or task.job_id in self._presence.jobs_of_dead:
                    forgotten = task.marker != self._marker
                    lost.append(Outstanding(run_id=run_id, path=path, delivery=task.delivery, forgotten=forgotten))
        for missing in lost:
            self._forget(missing.run_id, missing.path)
        return lost

    def _look_for_amnesia(self) -> None:
        """After the server has lost its memory, wait until the workers have said again what they have.

        Until then nothing is handed out: of owners, too, the server has forgotten who is the newest. A coordinator comes here
        only when the store has just said what it owns.
        """
        answer: Any = self._redis.eval(MARK, 1, self._names.marker, uuid.uuid4().hex)
        marker, now = answer
        if marker.decode() != self._marker:
            made = int(marker.rpartition(b":")[2])
            young = 2 * BEAT_SECONDS - (int(now) - made) / 1000
            self._trusted_from = time.monotonic() + young
            self._marker = marker.decode()
            self._uploaded.clear()
            # A server with another clock may number new entries below those that were read before.
            self._positions = dict.fromkeys(self._positions, b"0")
            self._say_what_is_owned()

    def _queued(self) -> set[str]:
        """The ids of all jobs in queues, each queue's depth being counted anew."""
        names = self._names
        keys: Any = self._redis.smembers(names.queues)
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            queue = key.decode().removeprefix(names.queue_prefix)
            pipe.eval(RECOUNT, 2, names.queue(queue), names.depth(queue))
        return {job_id.decode() for ids in pipe.execute() for job_id in ids}

    def outstanding(self, run_ids: Collection[str]) -> list[Outstanding]:
        with self._translated():
            self._look_for_amnesia()
            # Rarely: only when the server has just lost its memory.
            time.sleep(max(0.0, self._trusted_from - time.monotonic()))
            # Queues first: a job that is claimed meanwhile is then seen twice rather than never.
            job_ids = sorted(self._queued())
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hget(self._names.job(job_id), "tasks")
            listed = dict(zip(job_ids, pipe.execute(), strict=True))
            self._presence = read_presence(self._redis, self._names)
        found: dict[tuple[str, bytes], Outstanding] = {}
        wanted = set(run_ids)
        for job_id, tasks in [*listed.items(), *self._presence.tasks.items()]:
            for run_id, path, delivery in tasks_of(tasks):
                key = (run_id, path)
                if run_id in wanted and (key not in found or found[key].delivery < delivery):
                    found[key] = Outstanding(run_id=run_id, path=path, delivery=delivery)
                    self._dispatched.setdefault(run_id, {})[path] = Dispatched(delivery, job_id, self._marker)
        return list(found.values())

    def _forget(self, run_id: str, path: bytes) -> None:
        self._permits.give_back([(run_id, path)])
        del self._dispatched[run_id][path]
        if not self._dispatched[run_id]:
            del self._dispatched[run_id]

    def set_aside(self, partition_id: str, result: TaskResult, reason: str) -> None:
        data = encode_results([result])
        signed = b"" if self._signer is None else self._signer.sign_results(partition_id, data)
        with self._translated():
            self._quarantine.add("result", partition_id, reason, data, signed)

    def withdraw(self, run_id: str) -> list[bytes]:
        return []  # Its queued tasks share jobs with other runs'; workers will answer them, and nobody listens.

    def forget(self, run_id: str) -> None:
        self._dispatched.pop(run_id, None)

    def cancel(self, run_id: str, partition_id: str) -> None:
        self.forget(run_id)
        keys, epoch = (self._names.cancelled, self._names.epochs), self._owned.get(partition_id, 0)
        with self._translated():
            self._redis.eval(CANCEL, len(keys), *keys, run_id, partition_id, epoch, int(CANCELLED_SECONDS * 1000))

    def depth(self, queue: str) -> int:
        with self._translated():
            depth: Any = self._redis.get(self._names.depth(queue))
        return int(depth or 0)

    def oldest(self, queue: str) -> float:
        """How many seconds the first task of a queue has waited; 0: none waits."""
        with self._translated():
            first: Any = self._redis.lindex(self._names.queue(queue), 0)
            since: Any = self._redis.hget(self._names.job(first.decode()), "enqueued_at") if first is not None else None
        return 0.0 if since is None else max(0.0, time.time() - rq_moment(since.decode()))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._redis.close()


def _identity(task: Task) -> str:
    return f'["{task.run_id}","{task.path.hex()}",{task.delivery}]'
