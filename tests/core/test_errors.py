"""The errors: one tree, drawn in the docstring, whose members survive pickling and the database."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import pytest

import lockstep.errors
from lockstep.core.canonical import canonical_bytes
from lockstep.errors import ERRORS, LockstepError

CLASSES = pytest.mark.parametrize("kind", list(ERRORS.values()), ids=list(ERRORS))

# One value that each kind of annotation accepts; all fields are optional, so each also accepts None.
SAMPLES: dict[str, Any] = {
    "str | None": "text",
    "int | None": 3,
    "bool | None": True,
    "float | None": 1.5,
    "list[str] | None": ["a", "b"],
    "list[Any] | None": [{"id": "i", "value": None}, 1],
}


def annotation_of(kind: type[LockstepError], name: str) -> str:
    """The annotation of a field, as it is written."""
    return next(str(klass.__annotations__[name]) for klass in kind.__mro__ if name in vars(klass).get("__annotations__", {}))


def full(kind: type[LockstepError]) -> LockstepError:
    """An error of this class with every field set."""
    return kind("what happened; what to do", **{name: SAMPLES[annotation_of(kind, name)] for name in kind.field_names()})


def state_of(error: LockstepError) -> tuple[type, str, dict[str, Any]]:
    return type(error), str(error), error.fields


@CLASSES
def test_an_error_survives_pickling_and_copying(kind: type[LockstepError]) -> None:
    # given an error with all fields, and one with none
    for error in (full(kind), kind("only a message"), kind()):
        # when it crosses a process, then it is the same class with the same message and fields
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert state_of(pickle.loads(pickle.dumps(error, protocol))) == state_of(error)
        assert state_of(copy.copy(error)) == state_of(error)


@CLASSES
def test_an_error_survives_the_way_through_the_database(kind: type[LockstepError]) -> None:
    # given an error with all fields, and one with none
    for error in (full(kind), kind("only a message")):
        # when its record is stored as canonical JSON and read back
        record = error.to_record()
        again = LockstepError.from_record(json.loads(canonical_bytes(record)))
        # then it is the same error, and writes the same record
        assert state_of(again) == state_of(error) and again.to_record() == record
        assert record["type"] == kind.__name__ and record["message"] == str(error)


@CLASSES
def test_every_field_can_be_set_read_and_left_out(kind: type[LockstepError]) -> None:
    error = full(kind)
    # given all fields, then each can be read, also those of where it happened
    assert {"run_id", "step_id", "node_id", "attempt"} <= set(kind.field_names())
    assert set(error.fields) == set(kind.field_names())
    assert all(getattr(error, name) == value for name, value in error.fields.items())
    # and those that are not given are None
    assert kind("x").fields == {} and all(getattr(kind("x"), name) is None for name in kind.field_names())


@CLASSES
def test_a_field_that_a_class_does_not_have_is_refused(kind: type[LockstepError]) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} has no field 'colour'"):
        kind("x", colour="red")


@CLASSES
def test_every_class_says_what_it_means(kind: type[LockstepError]) -> None:
    # given a class, then it has a docstring of its own, which names the fields that it adds
    own = vars(kind).get("__doc__") or ""
    assert own
    if kind is not LockstepError:
        for name in vars(kind).get("__annotations__", {}):
            assert f"`{name}`" in own, f"{kind.__name__} does not explain {name}"


def drawn_tree() -> dict[str, str | None]:
    """The tree of the module's docstring: per class its parent."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for text in (lockstep.errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+Error)\b", text)
        if found:
            depth, name = len(found[1]), found[2]
            above = [(other, parent) for other, parent in above if other < depth]
            assert name not in parents, f"{name} is drawn twice"
            parents[name] = above[-1][1] if above else None
            above.append((depth, name))
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    # given the drawing, then it has each class once, under its parent, and nothing else
    expected = {
        name: next((base.__name__ for base in kind.__bases__ if issubclass(base, LockstepError)), None)
        for name, kind in ERRORS.items()
    }
    assert drawn_tree() == expected


def test_the_errors_of_the_design_are_all_there() -> None:
    # given the list in DESIGN 7
    named = """NoProgressError ReplayMismatchError BackpressureError MaxStepsExceededError ConflictError StateError RouteError
        ReducerError NodeFailedError NodeTimeoutError PoisonError RunInterruptedError RunCancelledError RunExistsError
        RunNotFoundError UnknownGraphError GraphVersionError BudgetExceededError WaitTimeoutError StoreUnavailableError
        BrokerUnavailableError ConfigurationError"""
    # and what has come since: errors of a relay, of a run's file, of a thread, and of subgraphs
    since = {"PublishError", "ArchiveError", "ThreadBusyError", "SubgraphError", "ParentEndedError"}
    assert set(named.split()) | {"LockstepError"} | since == set(ERRORS)


def test_a_wait_that_timed_out_is_also_a_timeout_error() -> None:
    # given code that catches Python's own TimeoutError
    with pytest.raises(TimeoutError, match=r"^not yet$"):
        raise lockstep.errors.WaitTimeoutError("not yet", timeout_seconds=1.0)


def test_a_node_that_timed_out_is_a_node_that_failed() -> None:
    assert issubclass(lockstep.errors.NodeTimeoutError, lockstep.errors.NodeFailedError)


def test_a_record_of_a_newer_release_is_still_an_error() -> None:
    # given a record with a field that this release does not have, and one of a class that it does not have
    known = LockstepError.from_record({"type": "StateError", "message": "m", "field": "notes", "colour": "red"})
    unknown = LockstepError.from_record({"type": "FutureError", "message": "m", "run_id": "r", "colour": "red"})
    # then what is known is kept
    assert state_of(known) == (lockstep.errors.StateError, "m", {"field": "notes"})
    assert state_of(unknown) == (LockstepError, "m", {"run_id": "r"})


def test_a_place_is_filled_in_where_it_was_not_known() -> None:
    # given an error raised deep in the core, with a step but without a run
    error = lockstep.errors.RouteError("m", step_id=3)
    # when the caller adds what it knows, then what was known stays
    assert error.located(run_id="r", step_id=9, node_id="n") is error
    assert error.fields == {"run_id": "r", "step_id": 3, "node_id": "n"}
    # and a zero is known too
    assert lockstep.errors.RouteError("m", step_id=0).located(step_id=9).step_id == 0


def test_a_zero_or_empty_field_is_a_field_that_is_set() -> None:
    assert lockstep.errors.RouteError("m", step_id=0, target="").fields == {"step_id": 0, "target": ""}
