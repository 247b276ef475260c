"""What a node sees of its run: the implementation of the `Context` port."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from functools import cached_property
from random import Random
from typing import Any

import structlog

from lockstep.core.canonical import canonical_bytes
from lockstep.core.ordering import item_key_of, item_seed_of
from lockstep.costs import Usage, checked_usage
from lockstep.errors import LockstepError, StateError
from lockstep.interrupts import Question, Timer
from lockstep.recording import Call, decode_calls, encode_calls
from lockstep.records import Chunk, Task, Top
from lockstep.telemetry.spans import RunTrace
from lockstep.wire import ENGINE_EVENTS, EmittedEvent
from lockstep_worker.recorder import Recorder
from lockstep_worker.resources import none_for

MAX_CHUNK_BYTES = 16 * 1024
"""What a node may stream at a time: thousands of chunks are kept in memory for readers, for many runs."""


class NodeContext:
    """The `Context` of one delivery of one work item."""

    def __init__(
        self,
        task: Task,
        *,
        replays: bool = False,
        send: Callable[[Chunk], None] | None = None,
        open_resources: Callable[[], Any] | None = None,
    ) -> None:
        self.task = task
        self.open_resources = open_resources or none_for(task.node_id, "its graph has no resources=")
        self.replays = replays
        self._send = send
        self._streamed = 0
        self.run_id = task.run_id
        self.step_id = task.step_id
        self.node_id = task.node_id
        self.attempt = task.attempt
        self.delivery = task.delivery
        self.events: list[EmittedEvent] = []
        self.usage: list[Usage] = []
        self.cancelled = False
        self._asked = 0

    @property
    def order_key(self) -> str:
        return self.task.order_key.hex()

    @property
    def path(self) -> str:
        return self.task.path.hex()

    @property
    def idempotency_key(self) -> str:
        return item_key_of(self.run_id, self.task.path)

    @cached_property
    def rng(self) -> Random:
        # Made when asked for: seeding the generator takes longer than most of what surrounds it.
        return Random(item_seed_of(self.task.run_seed, self.task.path, self.task.scheduled_step))

    @cached_property
    def error(self) -> LockstepError | None:
        return LockstepError.from_record(self.task.error) if self.task.error is not None else None

    @cached_property
    def context(self) -> Any:
        return json.loads(self.task.context) if self.task.context is not None else None

    @cached_property
    def resources(self) -> Any:
        return self.open_resources()

    @cached_property
    def logger(self) -> Any:
        return structlog.get_logger().bind(
            trace_id=RunTrace(self.run_id, self.task.trace_context).trace_id.hex(),
            run_id=self.run_id,
            step_id=self.step_id,
            node_id=self.node_id,
            attempt=self.attempt,
        )

    @cached_property
    def recorder(self) -> Recorder:
        """What `record` works with."""
        recorded = [call for calls in self.task.recorded for call in decode_calls(calls)]
        return Recorder(self.node_id, recorded, replays=self.replays)

    def record(self, name: str, request: Any, call: Callable[[], Any]) -> Any:
        return self.recorder.record(name, request, call)

    def end_calls(self) -> list[Call]:
        """The node is done: the calls that it has made. Raises ReplayMismatchError if it should have made others."""
        if "recorder" not in self.__dict__ and not self.task.recorded:
            return []
        return self.recorder.end()

    @cached_property
    def _execution(self) -> str:
        """What no other execution of the item has: a delivery's number does not name it."""
        return os.urandom(8).hex()

    def stream(self, chunk: Any) -> None:
        if self._send is None:
            return  # In a replay, nobody reads.
        data = canonical_bytes(chunk, field="stream()")
        if len(data) > MAX_CHUNK_BYTES:
            raise StateError(
                f"a chunk of {len(data)} bytes is more than {MAX_CHUNK_BYTES}; stream it in parts, or a reference to it"
            )
        number, self._streamed = self._streamed, self._streamed + 1
        # What a subgraph's nodes stream comes with the run at the top, to whoever follows that.
        top = self.task.top or Top(self.run_id, self.step_id, "")
        self._send(
            Chunk(
                run_id=top.run_id,
                step_id=top.step_id,
                node_id=f"{top.node}/{self.node_id}" if top.node else self.node_id,
                path=self.task.path,
                attempt=self.attempt,
                delivery=self.delivery,
                execution=self._execution,
                number=number,
                data=data,
            )
        )

    def forward(self, chunk: Chunk) -> None:
        """Send what this node has streamed in a process of its own."""
        if self._send is not None:
            self._send(chunk)

    def llm_usage(
        self,
        model: str,
        tokens_in: int | None,
        tokens_out: int | None,
        *,
        tokens_cached: int = 0,
        tokens_cache_written: int = 0,
        cost_usd: Decimal | str | int | None = None,
    ) -> None:
        self.usage.append(checked_usage(model, tokens_in, tokens_out, tokens_cached, tokens_cache_written, cost_usd))

    def ask(self, value: Any, timer: Timer | None = None) -> Any:
        """See `lockstep.interrupt` and `lockstep.sleep`."""
        number, self._asked = self._asked, self._asked + 1
        if number < len(self.task.answers):
            return json.loads(self.task.answers[number])
        data = canonical_bytes(value, field="interrupt()")
        kept = self.recorder.kept if "recorder" in self.__dict__ else []
        calls = encode_calls(kept) if kept else None
        size = len(data) + len(calls or b"")
        if size > self.task.max_payload_bytes:
            raise StateError(
                f"what interrupt() asks, and record() has recorded before it, takes {size} bytes, more than "
                f"max_payload_bytes={self.task.max_payload_bytes}; ask with a reference, or raise the option"
            )
        raise Question(number, data, calls, timer.encoded() if timer is not None else None)

    def emit(self, type: str, data: Any = None) -> None:
        if type.startswith(ENGINE_EVENTS):
            raise StateError(f"event {type!r}: types that begin with {ENGINE_EVENTS!r} are the engine's; choose another")
        # Encoded now: the node may go on changing what it has emitted.
        self.events.append((type, json.loads(canonical_bytes(data, field=f"event {type}"))))
