"""What a node has asked the world and what it got, as it is journalled: see `Context.record`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from lockstep.core.canonical import MAX_DEPTH, canonical_bytes

TEXT_LIMIT = 500
"""Characters of a value that a difference shows."""


class CallError(msgspec.Struct, frozen=True):
    """What a call has raised: the names, module.class, of the exception's class and its parents, nearest first; its text."""

    kinds: list[str]
    message: str


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """One recorded call. `awaited`: it was waited for. `unfinished`: it had no result when its node was done with it."""

    name: str
    request: Any
    response: Any = None
    error: CallError | None = None
    awaited: bool = False
    unfinished: bool = False


def encode_calls(calls: Sequence[Call]) -> bytes:
    """Calls as canonical JSON."""
    return canonical_bytes(msgspec.to_builtins(calls), depth=MAX_DEPTH + 3)


def decode_calls(data: bytes) -> list[Call]:
    """The inverse of `encode_calls`. Raises ValueError for anything else."""
    return _CALLS.decode(data)


_CALLS = msgspec.json.Decoder(list[Call])


class Difference(msgspec.Struct, frozen=True):
    """A place at which two JSON values differ, such as `messages[2].role`, and what stands there; None: nothing."""

    place: str
    expected: str | None
    actual: str | None

    def __str__(self) -> str:
        return f"{self.place or 'it'} was {self.expected or 'not there'}, is {self.actual or 'not there'}"


def differences(expected: Any, actual: Any, place: str = "") -> Iterator[Difference]:
    """Where two JSON values differ, in order. Values are told apart by their canonical bytes: 1, 1.0 and true differ."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key in sorted(expected.keys() | actual.keys()):
            inside = f"{place}.{key}" if place else key
            if key not in actual or key not in expected:
                yield Difference(inside, _text(expected, key), _text(actual, key))
            else:
                yield from differences(expected[key], actual[key], inside)
    elif isinstance(expected, list) and isinstance(actual, list):
        for index in range(max(len(expected), len(actual))):
            inside = f"{place}[{index}]"
            if index >= len(actual) or index >= len(expected):
                yield Difference(inside, _text(expected, index), _text(actual, index))
            else:
                yield from differences(expected[index], actual[index], inside)
    elif canonical_bytes(expected) != canonical_bytes(actual):
        yield Difference(place, shown(expected), shown(actual))


def _text(values: Any, key: Any) -> str | None:
    there = key in values if isinstance(values, dict) else key < len(values)
    return shown(values[key]) if there else None


def shown(value: Any) -> str:
    """A value as people see it: its canonical JSON, cut where it is long."""
    text = canonical_bytes(value, depth=2 * MAX_DEPTH).decode()
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}... ({len(text)} characters)"
