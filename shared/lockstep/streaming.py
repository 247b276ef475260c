"""Streams: what a run does, as it does it. Steps and events come from the store, what nodes stream comes past it, live."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from lockstep.core.merge import Schema
from lockstep.core.state import State
from lockstep.errors import ConfigurationError
from lockstep.history import STEPS_PER_READ, read_history, read_position
from lockstep.ports import LiveReader, Reader
from lockstep.records import Chunk, Event, RunRow, StepRow

StreamMode = Literal["values", "updates", "custom", "events"]
STREAM_MODES: tuple[StreamMode, ...] = get_args(StreamMode)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream.

    `mode` "values": `data` is the whole state after step `step_id`, step 0 being the input. "updates": `data` is what `node_id`
    changed in that step; a step's updates come in ascending order_key. "events": `data` is an outbox event that the step has
    published, as {"type", "data", "event_id"}. "custom": `data` is what a node gave to `ctx.stream`, live, while its step is
    under way; `path` is its item. With `reset`, `data` is None, and what came of that item before is void: "again", for it is
    executed once more, or has gaps: "lost". Of a step, chunks come first, then updates, events, and values.

    `offset` is where a later stream of the same modes can go on, see `Run.stream`.
    """

    mode: StreamMode
    data: Any
    step_id: int
    node_id: str | None
    offset: str
    path: str | None = None
    attempt: int | None = None
    reset: Literal["again", "lost"] | None = None


class Source(Protocol):
    """Where a stream comes from."""

    @property
    def reader(self) -> Reader:
        """The store."""

    def schema_of(self, row: RunRow) -> Schema | None:
        """The schema of the run's graph, where it is loaded."""

    def live(self, run_id: str) -> LiveReader:
        """What nodes of the run stream."""


