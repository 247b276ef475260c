"""Canonical JSON: equal values give equal bytes, and what has no canonical form is refused by name and place."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core.canonical import INT_MAX, INT_MIN, MAX_DEPTH, canonical_bytes
from lockstep.core.records import Finished, Route, Write
from lockstep.errors import StateError
from lockstep.wire import decode_outcome, encode_outcome

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(INT_MIN, INT_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=20
)


def refusal_of(value: Any, field: str | None = "notes") -> StateError:
    with pytest.raises(StateError) as caught:
        canonical_bytes(value, field=field)
    return caught.value


def test_the_golden_vector_of_the_design() -> None:
    # given the value of DESIGN 3, its keys out of order, its floats as Python reads them
    value = json.loads('{"é":1e16,"a":1e-7,"b":-0.0,"c":1.5e-05,"z":9007199254740993}')
    # when it is encoded, then the bytes are those of the design: sorted, UTF-8, floats as repr, -0.0 kept, 2^53+1 exact
    expected = '{"a":1e-07,"b":-0.0,"c":1.5e-05,"z":9007199254740993,"é":1e+16}'
    assert canonical_bytes(value) == expected.encode()


def test_keys_sort_by_code_point_not_by_utf16() -> None:
    # given two keys whose order differs between code points and UTF-16 units (RFC 8785 would sort them the other way)
    value = {"\U0001f600": 1, "\ufb33": 2, "b": 3, "B": 4}
    # when encoded, then code points decide
    assert canonical_bytes(value) == '{"B":4,"b":3,"\ufb33":2,"\U0001f600":1}'.encode()


def test_kinds_that_python_holds_equal_keep_their_own_bytes() -> None:
    # given values that compare equal in Python, then their bytes differ, so that no change is lost
    assert [canonical_bytes(value) for value in (1, 1.0, True)] == [b"1", b"1.0", b"true"]
    assert [canonical_bytes(value) for value in (0, 0.0, -0.0, False)] == [b"0", b"0.0", b"-0.0", b"false"]


@pytest.mark.parametrize("number", [INT_MIN, INT_MAX, 0])
def test_the_ends_of_the_integer_range_are_accepted(number: int) -> None:
    assert canonical_bytes({"n": [number]}) == b'{"n":[%d]}' % number


def test_a_tuple_is_a_list_and_enums_are_their_values() -> None:
    # given values that json knows as strings, integers and arrays, when encoded, then they look just like these
    class Colour(StrEnum):
        RED = "red"

    class Size(IntEnum):
        BIG = 3

    assert canonical_bytes((1, ("a",), Colour.RED, Size.BIG)) == b'[1,["a"],"red",3]'


CIRCULAR_LIST: list[Any] = []
CIRCULAR_LIST.append(CIRCULAR_LIST)
CIRCULAR_DICT: dict[str, Any] = {}
CIRCULAR_DICT["self"] = CIRCULAR_DICT


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        ({"a": [0, math.nan]}, "['a'][1]", "is nan"),
        ({"a": {"b": math.inf}}, "['a']['b']", "is inf"),
        ([[-math.inf]], "[0][0]", "is -inf"),
        ({"n": INT_MAX + 1}, "['n']", "is the integer 9223372036854775808"),
        (["x", INT_MIN - 1], "[1]", "is the integer -9223372036854775809"),
        ({"a": [{1: "x"}]}, "['a'][0]", "has the key 1 of type int"),
        ({"a": {None: "x"}}, "['a']", "has the key None of type NoneType"),
        ({"a": {(1, 2): "x"}}, "['a']", "has the key (1, 2) of type tuple"),
        ({"a": ["ok", "bad \ud800"]}, "['a'][1]", "lone surrogate"),
        ({"a": {"key \udfff": 1}}, "['a']", "lone surrogate"),
        ({"a": [{1, 2}]}, "['a'][0]", "is of type set"),
        ({"a": {"b": object()}}, "['a']['b']", "is of type object"),
        ([b"bytes"], "[0]", "is of type bytes"),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, "['at']", "is of type datetime"),
    ],
)
def test_a_refused_value_is_named_with_its_field_and_place(value: Any, place: str, reason: str) -> None:
    # given a value of which one part has no canonical form
    # when it is encoded for the field "notes", then the error names the field, the place in it, and what is wrong there
    error = refusal_of(value)
    assert error.field == "notes"
    assert str(error).startswith(f"field 'notes' at {place} ")
    assert reason in str(error)
    # and without a field, it still names the place
    assert str(refusal_of(value, field=None)).startswith(f"the value at {place} ")


def test_the_whole_value_may_be_what_is_refused() -> None:
    # given a value that is wrong itself, then there is no place to name
    assert str(refusal_of(math.nan)).startswith("field 'notes' is nan")
    assert str(refusal_of({1}, field=None)).startswith("the value is of type set")


@pytest.mark.parametrize("value", [CIRCULAR_LIST, CIRCULAR_DICT], ids=["list", "dict"])
def test_a_value_that_contains_itself_is_refused(value: Any) -> None:
    error = refusal_of(value)
    assert error.field == "notes"
    assert "'notes'" in str(error) and "contains itself" in str(error)


def nested(wrap: Callable[[Any], Any], leaf: Any, depth: int) -> Any:
    value = leaf
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS: dict[str, Callable[[Any], Any]] = {"list": lambda inner: [inner], "dict": lambda inner: {"a": inner}}


@pytest.mark.parametrize("kind", WRAPS)
def test_too_deep_a_value_is_refused(kind: str) -> None:
    # given a value nested deeper than any encoder's stack
    error = refusal_of(nested(WRAPS[kind], 1, 100_000))
    # then it is refused by name, and the process lives
    assert error.field == "notes" and "too deep" in str(error)


def is_accepted(value: Any) -> bool:
    try:
        canonical_bytes(value)
    except StateError:
        return False
    return True


@pytest.mark.parametrize("kind", WRAPS)
def test_the_bound_on_nesting_is_exact(kind: str) -> None:
    # given as many levels as are allowed, and one more
    assert is_accepted(nested(WRAPS[kind], 1, MAX_DEPTH))
    refused = nested(WRAPS[kind], [] if kind == "list" else {}, MAX_DEPTH)
    # then the one too many is refused, even where it is empty
    assert f"more than {MAX_DEPTH} levels" in str(refusal_of(refused))


def test_the_deepest_value_of_a_field_fits_the_envelopes_it_travels_in() -> None:
    # given a value as deep as a field accepts, written by a node and sent on to another
    value = nested(WRAPS["list"], 1, MAX_DEPTH)
    writes, route = (Write("notes", value),), Route("next", canonical_bytes(value))
    # then it comes through the outcome in which it is journalled
    finished, _ = decode_outcome(encode_outcome(writes, (route,), ()))
    assert finished == Finished(writes, (route,))


def deepest_accepted(wrap: Callable[[Any], Any]) -> int:
    """How deep a good value may be nested."""
    low, high = 1, 2_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_accepted(nested(wrap, 1, middle)) else (low, middle)
    return low


@pytest.mark.parametrize("kind", WRAPS)
@pytest.mark.parametrize("leaf", [math.nan, "\ud800"], ids=["nan", "surrogate"])
def test_a_bad_leaf_at_any_depth_is_a_state_error(kind: str, leaf: Any) -> None:
    # given a bad leaf at each depth around the one from which on the nesting itself is refused
    border = deepest_accepted(WRAPS[kind])
    for depth in (1, *range(border - 10, border + 10)):
        # then it is always a StateError, never the interpreter's own
        refusal_of(nested(WRAPS[kind], leaf, depth))


def test_what_is_accepted_does_not_depend_on_how_deep_the_caller_stands() -> None:
    # given the deepest nesting that is accepted here
    value = nested(WRAPS["list"], 1, deepest_accepted(WRAPS["list"]))

    def from_below(frames: int) -> bool:
        return is_accepted(value) if frames == 0 else from_below(frames - 1)

    # then it is accepted as well where the stack is higher: a worker and a coordinator must agree on what a value is
    assert from_below(100)


@pytest.mark.parametrize("value", [10**5000, {"a": -(10**5000)}, {10**5000: 1}], ids=["value", "nested", "key"])
def test_an_integer_too_long_to_print_is_refused_like_any_other(value: Any) -> None:
    # given an integer that Python refuses to turn into text (over 4,300 digits), then the error is ours all the same
    assert refusal_of(value).field == "notes"


@given(JSON_VALUES)
def test_it_is_json_dumps_as_the_design_writes_it(value: Any) -> None:
    # given any JSON value, then the bytes are those of the formula in DESIGN 3
    expected = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    assert canonical_bytes(value) == expected.encode("utf-8")


@given(JSON_VALUES)
def test_decoding_and_encoding_again_gives_the_same_bytes(value: Any) -> None:
    # given the bytes of any JSON value, when they are read and written again, then nothing has changed: not a digit, not a sign
    data = canonical_bytes(value)
    again = json.loads(data)
    assert canonical_bytes(again) == data
    assert again == value


def shuffled(value: Any, random_source: random.Random) -> Any:
    """The same value with the keys of every dict inserted in another order."""
    if isinstance(value, dict):
        entries = list(value.items())
        random_source.shuffle(entries)
        return {key: shuffled(item, random_source) for key, item in entries}
    return [shuffled(item, random_source) for item in value] if isinstance(value, list) else value


@given(JSON_VALUES, st.randoms(use_true_random=False))
def test_the_order_of_insertion_plays_no_part(value: Any, random_source: random.Random) -> None:
    # given one value built in two orders, then the bytes are equal
    assert canonical_bytes(shuffled(value, random_source)) == canonical_bytes(value)
