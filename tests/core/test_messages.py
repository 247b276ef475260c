"""`add_messages`: a chat history that grows, is corrected and pruned, and gives the same bytes for the same input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core.canonical import canonical_bytes
from lockstep.messages import REMOVE_ALL, add_messages


def message(content: str, known_as: str | None = None) -> dict[str, Any]:
    return {"role": "user", "content": content} | ({} if known_as is None else {"id": known_as})


def remove(known_as: Any) -> dict[str, Any]:
    return {"role": "remove", "id": known_as}


def contents(messages: Any) -> str:
    return "".join(one["content"] for one in messages)


def test_messages_are_appended_one_or_many() -> None:
    # given a history, when one message and then a list comes, then they stand at its end, in order
    history = add_messages([], message("a"))
    history = add_messages(history, [message("b", "2"), message("c")])
    assert history == [message("a"), message("b", "2"), message("c")]
    # and an empty update adds nothing
    assert add_messages(history, []) == history


def test_a_message_with_a_known_id_takes_that_ones_place() -> None:
    history = [message("a", "1"), message("b", "2"), message("c", "3")]
    assert add_messages(history, [message("B", "2"), message("d", "4")]) == [
        message("a", "1"),
        message("B", "2"),
        message("c", "3"),
        message("d", "4"),
    ]
    # and within one update, the last of an id wins at the place of the first
    assert contents(add_messages([], [message("x", "1"), message("y"), message("z", "1")])) == "zy"


def test_messages_without_an_id_are_never_taken_for_one_another() -> None:
    # given equal messages without an id, or with the id null
    same = [message("a"), message("a"), {**message("a"), "id": None}]
    assert add_messages(same, message("a")) == [*same, message("a")]


def test_an_id_is_never_invented() -> None:
    # given messages without ids, then none appears: a random one would make another history of the same input
    assert add_messages([message("a")], [message("b")]) == [message("a"), message("b")]


def test_a_message_can_be_removed_by_its_id() -> None:
    history = [message("a", "1"), message("b"), message("c", "3")]
    assert contents(add_messages(history, remove("1"))) == "bc"
    # and an id that is free again comes back at the end
    assert contents(add_messages(history, [remove("1"), message("A", "1")])) == "bcA"
    # and one that came in the same update can go in it
    assert contents(add_messages(history, [message("d", "4"), remove("4")])) == "abc"


def test_all_messages_before_can_be_removed() -> None:
    # given a removal of everything in the middle of an update, then only what follows it remains
    history = [message("a", "1"), message("b")]
    assert add_messages(history, [message("c"), remove(REMOVE_ALL), message("d")]) == [message("d")]
    assert add_messages([], remove(REMOVE_ALL)) == []


@pytest.mark.parametrize("gone", ["9", None])
def test_a_removal_of_a_message_that_is_not_there_is_refused(gone: Any) -> None:
    with pytest.raises(ValueError, match="no message has the id"):
        add_messages([message("a", "1"), message("b")], remove(gone))


@pytest.mark.parametrize("update", ["hello", ["hello"], [None], [[message("a")]], None, 5], ids=repr)
def test_what_is_no_message_is_refused(update: Any) -> None:
    with pytest.raises(ValueError, match="a message is a dict"):
        add_messages([], update)


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.text("ab", max_size=2)}, optional={"id": st.sampled_from("123")}
    ),
    max_size=6,
)


@given(MESSAGES, MESSAGES)
def test_it_changes_neither_argument_and_is_deterministic(current: Any, update: Any) -> None:
    # given any history and update
    before = copy.deepcopy((current, update))
    result = add_messages(current, update)
    # then both stay as they are: that is why the core gives it no copy
    assert (current, update) == before
    # and equal input gives equal bytes, and a history without any doubles of an id
    assert canonical_bytes(result) == canonical_bytes(add_messages(*copy.deepcopy(before)))
    ids = [one["id"] for one in result if "id" in one]
    assert len(ids) == len(set(ids))


@given(MESSAGES, MESSAGES, MESSAGES)
def test_updates_may_come_in_one_piece_or_in_several(history: Any, one: Any, other: Any) -> None:
    # given two updates in order, then adding them one by one is adding them at once
    assert add_messages(add_messages(history, one), other) == add_messages(history, one + other)
