"""Options: the same ones as an object or as with_*(), each checked, and what a run may override."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal
from typing import Any

import pytest

from lockstep.core.canonical import canonical_bytes
from lockstep.core.policy import ConflictPolicy, RetryPolicy
from lockstep.errors import ConfigurationError
from lockstep.options import (
    DEFAULTS,
    Options,
    With,
    combine,
    decode_options,
    encode_options,
    with_conflict_policy,
    with_default_timeout,
    with_max_concurrent,
    with_queue_depth,
)

ALL_CHANGED = Options(
    max_concurrent=8,
    queue_depth=16,
    default_timeout_seconds=1.5,
    conflict_policy=ConflictPolicy.MERGE,
    max_steps=7,
    retry=RetryPolicy(max_attempts=5, retry_on=(ValueError, "Gone")),
    backpressure_timeout_seconds=2.5,
    deadline_seconds=3.5,
    seed=-4,
    max_payload_bytes=100,
    max_cost_usd=Decimal("0.10"),
    interrupt_before=("plan",),
    interrupt_after=("plan", "search"),
    context={"user": "anna"},
    fail_fast=False,
)


def test_the_defaults_are_those_of_the_design() -> None:
    assert Options() == DEFAULTS
    assert (DEFAULTS.in_flight, DEFAULTS.slots, DEFAULTS.queue_depth) == (64, 16, 1024)
    assert (DEFAULTS.default_timeout_seconds, DEFAULTS.conflict_policy, DEFAULTS.max_steps) == (
        300,
        ConflictPolicy.FAIL,
        10_000,
    )
    assert (DEFAULTS.retry, DEFAULTS.backpressure_timeout_seconds, DEFAULTS.deadline_seconds, DEFAULTS.seed) == (None,) * 4
    assert (DEFAULTS.max_payload_bytes, DEFAULTS.fail_fast) == (4 * 1024 * 1024, True)


def test_max_concurrent_is_both_the_items_in_flight_and_the_slots() -> None:
    assert (Options(max_concurrent=3).in_flight, Options(max_concurrent=3).slots) == (3, 3)


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("max_concurrent", 0, "an integer of at least 1"),
        ("queue_depth", 0, "an integer of at least 1"),
        ("default_timeout_seconds", 0, "seconds above 0, finite"),
        ("default_timeout_seconds", math.nan, "seconds above 0, finite"),
        ("max_steps", 0, "an integer from 1 to 2^63-1"),
        ("backpressure_timeout_seconds", 0, "seconds above 0, finite"),
        ("backpressure_timeout_seconds", -1, "seconds above 0, finite"),
        ("deadline_seconds", 0, "seconds above 0, finite"),
        ("deadline_seconds", math.nan, "seconds above 0, finite"),
        ("max_payload_bytes", 0, "an integer of at least 1"),
        ("conflict_policy", "merge", "a ConflictPolicy"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_value_and_rule(option: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options(**{option: value})
    assert caught.value.option == option and str(caught.value) == f"{option}={value!r} must be {rule}"
    # and in the same words where it comes from a with_*()
    with pytest.raises(ConfigurationError) as caught:
        combine(None, [With(option, value)])
    assert caught.value.option == option


def test_the_ends_of_each_range_are_accepted() -> None:
    assert Options(max_concurrent=1, queue_depth=1, default_timeout_seconds=0.001, max_steps=1, max_payload_bytes=1)


# --- both forms


@pytest.mark.parametrize(
    ("setting", "option", "value"),
    [
        (with_max_concurrent(8), "max_concurrent", 8),
        (with_queue_depth(16), "queue_depth", 16),
        (with_default_timeout(1.5), "default_timeout_seconds", 1.5),
        (with_conflict_policy(ConflictPolicy.MERGE), "conflict_policy", ConflictPolicy.MERGE),
    ],
)
def test_a_with_function_sets_its_option_and_nothing_else(setting: With, option: str, value: Any) -> None:
    # given a with_*(), alone or beside Options that set others
    assert combine(None, [setting]) == Options(**{option: value})
    assert combine(Options(max_steps=3), [setting]) == Options(**{option: value, "max_steps": 3})


def test_nothing_given_is_the_defaults_and_options_alone_are_kept() -> None:
    assert combine(None, []) == DEFAULTS
    assert combine(ALL_CHANGED, []) == ALL_CHANGED


@pytest.mark.parametrize(
    ("in_options", "in_with", "result"),
    [(8, 8, 8), (None, 8, 8), (8, None, 8), (None, None, None)],
    ids=["equal", "options default", "with default", "both default"],
)
def test_the_same_option_twice_is_fine_where_equal_or_one_is_the_default(in_options: Any, in_with: Any, result: Any) -> None:
    assert combine(Options(max_concurrent=in_options), [With("max_concurrent", in_with)]).max_concurrent == result


def test_a_with_function_may_repeat_the_default_beside_another_value() -> None:
    # given an Options that differs, and a with_*() with the default, in either order of with_*()
    assert combine(Options(queue_depth=16), [with_queue_depth(1024)]).queue_depth == 16
    for settings in itertools.permutations([with_queue_depth(1024), with_queue_depth(16)]):
        assert combine(None, settings).queue_depth == 16


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (Options(queue_depth=16), [with_queue_depth(17)]),
        (None, [with_queue_depth(16), with_queue_depth(17)]),
        (Options(queue_depth=16), [with_queue_depth(16), with_queue_depth(1024), with_queue_depth(17)]),
    ],
    ids=["options and with", "two withs", "among many"],
)
def test_two_different_values_are_refused_by_name(options: Options | None, settings: list[With]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        combine(options, settings)
    assert caught.value.option == "queue_depth"
    assert "queue_depth" in str(caught.value) and "16" in str(caught.value) and "17" in str(caught.value)


# --- an engine's and a run's


def test_a_run_overrides_what_it_sets_and_keeps_the_rest() -> None:
    engine = Options(max_steps=50, fail_fast=False, queue_depth=16, seed=1)
    run = Options(max_steps=5, deadline_seconds=9)
    assert engine.overridden(run) == Options(max_steps=5, fail_fast=False, queue_depth=16, seed=1, deadline_seconds=9)
    assert engine.overridden(None) is engine and engine.overridden(Options()) == engine


def test_a_queue_depth_is_no_option_of_a_run() -> None:
    engine = Options(queue_depth=16)
    # given a run that says what holds anyway, or nothing, then that is fine
    assert engine.overridden(Options(queue_depth=16)) == engine.overridden(Options()) == engine
    # and another value is refused
    with pytest.raises(ConfigurationError, match="engine or coordinator") as caught:
        engine.overridden(Options(queue_depth=17))
    assert caught.value.option == "queue_depth"


# --- as stored


def test_stored_options_are_those_that_differ_and_are_read_back() -> None:
    assert encode_options(DEFAULTS) == {} and decode_options({}) == DEFAULTS
    assert encode_options(Options(max_steps=3, conflict_policy=ConflictPolicy.LAST_WRITER_WINS)) == {
        "max_steps": 3,
        "conflict_policy": "last_writer_wins",
    }
    # given options that all differ, then they come back the same through canonical JSON
    record = json.loads(canonical_bytes(encode_options(ALL_CHANGED)))
    assert set(record) == set(Options.__struct_fields__)
    assert decode_options(record) == ALL_CHANGED


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("default_timeout_seconds", math.inf),
        ("backpressure_timeout_seconds", math.inf),
        ("deadline_seconds", math.inf),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("max_steps", 2**63),
    ],
)
def test_whatever_is_accepted_can_be_stored(option: str, value: Any) -> None:
    # given a value that canonical JSON cannot express, then it is refused by name when the options are made
    try:
        options = Options(**{option: value})
    except ConfigurationError as error:
        assert error.option == option
    else:
        # or it is stored all the same, and read back
        assert decode_options(json.loads(canonical_bytes(encode_options(options)))) == options
