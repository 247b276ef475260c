"""Canonical JSON: the one byte form of a value.

    json.dumps(x, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False) in UTF-8

Equal values give equal bytes on every machine and Python, so their hashes can be compared.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any

from lockstep.errors import StateError

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

MAX_DEPTH = 100
"""Levels of lists and dicts in a value. A bound of our own: the encoder's depends on how deep its caller stands."""

encode_json = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def canonical_bytes(value: Any, *, field: str | None = None, depth: int = MAX_DEPTH) -> bytes:
    """The canonical bytes of a JSON value (None, bool, int, float, str, list or tuple, dict with string keys).

    Raises StateError, naming `field` and the place inside it, for anything else: other types, NaN and infinities, integers
    outside -2^63..2^63-1, keys that are no strings, lone surrogates, and more than MAX_DEPTH levels.
    """
    if type(value) is int and INT_MIN <= value <= INT_MAX:
        return b"%d" % value  # A tenth of the encoder's time, and counters are frequent.
    try:
        if _keeps_its_meaning(value, depth):
            return encode_json(value).encode()
    except (TypeError, ValueError):
        pass  # What the encoder refuses, _find_fault finds, and can say where it is.
    place, why = _find_fault(value, "", depth) or ("", "is not JSON")
    what = f"field {field!r}" if field else "the value"
    raise StateError(f"{what}{' at ' + place if place else ''} {why}", field=field)


@functools.lru_cache(maxsize=4096)
def quoted(name: str) -> bytes:
    """The canonical bytes of a name: of a field or a node, so there are few, and each is asked for in every step."""
    return canonical_bytes(name)


def _keeps_its_meaning(value: Any, depth: int) -> bool:
    """Whether the encoder, left alone, would turn no key into a string, pass no integer out of range, and come to an end."""
    kind = type(value)
    if kind is str or kind is float or kind is bool or value is None:
        return True
    if isinstance(value, int):
        return INT_MIN <= value <= INT_MAX
    if isinstance(value, dict):
        if depth == 0:
            return False
        for key, item in value.items():
            if not isinstance(key, str) or not (type(item) is str or _keeps_its_meaning(item, depth - 1)):
                return False
        return True
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(type(item) is str or _keeps_its_meaning(item, depth - 1) for item in value)
    return True


def _find_fault(value: Any, place: str, depth: int) -> tuple[str, str] | None:
    """The first part of `value` that is not canonical JSON: its place and what is wrong with it."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if INT_MIN <= value <= INT_MAX else (place, f"is the integer {_shown(value)}, outside -2^63..2^63-1")
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, f"is {value}, which JSON cannot express; use None or a string")
    if isinstance(value, str):
        return _find_surrogate(value, place)
    if isinstance(value, (dict, list, tuple)) and depth == 0:
        return place[:40] + "...", f"is nested too deep (more than {MAX_DEPTH} levels), or contains itself"
    if isinstance(value, (list, tuple)):
        faults = (_find_fault(item, f"{place}[{index}]", depth - 1) for index, item in enumerate(value))
        return next(filter(None, faults), None)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return place, f"has the key {_shown(key)} of type {type(key).__name__}; JSON keys are strings"
            fault = _find_surrogate(key, place) or _find_fault(item, f"{place}[{key!r}]", depth - 1)
            if fault:
                return fault
        return None
    return (
        place,
        f"is of type {type(value).__name__}, which is not JSON; annotate the field with the type or return JSON values",
    )


def _shown(value: Any) -> str:
    """A value for a message; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"of {value.bit_length()} bits"
    return repr(value)


def _find_surrogate(text: str, place: str) -> tuple[str, str] | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return place, f"holds the lone surrogate in {text!r}, which is not valid Unicode"
    return None
