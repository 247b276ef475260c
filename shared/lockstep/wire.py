"""The bytes in which tasks, results and outcomes travel, and in which outcomes are journalled: JSON, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from lockstep.core.canonical import MAX_DEPTH, canonical_bytes
from lockstep.core.records import Failure, Finished, Route, Write
from lockstep.errors import StateError
from lockstep.recording import Call
from lockstep.records import Chunk, HandedBack, JournalRow, Task, TaskResult, Top

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A number that JSON's readers agree about."""

OUTCOME_DEPTH = MAX_DEPTH + 4
"""Levels in an outcome's JSON: those of a value, and its own."""

EmittedEvent = tuple[str, Any]
"""The type and the JSON data of an event."""

ENGINE_EVENTS = "lockstep."
"""What the types of events begin with that no node has emitted."""


def encode_outcome(
    writes: Sequence[Write],
    routes: Sequence[Route],
    events: Sequence[EmittedEvent],
    calls: Sequence[Call] = (),
    up: Finished | None = None,
) -> bytes:
    """A node's outcome as canonical JSON; empty parts are left out.

    {"calls": [see `Call`], "events": [[type, data]], "routes": [[node, payload?]],
     "up": {"routes": ..., "writes": ...}, "writes": [[field, value, true if Overwrite]]}
    """
    record = finished_record(writes, routes, up)
    if calls:
        record["calls"] = msgspec.to_builtins(calls)
    if events:
        record["events"] = [list(event) for event in events]
    return canonical_bytes(record, depth=OUTCOME_DEPTH)


def finished_record(writes: Sequence[Write], routes: Sequence[Route], up: Finished | None) -> dict[str, Any]:
    """What an item came to, as JSON values; empty parts are left out."""
    record: dict[str, Any] = {}
    if routes:
        record["routes"] = [
            [route.node_id] if route.payload is None else [route.node_id, json.loads(route.payload)] for route in routes
        ]
    if writes:
        record["writes"] = [[w.field, w.value, True] if w.overwrite else [w.field, w.value] for w in writes]
    if up is not None:
        record["up"] = finished_record(up.writes, up.routes, None)
    return record


def decode_outcome(data: bytes) -> tuple[Finished, list[EmittedEvent]]:
    """The inverse of `encode_outcome`. Raises ValueError for anything else."""
    record = _decoded(_OUTCOME, data)
    return _finished(record), record.events


def finished_of(record: Any) -> Finished:
    """The inverse of `finished_record`. Raises ValueError for anything else."""
    return _finished(msgspec.convert(record, _Finished))


def _finished(record: _Finished) -> Finished:
    try:
        routes = tuple([Route(name, canonical_bytes(payload[0]) if payload else None) for name, *payload in record.routes])
        writes = tuple([Write(*write) for write in record.writes])
    except (TypeError, ValueError, StateError) as error:
        raise ValueError(f"its writes or routes are none: {error}") from None
    if not all([isinstance(write.field, str) for write in writes] + [isinstance(route.node_id, str) for route in routes]):
        raise ValueError("it names a field or node by something else than text")
    return Finished(writes, routes, None if record.up is None else _finished(record.up))


def calls_of(outcome: bytes) -> list[Call]:
    """The calls that a node has made for an outcome. Raises ValueError."""
    return _decoded(_CALLING, outcome).calls


class _Calling(msgspec.Struct):
    calls: list[Call] = []


class _Finished(msgspec.Struct):
    writes: list[Any] = []
    routes: list[Any] = []
    up: _Finished | None = None


class _Outcome(_Finished):
    events: list[EmittedEvent] = []


_encode = msgspec.json.Encoder().encode
_CALLING = msgspec.json.Decoder(_Calling)
_OUTCOME = msgspec.json.Decoder(_Outcome)
"""Values come out as the standard library's decoder would give them; a test compares the two."""


class JournalMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a journal row says beside its outcome or error: who did it and when, by the worker's clock in milliseconds.

    After a failure, the next attempt comes in `pause_seconds`; None: that was the last one of this `retries`, and `handler`
    names the error handler that runs now, if there is one.
    """

    attempt: int = 1
    delivery: int = 0
    retries: int = 0
    started_at: int = 0
    latency_ms: float = 0.0
    worker: str = ""
    pause_seconds: float | None = 0.0
    handler: str | None = None

    @property
    def next_attempt_at(self) -> float:
        """When the pause ends, in milliseconds since 1970."""
        return self.started_at + self.latency_ms + (self.pause_seconds or 0.0) * 1000

    def encoded(self) -> bytes:
        """As it is stored. What only failures have is left out where it says nothing: most rows are results."""
        fields: dict[str, Any] = {
            "attempt": self.attempt,
            "delivery": self.delivery,
            "latency_ms": self.latency_ms,
            "retries": self.retries,
            "started_at": self.started_at,
            "worker": self.worker,
        }
        if self.pause_seconds != 0.0:
            fields["pause_seconds"] = self.pause_seconds
        if self.handler is not None:
            fields["handler"] = self.handler
        return _encode(fields)


_META = msgspec.json.Decoder(JournalMeta)


def decode_meta(data: bytes) -> JournalMeta:
    """The inverse of `JournalMeta.encoded`."""
    return _META.decode(data)


def asked_at(question: JournalRow) -> float:
    """When an item asked something, in milliseconds since 1970, by its worker's clock."""
    meta = decode_meta(question.meta)
    return meta.started_at + meta.latency_ms


class TaskMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task as it travels. Canonical bytes are embedded as they are; a large state only by its SHA-256."""

    run_id: str
    partition_id: str
    graph_hash: str
    step_id: int
    node_id: str
    path: bytes
    order_key: bytes
    scheduled_step: int
    queue: str
    attempt: int
    delivery: int
    run_seed: int
    timeout_seconds: float
    max_payload_bytes: int
    state: Raw | UnsetType = UNSET
    state_sha256: str | None = None
    payload: Raw | UnsetType = UNSET
    stands_for: str | None = None
    error: dict[str, Any] | None = None
    answers: list[Raw] = []
    recorded: list[Raw] = []
    context: Raw | UnsetType = UNSET
    trace_context: str | None = None
    top: Top | None = None

    def task(self, state: bytes) -> Task:
        """The task, with the state that belongs to it."""
        return Task(
            run_id=self.run_id,
            partition_id=self.partition_id,
            graph_hash=self.graph_hash,
            step_id=self.step_id,
            node_id=self.node_id,
            path=self.path,
            order_key=self.order_key,
            scheduled_step=self.scheduled_step,
            queue=self.queue,
            attempt=self.attempt,
            delivery=self.delivery,
            run_seed=self.run_seed,
            timeout_seconds=self.timeout_seconds,
            max_payload_bytes=self.max_payload_bytes,
            state=state,
            payload=None if self.payload is UNSET else bytes(self.payload),
            stands_for=self.stands_for,
            error=self.error,
            answers=tuple(map(bytes, self.answers)),
            recorded=tuple(map(bytes, self.recorded)),
            context=None if self.context is UNSET else bytes(self.context),
            trace_context=self.trace_context,
            top=self.top,
        )


_JOB = msgspec.json.Decoder(tuple[str, None, tuple[list[Raw]], dict[str, Any]])
_TASK = msgspec.json.Decoder(TaskMessage)

JOB_FUNCTION = "lockstep_worker.process.execute"
"""The function that a job names to RQ. Only our own worker executes jobs; with RQ's it says so and fails."""

JOB_HEAD, JOB_TAIL = f'["{JOB_FUNCTION}",null,[['.encode(), b"]],{}]"
"""What stands before and after the tasks in a job's data: function, instance, arguments, keywords, as RQ's JSON has them."""


def encode_task(task: Task, state_sha256: str | None = None) -> bytes:
    """A task as JSON, with the hash of its state instead of the state if that is given."""
    return _encode(
        TaskMessage(
            task.run_id,
            task.partition_id,
            task.graph_hash,
            task.step_id,
            task.node_id,
            task.path,
            task.order_key,
            task.scheduled_step,
            task.queue,
            task.attempt,
            task.delivery,
            task.run_seed,
            task.timeout_seconds,
            task.max_payload_bytes,
            # A Send's payload replaces the state, but its routers see the state.
            UNSET if state_sha256 is not None else Raw(task.state),
            state_sha256,
            UNSET if task.payload is None else Raw(task.payload),
            task.stands_for,
            task.error,
            [Raw(answer) for answer in task.answers],
            [Raw(calls) for calls in task.recorded],
            UNSET if task.context is None else Raw(task.context),
            task.trace_context,
            task.top,
        )
    )


