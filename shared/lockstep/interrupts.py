"""People in the loop: `interrupt` lets a node ask, and its item wait for the answer, however long that takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.errors import ConfigurationError
from lockstep.records import JournalRow

ID_DIGITS = 16
"""Of an item's path, in the id of a question: enough to be unique within a step."""

MAX_WAIT_SECONDS = 10 * 366 * 86_400.0
"""How long a node may sleep, or wait for an answer."""


class Timer(msgspec.Struct, frozen=True):
    """After `seconds`, a question is answered by itself, with this. `sleeps`: it is none to people, who do not see it."""

    seconds: float
    answer: Any = None
    sleeps: bool = False

    def encoded(self) -> bytes:
        """As canonical JSON."""
        return canonical_bytes(msgspec.to_builtins(self))


_TIMER = msgspec.json.Decoder(Timer)


def decode_timer(data: bytes) -> Timer:
    """The inverse of `Timer.encoded`. Raises ValueError for anything else."""
    timer = _TIMER.decode(data)
    if not 0 <= timer.seconds <= MAX_WAIT_SECONDS:
        raise ValueError(f"{timer.seconds} seconds are out of range")
    return timer


ASKS: ContextVar[Callable[[Any, Timer | None], Any]] = ContextVar("lockstep_asks")
"""How the node that runs here asks; set by whoever executes it."""


class Question(BaseException):
    """Ends a node that has asked something. No Exception: a node that catches those does not catch this.

    A node that is a `subgraph` asks for the end of a run, and `value` is the input of that.
    """

    def __init__(
        self, number: int, value: bytes, calls: bytes | None = None, timer: bytes | None = None, *, subgraph: bool = False
    ) -> None:
        super().__init__("a node waits for an answer")
        self.number = number
        self.value = value
        self.calls = calls
        self.timer = timer
        self.subgraph = subgraph


@dataclass(frozen=True, slots=True)
class Interrupt:
    """What a node asks, as JSON has it, and the id by which it is answered.

    `run_id` is the run of the node: that of a subgraph is one of its own, and `node_id` then "node/theirs".
    """

    id: str
    node_id: str
    value: Any
    run_id: str


def interrupt(value: Any = None, *, timeout_seconds: float | None = None, default: Any = None) -> Any:
    """Ask somebody, and return the answer; or `default`, if none has come within `timeout_seconds`.

    The first time, the node ends here and its item waits; what its siblings return is kept. When the answer has come, the node
    runs again from its top, and this call returns it, as do those before it. So what stands before it is executed again.
    Raises ConfigurationError outside of a node, StateError for a value that is no JSON.
    """
    timer = None
    if timeout_seconds is not None:
        timer = Timer(_checked(timeout_seconds, "timeout_seconds"), json.loads(canonical_bytes(default, field="default")))
    return _asks("interrupt")(value, timer)


def sleep(seconds: float) -> None:
    """Let the node go on after so long: a second, or a month. Meanwhile it takes no slot, and every process may be replaced.

    Like `interrupt`, it ends the node here the first time, and the node runs again from its top when the time has passed.
    Raises ConfigurationError outside of a node, or for seconds out of range.
    """
    _asks("sleep")(None, Timer(_checked(seconds, "seconds"), sleeps=True))


def _checked(seconds: float, option: str) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ConfigurationError(f"{option}={seconds!r} must be seconds from 0 to {MAX_WAIT_SECONDS:.0f}", option=option)
    return float(seconds)


def _asks(what: str) -> Callable[[Any, Timer | None], Any]:
    ask = ASKS.get(None)
    if ask is None:
        raise ConfigurationError(f"{what}() is for the inside of a node, and no node runs here", option=what)
    return ask


def question_id(path: bytes, number: int) -> str:
    """The id of an item's question: the beginning of its path, and the number."""
    return f"{path.hex()[:ID_DIGITS]}-{number}"


def open_question(rows: Sequence[JournalRow]) -> JournalRow | None:
    """The question among an item's journal rows that has no answer, if there is one."""
    answered = {row.n for row in rows if row.kind == "answer"}
    return next((row for row in rows if row.kind == "interrupted" and row.n not in answered), None)


def timer_of(rows: Sequence[JournalRow], question: JournalRow) -> Timer | None:
    """What answers a question by itself; None: nothing does."""
    row = next((row for row in rows if row.kind == "timer" and row.n == question.n), None)
    return None if row is None else decode_timer(row.payload)


def answers_for(pending: Sequence[Interrupt], given: Any) -> dict[str, Any]:
    """What was given, by id. Anything is the answer to a single question; of several, each needs its id.

    Raises ConfigurationError that lists the ids.
    """
    ids = [one.id for one in pending]
    if isinstance(given, Mapping) and given and set(given) <= set(ids):
        return dict(given)
    if len(ids) == 1:
        return {ids[0]: given}
    known = ", ".join(f"{one.id} ({one.node_id})" for one in pending) or "none"
    raise ConfigurationError(f"give the answers as a dict by id; what is asked: {known}", option="resume")
