"""People in the loop: `interrupt` lets a node ask, and its item wait for the answer, however long that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from lockstep.errors import ConfigurationError
from lockstep.records import JournalRow

ID_DIGITS = 16
"""Of an item's path, in the id of a question: enough to be unique within a step."""

ASKS: ContextVar[Callable[[Any], Any]] = ContextVar("lockstep_asks")
"""How the node that runs here asks; set by whoever executes it."""


class Question(BaseException):
    """Ends a node that has asked something. No Exception: a node that catches those does not catch this."""

    def __init__(self, number: int, value: bytes, calls: bytes | None = None) -> None:
        super().__init__("a node waits for an answer")
        self.number = number
        self.value = value
        self.calls = calls


@dataclass(frozen=True, slots=True)
class Interrupt:
    """What a node asks, as JSON has it, and the id by which it is answered."""

    id: str
    node_id: str
    value: Any


def interrupt(value: Any = None) -> Any:
    """Ask somebody, and return the answer.

    The first time, the node ends here and its item waits; what its siblings return is kept. When the answer has come, the node
    runs again from its top, and this call returns it, as do those before it. So what stands before it is executed again.
    Raises ConfigurationError outside of a node, StateError for a value that is no JSON.
    """
    ask = ASKS.get(None)
    if ask is None:
        raise ConfigurationError("interrupt() asks from inside a node, and no node runs here", option="interrupt")
    return ask(value)


def question_id(path: bytes, number: int) -> str:
    """The id of an item's question: the beginning of its path, and the number."""
    return f"{path.hex()[:ID_DIGITS]}-{number}"


def open_question(rows: Sequence[JournalRow]) -> JournalRow | None:
    """The question among an item's journal rows that has no answer, if there is one."""
    answered = {row.n for row in rows if row.kind == "answer"}
    return next((row for row in rows if row.kind == "interrupted" and row.n not in answered), None)


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