def split_job(data: bytes) -> list[bytes]:
    """The tasks in a job's data, each as `decode_task` takes it. Raises ValueError for anything else."""
    function, _, (tasks,), _ = _decoded(_JOB, data)
    if function != JOB_FUNCTION:
        raise ValueError(f"the job calls {function!r}")
    return [bytes(task) for task in tasks]


def decode_task(data: bytes) -> TaskMessage:
    """The inverse of `encode_task`. Raises ValueError for anything else."""
    return _decoded(_TASK, data)


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class ChunkMessage(msgspec.Struct, frozen=True, array_like=True):
    """A chunk as it travels, in its run's stream."""

    step_id: Count
    node_id: str
    path: bytes
    attempt: Count
    delivery: Count
    execution: str
    number: Count
    data: Raw


_CHUNK = msgspec.json.Decoder(ChunkMessage)


def encode_chunk(chunk: Chunk) -> bytes:
    """A chunk as JSON, without its run."""
    place = (chunk.step_id, chunk.node_id, chunk.path, chunk.attempt, chunk.delivery, chunk.execution, chunk.number)
    return _encode(ChunkMessage(*place, Raw(chunk.data)))


def decode_chunk(run_id: str, data: bytes) -> Chunk:
    """The inverse of `encode_chunk`. Raises ValueError for anything else."""
    fields = msgspec.structs.asdict(_decoded(_CHUNK, data))
    return Chunk(**fields | {"run_id": run_id, "data": bytes(fields["data"])})


class ResultMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A result as it travels: an outcome, a failure, or a reason why the task was handed back."""

    run_id: str
    path: bytes
    delivery: Count
    outcome: Raw | UnsetType = UNSET
    failure: Failure | None = None
    handed_back: str | None = None
    started_at: Count = 0
    latency_ms: float = 0.0
    worker: str = ""
    asked: Count | None = None
    question: Raw | UnsetType = UNSET
    calls: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    timer: Raw | UnsetType = UNSET
    subgraph: bool = False

    def message(self) -> TaskResult | HandedBack:
        """The result as the coordinator takes it."""
        if self.handed_back is not None:
            return HandedBack(run_id=self.run_id, path=self.path, delivery=self.delivery, reason=self.handed_back)
        return TaskResult(
            run_id=self.run_id,
            path=self.path,
            delivery=self.delivery,
            outcome=None if self.outcome is UNSET else bytes(self.outcome),
            failure=self.failure,
            question=None if self.asked is None or self.question is UNSET else (self.asked, bytes(self.question)),
            calls=None if self.calls is UNSET else bytes(self.calls),
            usage=None if self.usage is UNSET else bytes(self.usage),
            timer=None if self.timer is UNSET else bytes(self.timer),
            subgraph=self.subgraph,
            started_at=self.started_at,
            latency_ms=self.latency_ms,
            worker=self.worker,
        )


_RESULTS = msgspec.json.Decoder(list[ResultMessage])


def encode_results(results: Sequence[TaskResult | HandedBack]) -> bytes:
    """Results as JSON."""
    return _encode([_result_message(result) for result in results])


def decode_results(data: bytes) -> list[TaskResult | HandedBack]:
    """The inverse of `encode_results`. Raises ValueError for anything else."""
    return [message.message() for message in _decoded(_RESULTS, data)]


def _result_message(result: TaskResult | HandedBack) -> ResultMessage:
    if isinstance(result, HandedBack):
        return ResultMessage(result.run_id, result.path, result.delivery, handed_back=result.reason)
    return ResultMessage(
        result.run_id,
        result.path,
        result.delivery,
        UNSET if result.outcome is None else Raw(result.outcome),
        result.failure,
        None,
        result.started_at,
        result.latency_ms,
        result.worker,
        None if result.question is None else result.question[0],
        UNSET if result.question is None else Raw(result.question[1]),
        UNSET if result.calls is None else Raw(result.calls),
        UNSET if result.usage is None else Raw(result.usage),
        UNSET if result.timer is None else Raw(result.timer),
        result.subgraph,
    )
