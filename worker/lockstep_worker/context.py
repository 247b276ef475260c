"""What a node sees of its run: the implementation of the `Context` port."""

from __future__ import annotations

import json
from functools import cached_property
from random import Random
from typing import Any

import structlog

from lockstep.core.canonical import canonical_bytes
from lockstep.core.ordering import item_key_of, item_seed_of
from lockstep.errors import LockstepError, StateError
from lockstep.interrupts import Question
from lockstep.records import Task
from lockstep.wire import ENGINE_EVENTS, EmittedEvent


class NodeContext:
    """The `Context` of one delivery of one work item."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.run_id = task.run_id
        self.step_id = task.step_id
        self.node_id = task.node_id
        self.attempt = task.attempt
        self.delivery = task.delivery
        self.events: list[EmittedEvent] = []
        self.cancelled = False
        self._asked = 0

    @property
    def order_key(self) -> str:
        return self._task.order_key.hex()

    @property
    def path(self) -> str:
        return self._task.path.hex()

    @property
    def idempotency_key(self) -> str:
        return item_key_of(self.run_id, self._task.path)

    @cached_property
    def rng(self) -> Random:
        # Made when asked for: seeding the generator takes longer than most of what surrounds it.
        return Random(item_seed_of(self._task.run_seed, self._task.path, self._task.scheduled_step))

    @cached_property
    def error(self) -> LockstepError | None:
        return LockstepError.from_record(self._task.error) if self._task.error is not None else None

    @cached_property
    def logger(self) -> Any:
        return structlog.get_logger().bind(run_id=self.run_id, step_id=self.step_id, node_id=self.node_id, attempt=self.attempt)

    def ask(self, value: Any) -> Any:
        """See `lockstep.interrupt`."""
        number, self._asked = self._asked, self._asked + 1
        if number < len(self._task.answers):
            return json.loads(self._task.answers[number])
        data = canonical_bytes(value, field="interrupt()")
        if len(data) > self._task.max_payload_bytes:
            raise StateError(
                f"what interrupt() asks takes {len(data)} bytes, more than max_payload_bytes; ask with a reference"
            )
        raise Question(number, data)

    def emit(self, type: str, data: Any = None) -> None:
        if type.startswith(ENGINE_EVENTS):
            raise StateError(f"event {type!r}: types that begin with {ENGINE_EVENTS!r} are the engine's; choose another")
        # Encoded now: the node may go on changing what it has emitted.
        self.events.append((type, json.loads(canonical_bytes(data, field=f"event {type}"))))
