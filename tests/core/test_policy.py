"""RetryPolicy: when a failed item runs again, and after how long, the same on every machine."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core.canonical import canonical_bytes
from lockstep.core.policy import NEVER_RETRIED, ConflictPolicy, RetryPolicy
from lockstep.core.records import Failure
from lockstep.errors import ERRORS, ConfigurationError

PATH = bytes(range(32))


def failure_of(error: BaseException) -> Failure:
    """The failure as a worker would report it."""
    kinds = tuple(kind.__name__ for kind in type(error).__mro__)
    return Failure({"type": type(error).__name__, "message": str(error)}, kinds)


FAILURE = failure_of(KeyError("x"))


def test_the_pause_grows_by_the_factor_up_to_its_bound() -> None:
    # given no jitter, then the pauses before attempts 2, 3, ... are 0.5, 1.5, 4.5 and then the bound
    policy = RetryPolicy(max_attempts=6, initial_seconds=0.5, factor=3, max_seconds=10, jitter=0)
    assert [policy.pause_seconds(FAILURE, attempt, PATH) for attempt in range(1, 6)] == [0.5, 1.5, 4.5, 10, 10]


def test_the_last_attempt_is_the_last() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert policy.pause_seconds(FAILURE, 2, PATH) is not None
    assert policy.pause_seconds(FAILURE, 3, PATH) is None
    assert policy.pause_seconds(FAILURE, 4, PATH) is None
    assert RetryPolicy(max_attempts=1).pause_seconds(FAILURE, 1, PATH) is None


@given(
    st.floats(0, 100),
    st.floats(1, 10),
    st.floats(0, 1000),
    st.floats(0, 1),
    st.integers(1, 50),
    st.binary(min_size=32, max_size=32),
)
def test_jitter_lengthens_the_pause_by_at_most_its_fraction(
    initial: float, factor: float, bound: float, jitter: float, attempt: int, path: bytes
) -> None:
    # given any policy, attempt and item
    policy = RetryPolicy(max_attempts=99, initial_seconds=initial, factor=factor, max_seconds=bound, jitter=jitter)
    pause = policy.pause_seconds(FAILURE, attempt, path)
    base = min(bound, initial * factor ** (attempt - 1))
    # then the pause lies between the base and the base and its jitter, and is the same when asked again: after a restart
    assert pause is not None and base <= pause <= base * (1 + jitter)
    assert policy.pause_seconds(FAILURE, attempt, path) == pause


def test_jitter_is_the_documented_fraction_of_item_and_attempt() -> None:
    # given a policy whose pause is 1 s before jitter, then the rest is the fraction of SHA256("jitter" || path || attempt)
    policy = RetryPolicy(max_attempts=9, initial_seconds=1, factor=1, jitter=1)
    digest = hashlib.sha256(b"jitter" + PATH + b"\0\0\0\x02").digest()
    assert policy.pause_seconds(FAILURE, 2, PATH) == 1 + int.from_bytes(digest[:8], "big") / 2**64
    # and siblings, and attempts, do not come back all at once
    pauses = {policy.pause_seconds(FAILURE, attempt, bytes([item]) * 32) for attempt in (1, 2) for item in range(20)}
    assert len(pauses) == 40


def test_an_attempt_far_beyond_the_bound_still_has_a_pause() -> None:
    # given a policy of very many attempts, whose power would pass the largest float
    policy = RetryPolicy(max_attempts=100_000, jitter=0)
    assert policy.pause_seconds(FAILURE, 5_000, PATH) == policy.max_seconds
    # and a policy of no pauses has none there either
    assert RetryPolicy(max_attempts=100_000, initial_seconds=0).pause_seconds(FAILURE, 5_000, PATH) == 0


@pytest.mark.parametrize(
    ("retry_on", "error", "is_retried"),
    [
        ((), ValueError(), True),
        ((ValueError,), ValueError(), True),
        (("ValueError",), ValueError(), True),
        ((ValueError,), UnicodeDecodeError("utf-8", b"", 0, 1, ""), True),
        (("OSError",), ConnectionResetError(), True),
        ((LookupError, "OSError"), KeyError(), True),
        ((ValueError,), KeyError(), False),
        (("ConnectionResetError",), OSError(), False),
    ],
    ids=repr,
)
def test_retry_on_names_classes_whose_subclasses_count(retry_on: Any, error: Exception, is_retried: bool) -> None:
    # given classes or their names, when an error of one, of a subclass, or of neither comes
    pause = RetryPolicy(retry_on=retry_on).pause_seconds(failure_of(error), 1, PATH)
    assert (pause is not None) is is_retried


def test_classes_are_kept_as_names() -> None:
    # given classes, then the policy holds what can be stored, and equals the one made of names
    policy = RetryPolicy(retry_on=(ValueError, "app.Gone"))
    assert policy.retry_on == ("ValueError", "app.Gone")
    assert policy == RetryPolicy(retry_on=("ValueError", "app.Gone"))


@pytest.mark.parametrize("name", sorted(NEVER_RETRIED))
def test_our_own_errors_that_no_attempt_can_cure_are_not_retried(name: str) -> None:
    # given one of them, then not even a policy that asks for it tries again
    error = ERRORS[name]("no")
    assert RetryPolicy().pause_seconds(failure_of(error), 1, PATH) is None
    assert RetryPolicy(retry_on=(name, "Exception")).pause_seconds(failure_of(error), 1, PATH) is None


def test_a_timeout_is_retried() -> None:
    assert RetryPolicy().pause_seconds(failure_of(ERRORS["NodeTimeoutError"]("slow")), 1, PATH) is not None


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("max_attempts", 0, "at least 1"),
        ("initial_seconds", -0.1, "at least 0"),
        ("initial_seconds", math.nan, "at least 0"),
        ("factor", 0.9, "at least 1"),
        ("max_seconds", -1, "at least 0"),
        ("jitter", -0.1, "from 0 to 1"),
        ("jitter", 1.1, "from 0 to 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(option: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetryPolicy(**{option: value})  # type: ignore[arg-type]
    assert caught.value.option == option
    assert f"{option}={value!r}" in str(caught.value) and rule in str(caught.value)


def test_the_ends_of_each_range_are_accepted() -> None:
    policy = RetryPolicy(max_attempts=1, initial_seconds=0, factor=1, max_seconds=0, jitter=1)
    assert msgspec.structs.replace(policy, jitter=0, max_attempts=2).pause_seconds(FAILURE, 1, PATH) == 0


@pytest.mark.parametrize("option", ["initial_seconds", "factor", "max_seconds", "jitter"])
def test_whatever_is_accepted_can_be_stored(option: str) -> None:
    # given an endless pause, then it is refused when the policy is made, or is canonical JSON, which the graph hash needs
    try:
        policy = RetryPolicy(**{option: math.inf})  # type: ignore[arg-type]
    except ConfigurationError as error:
        assert error.option == option
    else:
        assert canonical_bytes(msgspec.to_builtins(policy))


def test_conflict_policies_are_their_names() -> None:
    assert [str(policy) for policy in ConflictPolicy] == ["fail", "last_writer_wins", "merge"]
