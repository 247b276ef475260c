"""What the items of a step have asked: which questions are open, what has answered the others, and what answers by itself.

Questions go to people, to the clock, or, of items that are subgraphs, to a run whose end answers them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from lockstep.interrupts import Timer, decode_timer, question_id
from lockstep.records import JournalRow
from lockstep.wire import asked_at


class Due(msgspec.Struct, frozen=True):
    """The question of this id answers itself in `seconds`. `sleeps`: nobody else does."""

    question: str
    seconds: float
    answer: Any
    sleeps: bool


class Call(msgspec.Struct, frozen=True):
    """The item of this path waits for the end of a run with this input (canonical bytes), for the n-th time."""

    path: bytes
    number: int
    input: bytes


class Questions:
    """By an item's path. `open` has the number of the question that waits for an answer."""

    def __init__(self) -> None:
        self.open: dict[bytes, int] = {}
        self._answers: dict[bytes, list[bytes]] = {}
        self._recorded: dict[bytes, dict[int, bytes]] = {}
        self._timers: dict[bytes, Due] = {}
        self._started: set[str] = set()
        self._calls: dict[bytes, Call] = {}
        self._made: set[tuple[bytes, int]] = set()

    def restore(self, row: JournalRow, now: float) -> None:
        """Take in a journal row of whatever kind, in their order; `now` is in seconds since 1970."""
        match row.kind:
            case "interrupted":
                self.open[row.path] = row.n
            case "called":
                self.call(Call(row.path, row.n, row.payload))
            case "answer":
                self._answers.setdefault(row.path, []).append(row.payload)
            case "recorded":
                self._recorded.setdefault(row.path, {})[row.n] = row.payload
            case "timer":
                timer = decode_timer(row.payload)
                left = asked_at(row) / 1000 + timer.seconds - now
                # Never longer than the whole time, whatever the clocks of two machines say.
                self._set_timer(row.path, row.n, timer, min(max(left, 0.0), timer.seconds))

    def settle(self) -> None:
        """All rows are taken in: what has its answer is open no more."""
        for path in [path for path, number in self.open.items() if number < self.answered(path)]:
            self.close(path)

    def ask(self, path: bytes, number: int, timer: Timer | None, calls: bytes | None) -> None:
        """An item has asked; `calls` are those that it made before."""
        self.open[path] = number
        if timer is not None:
            self._set_timer(path, number, timer, timer.seconds)
        if calls is not None:
            self._recorded.setdefault(path, {})[number] = calls

    def call(self, call: Call) -> None:
        """An item has asked for the end of a run."""
        self.open[call.path] = call.number
        self._calls[call.path] = call

    def _set_timer(self, path: bytes, number: int, timer: Timer, seconds: float) -> None:
        self._timers[path] = Due(question_id(path, number), seconds, timer.answer, timer.sleeps)

    def answer(self, path: bytes, payload: bytes) -> None:
        """The open question of an item has this answer."""
        self.close(path)
        self._answers.setdefault(path, []).append(payload)

    def close(self, path: bytes) -> None:
        """The item waits for no answer any more."""
        self.open.pop(path, None)
        self._timers.pop(path, None)
        self._calls.pop(path, None)

    def answered(self, path: bytes) -> int:
        """How many answers an item has got."""
        return len(self._answers.get(path, ()))

    def answers_of(self, path: bytes) -> tuple[bytes, ...]:
        """Its answers, in order."""
        return tuple(self._answers.get(path, ()))

    def calls_of(self, path: bytes) -> tuple[bytes, ...]:
        """The calls that it made before each question, in order."""
        return tuple(calls for _, calls in sorted(self._recorded.get(path, {}).items()))

    @property
    def to_people(self) -> list[bytes]:
        """The items whose open questions somebody has to answer."""
        if len(self.open) == len(self._calls):
            return []  # All wait for runs; there may be thousands.
        return [path for path in self.open if path not in self._calls and not self._sleeps(path)]

    def _sleeps(self, path: bytes) -> bool:
        return path in self._timers and self._timers[path].sleeps

    @property
    def calls(self) -> Collection[Call]:
        """The calls that wait for the end of their runs."""
        return self._calls.values()

    def call_at(self, path: bytes) -> Call | None:
        """The call of an item, if it waits for the end of a run."""
        return self._calls.get(path)

    def new_calls(self) -> list[Call]:
        """Those that were made since this was called last."""
        new = [call for call in self._calls.values() if (call.path, call.number) not in self._made]
        self._made.update((call.path, call.number) for call in new)
        return new

    def new_timers(self) -> list[Due]:
        """The timers that are to be started: those of questions that were asked since this was called last."""
        due = [one for one in self._timers.values() if one.question not in self._started]
        self._started.update(one.question for one in due)
        return due