class Follower:
    """Reads what a run has done since it was asked last, and makes stream events of it."""

    def __init__(self, source: Source, run_id: str, modes: Sequence[StreamMode], after: str | None) -> None:
        self.ended = False
        """Whether the run has come to rest and all that it did is read."""
        self._source = source
        self._run_id = run_id
        self._modes = modes
        at = Place.of(after)
        self._resumes = after is not None
        self._next_step, self._skip = at.step, at.index
        self._last_event = at.sequence, at.position
        self._live_id = at.live
        self._index = 0
        self._state = State()
        if "values" in modes and at.step > 0:
            self._state = read_position(source.reader, run_id, at.step - 1).state
        self._live = source.live(run_id) if "custom" in modes else None
        self._chunks: deque[tuple[str, Chunk]] = deque()
        self._outbox: deque[Event] = deque()
        self._outbox_to = -1
        self._executions: dict[bytes, tuple[int, str, int]] = {}

    @property
    def waits_for_chunks(self) -> bool:
        """Whether `chunks` is to be called while there is nothing else to do."""
        return self._live is not None and self._live.blocks

    @property
    def is_behind(self) -> bool:
        """Whether chunks have come of a step before which others are committed that are not read yet: call `read`."""
        return bool(self._chunks) and self._chunks[0][1].step_id > self._next_step

    def chunks(self, seconds: float) -> list[StreamEvent]:
        """What nodes stream; waits for something at most this long."""
        self._receive(seconds)
        return list(self._chunk_events(None))

    def read(self, row: RunRow, settled: bool) -> list[StreamEvent]:
        """What is new, as far as the given row of the run goes, in portions; empty: nothing."""
        self._receive(0.0)  # Sent before their step's result was, so all chunks of what is committed are here now.
        reader, first = self._source.reader, self._next_step
        last = min(first + STEPS_PER_READ - 1, row.step_id)
        events: list[StreamEvent] = []
        self._read_outbox(last, row.step_id)
        records = list(read_history(reader, self._run_id, first, last)) if "updates" in self._modes and first <= last else []
        for step in reader.steps(self._run_id, first, last) if first <= last else ():
            tasks = records[step.step_id - first].tasks if records else []
            events += self._chunk_events(step.step_id)
            events += self._step_events(row, step, [(task.node_id, task.delta, task.path) for task in tasks])
            self._next_step, self._index, self._skip = step.step_id + 1, 0, 0
        events += self._chunk_events(None)
        if self._next_step > row.step_id:
            events += self._published(row.step_id)  # Why it rests is said after its last step.
            self.ended = settled
        return events

    def _step_events(
        self, row: RunRow, step: StepRow, updates: Sequence[tuple[str, dict[str, Any], str]]
    ) -> Iterator[StreamEvent]:
        for node_id, delta, path in updates:
            if self._is_new():
                yield self._event("updates", delta, step.step_id, node_id, path=path)
        yield from self._published(step.step_id)
        if "values" in self._modes:
            self._state = self._state.patched(step.patch)
            if self._is_new():
                values = typed(self._source.schema_of(row), json.loads(self._state.to_bytes()))
                yield self._event("values", values, step.step_id, None)

    def _is_new(self) -> bool:
        """Count one more event of the step under way; False: it was seen before the stream broke."""
        self._index += 1
        return self._index > self._skip

    def _read_outbox(self, last: int, known: int) -> None:
        """Have the events of steps up to `last` at hand; those up to `known`, the run's last one, come with them."""
        if "events" not in self._modes or (self._outbox and self._outbox_to >= last):
            return
        newest = self._outbox[-1] if self._outbox else None
        at = (newest.sequence, newest.position) if newest is not None else self._last_event
        found = self._source.reader.events(self._run_id, max(0, at[0] - 1))
        self._outbox.extend(event for event in found if (event.sequence, event.position) > at and event.step_id <= known)
        self._outbox_to = known

    def _published(self, step_id: int) -> Iterator[StreamEvent]:
        """The next events of the outbox, up to those of a step."""
        while self._outbox and self._outbox[0].step_id <= step_id:
            event = self._outbox.popleft()
            self._last_event = event.sequence, event.position
            event_id = f"{event.run_id}/{event.sequence}/{event.position}"
            said = {"type": event.type, "data": json.loads(event.data), "event_id": event_id}
            yield self._event("events", said, event.step_id, event.node_id or None)

    def _receive(self, seconds: float) -> None:
        if self._live is not None:
            last = self._chunks[-1][0] if self._chunks else self._live_id
            self._chunks += self._live.read(last, seconds)

    def _chunk_events(self, step_id: int | None) -> Iterator[StreamEvent]:
        """Those that have come of steps up to this one; None: the one under way. Of a step that was passed, nothing comes."""
        last = self._next_step if step_id is None else step_id
        while self._chunks and self._chunks[0][1].step_id <= last:
            self._live_id, chunk = self._chunks.popleft()
            if chunk.step_id < self._next_step:
                continue  # Of a delivery that comes too late.
            place = {"path": chunk.path.hex(), "attempt": chunk.attempt}
            if (reset := self._reset_before(chunk)) is not None:
                yield self._event("custom", None, chunk.step_id, chunk.node_id, reset=reset, **place)
            yield self._event("custom", json.loads(chunk.data), chunk.step_id, chunk.node_id, **place)

    def _reset_before(self, chunk: Chunk) -> Literal["again", "lost"] | None:
        known = self._executions.get(chunk.path)
        if known is None and self._executions and next(iter(self._executions.values()))[0] < chunk.step_id:
            self._executions.clear()
        self._executions[chunk.path] = chunk.step_id, chunk.execution, chunk.number + 1
        if known is None:
            if chunk.number:
                return None if self._resumes else "lost"
            # An earlier one may have been seen before the stream broke.
            return "again" if self._resumes and (chunk.attempt > 1 or chunk.delivery > 1) else None
        _, execution, number = known
        if execution != chunk.execution:
            return "again"
        return "lost" if number != chunk.number else None

    def _event(self, mode: StreamMode, data: Any, step_id: int, node_id: str | None, **more: Any) -> StreamEvent:
        place = Place(self._next_step, max(self._index, self._skip), *self._last_event, self._live_id)
        return StreamEvent(mode, data, step_id, node_id, place.text(), **more)

    def close(self) -> None:
        """Close what it has open."""
        if self._live is not None:
            self._live.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream is: before which step, after how many of its updates and values, which outbox event, and which chunk."""

    step: int = 0
    index: int = 0
    sequence: int = 0
    position: int = -1
    live: str = ""

    def text(self) -> str:
        """As an offset."""
        return f"{self.step}:{self.index}:{self.sequence}:{self.position}:{self.live}"

    @staticmethod
    def of(offset: str | None) -> Place:
        """The place of an offset; None: the beginning. Raises ConfigurationError."""
        if offset is None:
            return Place()
        try:
            step, index, sequence, position, live = offset.split(":")
            return Place(int(step), int(index), int(sequence), int(position), live)
        except (AttributeError, ValueError):
            raise ConfigurationError(f"after={offset!r} is not the offset of a StreamEvent", option="after") from None


def typed(schema: Schema | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as their annotations say, where the schema is known."""
    return dict(values) if schema is None else schema.loaded(values)


def check_modes(modes: Sequence[StreamMode]) -> None:
    """Raise ConfigurationError for stream modes that there are not."""
    unknown = [mode for mode in modes if mode not in STREAM_MODES]
    if unknown or isinstance(modes, str):
        raise ConfigurationError(f"stream modes are a list of {', '.join(STREAM_MODES)}; got {modes!r}", option="modes")
