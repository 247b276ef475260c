"""A committed state and its patches: any state can be rebuilt, byte for byte, without user code."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockstep.core.canonical import INT_MAX, INT_MIN, canonical_bytes
from lockstep.core.ordering import state_hash_of
from lockstep.core.state import State, apply_patches, diff
from lockstep.errors import StateError

# Small alphabets on purpose: two states drawn apart should often share keys, prefixes, and values that only Python holds equal.
SCALARS = st.sampled_from([None, True, False, 0, 1, 0.0, -0.0, 1.0, "", "a", '],"', "é", INT_MIN, INT_MAX, 1e16, 1e-7])
KEYS = st.sampled_from(["a", "b", "é", 'q"', ""])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
STATES = st.dictionaries(KEYS, VALUES, max_size=4)


def patched(*states: dict[str, Any]) -> State:
    """The last of the states, rebuilt from the first by the patches between neighbours."""
    chain = [State.of(values) for values in states]
    patches = [diff(old, new) for old, new in itertools.pairwise(chain)]
    return apply_patches(chain[0].to_bytes(), patches)


def test_a_state_keeps_per_field_the_value_its_bytes_and_their_hash() -> None:
    # given a state of two fields, written out of order
    state = State.of({"topic": "é", "notes": [1, 2.0]})
    # then each field has its canonical bytes and their digest, and the whole is one canonical object
    assert state.encoded == {"topic": '"é"'.encode(), "notes": b"[1,2.0]"}
    assert state.digests == {name: hashlib.sha256(data).digest() for name, data in state.encoded.items()}
    assert state.to_bytes() == '{"notes":[1,2.0],"topic":"é"}'.encode()
    assert state.hash() == state_hash_of(state.digests)


def test_the_empty_state_is_an_empty_object() -> None:
    assert State().to_bytes() == b"{}" and State().hash() == hashlib.sha256(b"").digest()


def test_a_change_leaves_the_state_it_starts_from_alone() -> None:
    # given a state, when one field changes and one is added
    before = State.of({"n": 1, "kept": [1]})
    after = before.changed({"n": 2, "more": None})
    # then the old state is what it was, and the new one shares the bytes that did not change
    assert before == State.of({"n": 1, "kept": [1]})
    assert json.loads(after.to_bytes()) == {"kept": [1], "more": None, "n": 2}
    assert after.encoded["kept"] is before.encoded["kept"] and after.digests["kept"] is before.digests["kept"]


def test_a_value_that_is_no_json_is_refused_by_its_field() -> None:
    with pytest.raises(StateError) as caught:
        State.of({"fine": 1}).changed({"bad": {1}})
    assert caught.value.field == "bad"


@given(STATES)
def test_the_bytes_of_a_state_are_the_canonical_bytes_of_its_dict(values: dict[str, Any]) -> None:
    # given any state, then its bytes, put together from its fields, are those of the whole dict, and are read back as the same
    state = State.of(values)
    assert state.to_bytes() == canonical_bytes(values)
    again = State.from_bytes(state.to_bytes())
    assert (again.encoded, again.digests, again.hash()) == (state.encoded, state.digests, state.hash())


@given(STATES, STATES)
@example({"n": 1}, {"n": 1.0})
@example({"n": 1}, {"n": True})
@example({"n": 0.0}, {"n": -0.0})
@example({"d": {"k": 1, "same": [0]}}, {"d": {"k": 1.0, "same": [0]}})
@example({"d": {"k": {"deep": 0.0}, "pad": "x" * 50}}, {"d": {"k": {"deep": -0.0}, "pad": "x" * 50}})
@example({"l": []}, {"l": [1]})
@example({"l": [1]}, {"l": [1, 2]})
@example({"l": [[1]]}, {"l": [[1], [1, 2]]})
@example({"l": ["]"]}, {"l": ["]", ","]})
@example({"l": [1, 2]}, {"l": [1]})
@example({"l": [1, 2]}, {"l": [1, 22]})
@example({"l": [1]}, {"l": {"a": 1}})
@example({"gone": 1, "kept": 2}, {"kept": 2})
@example({"d": {"gone": 1, "pad": "x" * 50}}, {"d": {"pad": "x" * 50}})
@example({"d": {"gone": None}}, {"d": {}})
def test_applying_the_difference_gives_the_new_state_byte_for_byte(old: dict[str, Any], new: dict[str, Any]) -> None:
    # given any two states, when the patch between them is applied to the first
    result = patched(old, new)
    # then it is the second, to the last byte and hash, although Python holds 1, 1.0 and True for equal
    expected = State.of(new)
    assert result.to_bytes() == expected.to_bytes()
    assert result.hash() == expected.hash()


@given(STATES, STATES)
@example({"n": 1}, {"n": 1.0})
@example({"n": True}, {"n": 1})
@example({"n": 0.0}, {"n": -0.0})
def test_a_changed_state_is_the_state_made_anew(old: dict[str, Any], changes: dict[str, Any]) -> None:
    # given any state and any changes, then encoding only what changed gives what encoding everything gives
    before, after = State.of(old), State.of(old).changed(changes)
    assert after.to_bytes() == canonical_bytes({**old, **changes})
    assert after.digests == State.of({**old, **changes}).digests
    assert apply_patches(before.to_bytes(), [diff(before, after)]).to_bytes() == after.to_bytes()
    # and a patch leads from a state to the next one without the rest of it, and leaves the old one as it was
    for one, other in ((before, after), (after, before)):
        kept = one.to_bytes()
        patched = one.patched(diff(one, other))
        assert (patched.to_bytes(), patched.digests) == (other.to_bytes(), other.digests)
        assert canonical_bytes(patched.values) == canonical_bytes(other.values)
        assert canonical_bytes(one.values) == one.to_bytes() == kept


@st.composite
def grown(draw: st.DrawFn, values: dict[str, Any]) -> dict[str, Any]:
    """A state like this one after a step: fields changed a little, appended to, deleted or replaced."""
    result = copy.deepcopy(values)
    for name in draw(st.lists(KEYS, max_size=3)):
        value = result.get(name)
        match draw(st.sampled_from(["append", "key", "unkey", "delete", "set"])):
            case "append" if isinstance(value, list):
                value.append(draw(VALUES))
            case "key" if isinstance(value, dict):
                value[draw(KEYS)] = draw(VALUES)
            case "unkey" if isinstance(value, dict):
                value.pop(draw(KEYS), None)
            case "delete":
                result.pop(name, None)
            case _:
                result[name] = draw(VALUES)
    return result


@given(st.data())
def test_a_chain_of_patches_leads_to_every_state_on_the_way(data: st.DataObject) -> None:
    # given a run of several steps, each of which changes the state a little
    states = [data.draw(STATES)]
    for _ in range(data.draw(st.integers(1, 5))):
        states.append(data.draw(grown(states[-1])))
    # then the patches up to any step, applied to the snapshot, give that step's state
    for upto in range(1, len(states) + 1):
        assert patched(*states[:upto]).to_bytes() == canonical_bytes(states[upto - 1])


@given(STATES, STATES)
def test_a_patch_is_canonical_json_and_deterministic(old: dict[str, Any], new: dict[str, Any]) -> None:
    # given two states, also with their keys inserted the other way round
    patch = diff(State.of(old), State.of(new))
    backwards = diff(State.of(dict(reversed(old.items()))), State.of(dict(reversed(new.items()))))
    # then the patch is one and the same, and canonical
    assert patch == backwards == canonical_bytes(json.loads(patch))


@given(STATES)
def test_no_change_is_an_empty_patch(values: dict[str, Any]) -> None:
    # given a state and an equal one, each built anew
    assert diff(State.of(values), State.of(copy.deepcopy(values))) == b"[]"


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({}, {"n": None}, [["set", "n", None]]),
        ({"n": 1}, {}, [["delete", "n"]]),
        ({"l": [1]}, {"l": [1, 2, 3]}, [["append", "l", [2, 3]]]),
        ({"l": []}, {"l": [1]}, [["set", "l", [1]]]),
        ({"l": [1, 2]}, {"l": [2]}, [["set", "l", [2]]]),
        (
            {"d": {"old": 1, "n": 1, "pad": "x" * 99}},
            {"d": {"n": 2, "pad": "x" * 99, "new": 3}},
            [["merge", "d", {"n": 2, "new": 3}, ["old"]]],
        ),
        ({"d": {"n": 1}}, {"d": {"n": 2}}, [["set", "d", {"n": 2}]]),
        ({"b": 1, "a": 1}, {"b": 2, "c": 3}, [["delete", "a"], ["set", "b", 2], ["set", "c", 3]]),
    ],
)
def test_each_kind_of_change_has_its_documented_operation(old: Any, new: Any, patch: list[Any]) -> None:
    assert diff(State.of(old), State.of(new)) == canonical_bytes(patch)
    assert apply_patches(canonical_bytes(old), [canonical_bytes(patch)]).to_bytes() == canonical_bytes(new)


def test_an_append_costs_what_was_appended_not_what_was_there() -> None:
    # given a list of 400 KB, to which a step appends 1 KB
    old = ["x" * 1000] * 400
    added = "y" * 1000
    before = State.of({"notes": old, "topic": "t"})
    patch = diff(before, before.changed({"notes": [*old, added]}))
    # then the patch holds the 1 KB and a few dozen bytes
    assert len(before.encoded["notes"]) > 400_000
    assert len(added) < len(patch) < len(added) + 50


def test_a_changed_key_costs_that_key_not_the_dict() -> None:
    # given a dict of 400 KB, of which a step changes one key and deletes another
    old = {f"key-{number}": "x" * 1000 for number in range(400)}
    new = {**old, "key-7": "y"}
    del new["key-9"]
    before = State.of({"table": old})
    assert len(diff(before, before.changed({"table": new}))) < 100


def test_an_operation_of_a_newer_release_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'frobnicate'.*newer release"):
        apply_patches(b"{}", [b'[["frobnicate","n",1]]'])
