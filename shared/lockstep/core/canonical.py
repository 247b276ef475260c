"""Canonical JSON: the one byte form of a value.

    json.dumps(x, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False) in UTF-8

Equal values give equal bytes on every machine and Python, so their hashes can be compared.
"""

from __future__ import annotations

import json
import math
from typing import Any

from lockstep.errors import StateError

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def canonical_bytes(value: Any, *, field: str | None = None) -> bytes:
    """The canonical bytes of a JSON value (None, bool, int, float, str, list or tuple, dict with string keys).

    Raises StateError, naming `field` and the place inside it, for anything else: other types, NaN and infinities, integers
    outside -2^63..2^63-1, keys that are no strings, lone surrogates, and nesting too deep for the encoder.
    """
    try:
        if not _keeps_its_meaning(value):
            raise _complaint(value, field)
        return _encode(value).encode()
    except (TypeError, ValueError):
        raise _complaint(value, field) from None
    except RecursionError:
        raise StateError(f"{_place(field, '')} is nested too deep, or contains itself", field=field) from None


def _keeps_its_meaning(value: Any) -> bool:
    """Whether the encoder, left alone, would neither turn a key into a string nor pass an integer that is out of range."""
    kind = type(value)
    if kind is str or kind is float or kind is bool or value is None:
        return True
    if isinstance(value, int):
        return INT_MIN <= value <= INT_MAX
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not (type(item) is str or _keeps_its_meaning(item)):
                return False
        return True
    if isinstance(value, (list, tuple)):
        return all(type(item) is str or _keeps_its_meaning(item) for item in value)
    return True


def _complaint(value: Any, field: str | None) -> StateError:
    place, why = _find_fault(value, "") or ("", "is not JSON")
    return StateError(f"{_place(field, place)} {why}", field=field)


def _place(field: str | None, place: str) -> str:
    return f"field {field!r}{' at ' + place if place else ''}" if field else f"the value{' at ' + place if place else ''}"


def _find_fault(value: Any, place: str) -> tuple[str, str] | None:
    """The first part of `value` that is not canonical JSON: its place and what is wrong with it."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if INT_MIN <= value <= INT_MAX else (place, f"is the integer {value}, outside -2^63..2^63-1")
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, f"is {value}, which JSON cannot express; use None or a string")
    if isinstance(value, str):
        return _find_surrogate(value, place)
    if isinstance(value, (list, tuple)):
        faults = (_find_fault(item, f"{place}[{index}]") for index, item in enumerate(value))
        return next(filter(None, faults), None)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return place, f"has the key {key!r} of type {type(key).__name__}; JSON keys are strings"
            fault = _find_surrogate(key, place) or _find_fault(item, f"{place}[{key!r}]")
            if fault:
                return fault
        return None
    return (
        place,
        f"is of type {type(value).__name__}, which is not JSON; annotate the field with the type or return JSON values",
    )


def _find_surrogate(text: str, place: str) -> tuple[str, str] | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return place, f"holds the lone surrogate in {text!r}, which is not valid Unicode"
    return None
