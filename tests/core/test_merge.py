"""The ordered fold: reducers, conflicts, Overwrite, and values that are typed for the author and JSON for everyone else."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import operator
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest

from lockstep.core.canonical import canonical_bytes
from lockstep.core.merge import Contribution, Field, Schema, fold
from lockstep.core.policy import ConflictPolicy
from lockstep.core.records import Write
from lockstep.core.state import State, apply_patches, diff
from lockstep.errors import ConflictError, ReducerError, StateError
from lockstep.messages import add_messages
from lockstep.schema import schema_of

FAIL, LAST, MERGE = ConflictPolicy.FAIL, ConflictPolicy.LAST_WRITER_WINS, ConflictPolicy.MERGE


def plain(*names: str, **reduced: Callable[[Any, Any], Any]) -> Schema:
    """A schema of plain fields, those given by keyword with a reducer of the user's; none has a value in S(0)."""
    fields = {name: Field(name=name) for name in names}
    fields |= {name: Field(name=name, reducer=f, reducer_name=f"tests.{f.__name__}") for name, f in reduced.items()}
    return Schema(fields)


def writes(node_id: str, *changes: dict[str, Any], overwrite: bool = False) -> Contribution:
    return node_id, [Write(name, value, overwrite) for change in changes for name, value in change.items()]


def folded(schema: Schema, state: dict[str, Any], *contributions: Contribution, policy: ConflictPolicy = FAIL) -> Any:
    """The values after the fold, as they are read back from their bytes."""
    return json.loads(fold(schema, policy, State.of(state), contributions).to_bytes())


def joined(current: Any, update: Any) -> Any:
    return f"{current}{update}"


def concatenated(current: list[Any], update: list[Any]) -> list[Any]:
    return current + update


# --- reducers


def test_a_reducer_folds_the_writes_in_the_given_order() -> None:
    # given a reducer that is not commutative, a value, and three contributions
    schema = plain(text=joined)
    abc = [writes(node_id, {"text": node_id}) for node_id in "abc"]
    # then they fold from the left, in the order in which they are given: ascending order_key
    assert folded(schema, {"text": ">"}, *abc) == {"text": ">abc"}
    assert folded(schema, {"text": ">"}, *reversed(abc)) == {"text": ">cba"}


def test_a_reducer_sees_the_accumulated_value_first_and_the_update_second() -> None:
    seen: list[tuple[Any, Any]] = []

    def spy(current: int, update: int) -> int:
        seen.append((current, update))
        return current * 10 + update

    folded(plain(n=spy), {"n": 1}, writes("a", {"n": 2}), writes("b", {"n": 3}))
    assert seen == [(1, 2), (12, 3)]


def test_all_writes_of_one_item_to_a_reduced_field_fold() -> None:
    # given a node that returned a list of two dicts
    contribution = writes("a", {"notes": [1]}, {"notes": [2]})
    assert folded(plain(notes=concatenated), {"notes": [0]}, contribution) == {"notes": [0, 1, 2]}


def test_fields_that_nobody_writes_stay_as_they_are() -> None:
    # given a state of two fields, when one is written
    before = State.of({"kept": {"deep": [1]}, "n": 1})
    after = fold(plain("kept", "n"), FAIL, before, [writes("a", {"n": 2})])
    # then the other keeps its bytes, not only its value
    assert after.encoded["kept"] is before.encoded["kept"]
    assert after.encoded["n"] == b"2" and before.encoded["n"] == b"1"


def test_no_writes_change_nothing() -> None:
    state = State.of({"n": 1})
    assert fold(plain("n"), FAIL, state, [("a", ()), ("b", ())]) == state


class Zeros(TypedDict, total=False):
    listed: Annotated[list[str], operator.add]
    keyed: Annotated[dict[str, int], operator.or_]
    counted: Annotated[int, operator.add]
    weighed: Annotated[float, operator.add]
    text: Annotated[str, operator.add]
    flag: Annotated[bool, operator.or_]
    tags: Annotated[set[str], operator.or_]
    price: Annotated[decimal.Decimal, operator.add]
    history: Annotated[list[dict[str, Any]], add_messages]
    bare: Annotated[list, operator.add]  # type: ignore[type-arg]
    plain: list[str]


def test_reduced_fields_begin_as_the_empty_value_of_their_type() -> None:
    # given one reduced field of each type, and one field without a reducer
    # then S(0) before the input holds T() for each, and nothing for the plain one
    assert json.loads(schema_of(Zeros, None, {}).initial().to_bytes()) == {
        "listed": [],
        "keyed": {},
        "counted": 0,
        "weighed": 0.0,
        "text": "",
        "flag": False,
        "tags": [],
        "price": "0",
        "history": [],
        "bare": [],
    }


@dataclasses.dataclass
class Defaults:
    topic: str
    tries: int = 3
    labels: list[str] = dataclasses.field(default_factory=lambda: ["new"])
    due: datetime.date = datetime.date(2026, 1, 2)
    seen: Annotated[list[int], operator.add] = dataclasses.field(default_factory=lambda: [7])


def test_declared_defaults_are_materialised_also_before_t() -> None:
    # given a dataclass with defaults, of which one is typed and one has a reducer
    schema = schema_of(Defaults, None, {})
    assert json.loads(schema.initial().to_bytes()) == {"tries": 3, "labels": ["new"], "due": "2026-01-02", "seen": [7]}
    # then the reducer folds into the default
    after = fold(schema, FAIL, schema.initial(), [writes("a", {"seen": [8]})])
    assert after.values["seen"] == [7, 8]


def latest(current: datetime.datetime, update: datetime.datetime) -> datetime.datetime:
    return max(current, update)


class NoZero(TypedDict, total=False):
    at: Annotated[datetime.datetime, latest]
    mode: Annotated[Literal["x", "y"], joined]
    number: Annotated[int | None, operator.add]


def test_the_first_write_is_taken_as_it_is_where_there_is_no_empty_value() -> None:
    # given reduced fields whose type cannot be made from nothing
    schema = schema_of(NoZero, None, {})
    assert schema.initial().encoded == {}
    # when two items write, then the first value starts the fold, and the reducer joins the second to it
    late, early = "2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z"
    after = fold(schema, FAIL, State(), [writes("a", {"at": late, "number": 1}), writes("b", {"at": early, "number": 5})])
    assert after.values == {"at": late, "number": 6}
    # and one write alone never meets the reducer
    assert fold(schema, FAIL, State(), [writes("a", {"mode": "x"})]).values == {"mode": "x"}


# --- conflicts


def test_two_items_that_write_a_plain_field_are_a_conflict_by_default() -> None:
    with pytest.raises(ConflictError) as caught:
        folded(plain("topic"), {}, writes("b", {"topic": 1}), writes("x", {}), writes("a", {"topic": 2}))
    # then the error names the field, the writers in order, and the remedies
    assert (caught.value.field, caught.value.writers) == ("topic", ["b", "a"])
    message = str(caught.value)
    assert "'topic'" in message and "(b, a)" in message and "Annotated[" in message and "ConflictPolicy" in message


def test_equal_values_are_a_conflict_too() -> None:
    # given two items that happen to write the same, then the rule does not depend on the values
    with pytest.raises(ConflictError):
        folded(plain("topic"), {}, writes("a", {"topic": 1}), writes("b", {"topic": 1}))


def test_two_items_of_one_node_are_two_writers() -> None:
    # given two Sends to one node
    with pytest.raises(ConflictError) as caught:
        folded(plain("topic"), {}, writes("w", {"topic": 1}), writes("w", {"topic": 2}))
    assert caught.value.writers == ["w", "w"] and str(caught.value).startswith("2 items of one step (w)")


@pytest.mark.parametrize("policy", list(ConflictPolicy))
def test_one_item_that_writes_a_field_twice_is_no_conflict_and_its_last_wins(policy: ConflictPolicy) -> None:
    assert folded(plain("topic"), {}, writes("a", {"topic": 1}, {"topic": 2}), policy=policy) == {"topic": 2}


def test_the_last_writer_wins_by_order_key_with_its_own_last_write() -> None:
    # given three writers, of which the first and the last write twice
    three = [writes("c", {"t": 1}, {"t": 2}), writes("b", {"t": 3}), writes("a", {"t": 4}, {"t": 5})]
    # then the last given, the highest order_key, wins with its last write
    assert folded(plain("t"), {}, *three, policy=LAST) == {"t": 5}
    assert folded(plain("t"), {}, *reversed(three), policy=LAST) == {"t": 2}


def test_the_policy_does_not_touch_fields_with_a_reducer() -> None:
    for policy in ConflictPolicy:
        assert folded(plain(t=joined), {"t": ""}, writes("a", {"t": 1}), writes("b", {"t": 2}), policy=policy) == {"t": "12"}


def test_merge_joins_the_writes_in_order_with_the_function_of_the_field() -> None:
    # given a field with a join that is not commutative
    schema = Schema({"t": Field(name="t", merge=joined)})
    two = [writes("a", {"t": "0"}, {"t": "1"}), writes("b", {"t": "2"}), writes("c", {"t": "3"})]
    # then it joins each item's last write, in order; what was committed before plays no part
    assert folded(schema, {"t": "old"}, *two, policy=MERGE) == {"t": "123"}
    # and a single writer just sets the field
    assert folded(schema, {"t": "old"}, two[1], policy=MERGE) == {"t": "2"}


def test_merge_without_a_function_is_a_conflict() -> None:
    with pytest.raises(ConflictError):
        folded(plain("t"), {}, writes("a", {"t": 1}), writes("b", {"t": 2}), policy=MERGE)


def test_a_merge_function_is_not_used_under_another_policy() -> None:
    schema = Schema({"t": Field(name="t", merge=joined)})
    two = writes("a", {"t": 1}), writes("b", {"t": 2})
    with pytest.raises(ConflictError):
        folded(schema, {}, *two, policy=FAIL)
    assert folded(schema, {}, *two, policy=LAST) == {"t": 2}


# --- Overwrite


@pytest.mark.parametrize("position", [0, 1, 2])
def test_overwrite_replaces_the_value_and_discards_the_other_writes_of_the_step(position: int) -> None:
    # given a reduced field, two appends, and an Overwrite before, between or after them
    three = [writes("a", {"notes": [1]}), writes("b", {"notes": [2]})]
    three.insert(position, writes("o", {"notes": ["new"]}, overwrite=True))
    # then only the Overwrite remains
    assert folded(plain(notes=concatenated), {"notes": [0]}, *three) == {"notes": ["new"]}


def test_overwrite_settles_a_conflict_of_a_plain_field() -> None:
    two = writes("a", {"t": 1}), writes("b", {"t": 2}, overwrite=True), writes("c", {"t": 3})
    assert folded(plain("t"), {"t": 0}, *two) == {"t": 2}


def test_overwrite_is_about_one_field_only() -> None:
    # given an Overwrite of one field beside writes to another
    schema = plain(notes=concatenated, other=concatenated)
    after = folded(
        schema,
        {"notes": [0], "other": [0]},
        writes("a", {"notes": [1], "other": [1]}),
        writes("b", {"notes": []}, overwrite=True),
    )
    assert after == {"notes": [], "other": [0, 1]}


@pytest.mark.parametrize("policy", list(ConflictPolicy))
def test_two_overwrites_are_a_conflict_under_every_policy(policy: ConflictPolicy) -> None:
    two = [writes(node_id, {"notes": []}, overwrite=True) for node_id in ("a", "b")]
    with pytest.raises(ConflictError) as caught:
        folded(plain(notes=concatenated), {}, *two, policy=policy)
    assert caught.value.field == "notes" and caught.value.writers == ["a", "b"] and "Overwrite" in str(caught.value)


# --- functions that misbehave


def explodes(current: Any, update: Any) -> Any:
    raise KeyError("boom")


def test_a_reducer_that_raises_is_named_with_its_field() -> None:
    with pytest.raises(ReducerError) as caught:
        folded(plain(notes=explodes), {"notes": []}, writes("a", {"notes": [1]}))
    # then the error names both, keeps the cause, and says what to do
    error = caught.value
    assert (error.field, error.reducer) == ("notes", "tests.explodes")
    assert "'notes'" in str(error) and "tests.explodes" in str(error) and "KeyError" in str(error) and "retry" in str(error)
    assert isinstance(error.__cause__, KeyError)


def test_a_merge_function_that_raises_is_named_with_its_field() -> None:
    with pytest.raises(ReducerError) as caught:
        schema = Schema({"t": Field(name="t", merge=explodes)})
        folded(schema, {}, writes("a", {"t": 1}), writes("b", {"t": 2}), policy=MERGE)
    assert (caught.value.field, caught.value.reducer) == ("t", "explodes")


@pytest.mark.parametrize("result", [float("nan"), {1}, {1: 2}, 2**63])
def test_a_reducer_that_returns_no_json_is_a_state_error_of_its_field(result: Any) -> None:
    with pytest.raises(StateError) as caught:
        folded(plain(notes=lambda current, update: result), {"notes": []}, writes("a", {"notes": [1]}))
    assert caught.value.field == "notes"


@pytest.mark.parametrize(
    "schema",
    [
        plain("notes"),
        plain(notes=concatenated),
        Schema({"notes": Field(name="notes", merge=concatenated)}),
        Schema({"notes": Field(name="notes")}, lambda state, delta: delta, "replacing"),
    ],
    ids=["plain", "reducer", "merge", "whole"],
)
def test_a_write_that_is_no_json_is_a_state_error_of_its_field(schema: Schema) -> None:
    policy = MERGE if schema.fields["notes"].merge else LAST
    with pytest.raises(StateError) as caught:
        folded(schema, {}, writes("a", {"notes": [1]}), writes("b", {"notes": [{1}]}), policy=policy)
    assert caught.value.field == "notes"


def greedy(current: Any, update: Any) -> Any:
    """A reducer as it should not be: it changes both of its arguments."""
    current.extend(update)
    update.append("mutated")
    return current


def test_a_reducer_that_changes_its_arguments_does_not_reach_the_old_state() -> None:
    # given a committed state and a reducer that extends its first argument in place
    before = State.of({"notes": [["deep"]]})
    data, state_hash = before.to_bytes(), before.hash()
    after = fold(plain(notes=greedy), FAIL, before, [writes("a", {"notes": [1]}), writes("b", {"notes": [2]})])
    # then the new state has the change, and the old one is what it was, in bytes and in values
    assert after.values["notes"] == [["deep"], 1, 2]
    assert (before.to_bytes(), before.hash()) == (data, state_hash)
    assert before.values == json.loads(data)


def absorbing(state: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """A whole-state reducer that keeps the delta's own lists and extends them later."""
    for name, value in delta.items():
        if name in state:
            state[name].extend(value)
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("schema", "policy"),
    [
        (plain(notes=greedy), FAIL),
        (Schema({"notes": Field(name="notes", merge=greedy)}), MERGE),
        (Schema({"notes": Field(name="notes")}, absorbing, "absorbing"), FAIL),
    ],
    ids=["reducer", "merge", "whole"],
)
def test_a_function_that_changes_its_arguments_does_not_reach_the_results(schema: Schema, policy: ConflictPolicy) -> None:
    # given results that a coordinator may have to fold again: after a lost commit, or one halved with its group
    results = [writes("a", {"notes": ["a"]}), writes("b", {"notes": ["b"]}), writes("c", {"notes": ["c"]})]
    untouched = copy.deepcopy(results)
    # when a function changes what it is given, then the results stay as they came, and a second fold gives the same bytes
    first = fold(schema, policy, State(), results).to_bytes()
    assert fold(schema, policy, State(), results).to_bytes() == first
    assert results == untouched


@pytest.mark.parametrize("kind", ["reducer", "merge", "whole"])
def test_a_function_that_keeps_what_it_returned_does_not_reach_the_committed_state(kind: str) -> None:
    # given a function that accumulates into one dict of its own, and returns it again and again
    kept: dict[str, Any] = {}

    def keeping(current: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
        kept.update(update)
        return kept

    def keeping_whole(state: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
        return {"table": keeping({}, delta["table"])}

    field = Field(name="table", merge=keeping if kind == "merge" else None, reducer=keeping if kind == "reducer" else None)
    schema = Schema({"table": field}, keeping_whole if kind == "whole" else None, "keeping_whole")
    # when it runs in two steps
    states = [State.of({"table": {"start": "x" * 100}})]
    for letter in "ab":
        two = [writes(node_id, {"table": {f"{letter}{node_id}": "x" * 100}}) for node_id in "12"]
        states.append(fold(schema, MERGE, states[-1], two))
    # then each committed state is still what its bytes say, and the patches lead there: history is not rewritten
    for state in states:
        assert state.values == json.loads(state.to_bytes())
    patches = [diff(old, new) for old, new in itertools.pairwise(states)]
    assert apply_patches(states[0].to_bytes(), patches).to_bytes() == states[-1].to_bytes()


def test_a_pure_reducer_does_not_reach_the_old_state_either() -> None:
    # given the reducers that get no copy of the old value
    schema = schema_of(Zeros, None, {})
    before = fold(
        schema,
        FAIL,
        schema.initial(),
        [writes("a", {"listed": ["x"], "keyed": {"x": 1}, "history": [{"id": "1", "content": ""}]})],
    )
    data = before.to_bytes()
    fold(schema, FAIL, before, [writes("b", {"listed": ["y"], "keyed": {"x": 2}, "history": [{"id": "1", "content": "new"}]})])
    assert before.values == json.loads(data) and before.to_bytes() == data


# --- one reducer for the whole state


class Whole(TypedDict, total=False):
    total: int
    tags: set[str]


def summing(state: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    return {
        "total": state.get("total", 0) * 10 + delta.get("total", 0),
        "tags": state.get("tags", set()) | delta.get("tags", set()),
    }


def test_a_whole_state_reducer_folds_typed_deltas_in_order() -> None:
    # given a graph whose reducer takes the whole state, and three items, one of which writes nothing
    schema = schema_of(Whole, summing, {})
    before = State.of({"total": 1, "tags": ["z"]})
    after = fold(schema, FAIL, before, [writes("a", {"total": 2, "tags": ["b"]}), ("idle", ()), writes("b", {"total": 3})])
    # then it folds each delta once, sets as sets, in order, without a conflict, and the result is stored as JSON
    assert json.loads(after.to_bytes()) == {"total": 123, "tags": ["b", "z"]}
    assert json.loads(before.to_bytes()) == {"total": 1, "tags": ["z"]}


def test_a_whole_state_reducer_may_drop_a_field() -> None:
    schema = schema_of(Whole, lambda state, delta: delta, {})
    assert folded(schema, {"total": 1, "tags": []}, writes("a", {"total": 2})) == {"total": 2}


def test_a_whole_state_reducer_that_misbehaves_is_named() -> None:
    before = {"total": 1}
    with pytest.raises(ReducerError, match="KeyError") as caught:
        folded(schema_of(Whole, explodes, {}), before, writes("a", {"total": 2}))
    assert (caught.value.reducer or "").endswith("explodes")
    with pytest.raises(ReducerError, match="returned list"):
        folded(schema_of(Whole, lambda state, delta: [], {}), before, writes("a", {"total": 2}))
    with pytest.raises(StateError, match="unknown field 'extra'"):
        folded(schema_of(Whole, lambda state, delta: {"extra": 1}, {}), before, writes("a", {"total": 2}))


# --- fields


@pytest.mark.parametrize("whole", [None, summing], ids=["fields", "whole"])
def test_an_unknown_field_is_refused_with_those_that_there_are(whole: Any) -> None:
    with pytest.raises(StateError) as caught:
        fold(schema_of(Whole, whole, {}), FAIL, State(), [writes("a", {"totl": 1})])
    assert caught.value.field == "totl"
    assert "'totl'" in str(caught.value) and "tags, total" in str(caught.value)


def test_a_field_name_that_is_no_string_is_unknown_too() -> None:
    with pytest.raises(StateError, match="unknown field 7"):
        plain("t").dumped({7: 1})  # type: ignore[dict-item]
    with pytest.raises(StateError, match="no fields"):
        Schema({}).field("t")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    BIG = 3


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass
class Shape:
    points: list[Point]
    tags: set[str]
    at: datetime.datetime | None = None


class Struct(msgspec.Struct):
    name: str
    colour: Colour


TYPED: Sequence[tuple[Any, Any, str | None]] = [
    (
        datetime.datetime,
        datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC),
        '"2026-01-02T03:04:05.000678Z"',
    ),
    (datetime.datetime, datetime.datetime.fromisoformat("2026-01-02"), '"2026-01-02T00:00:00"'),
    (datetime.date, datetime.date(2026, 1, 2), '"2026-01-02"'),
    (datetime.time, datetime.time(3, 4, 5), '"03:04:05"'),
    (datetime.timedelta, datetime.timedelta(days=1, seconds=2), '"P1DT2S"'),
    (uuid.UUID, uuid.UUID(int=7), '"00000000-0000-0000-0000-000000000007"'),
    (decimal.Decimal, decimal.Decimal("1.10"), '"1.10"'),
    (Colour, Colour.BLUE, '"blue"'),
    (Size, Size.BIG, "3"),
    (bytes, b"\x00\xff", '"AP8="'),
    (set[str], {"b", "a", "c"}, '["a","b","c"]'),
    (frozenset[int], frozenset({30, 4, 1}), "[1,4,30]"),
    (tuple[int, str], (1, "x"), '[1,"x"]'),
    (tuple[int, ...], (3, 2, 1), "[3,2,1]"),
    (Point, Point(1), '{"x":1,"y":0}'),
    (Shape, Shape([Point(1, 2)], {"b", "a"}), '{"at":null,"points":[{"x":1,"y":2}],"tags":["a","b"]}'),
    (Struct, Struct("n", Colour.RED), '{"colour":"red","name":"n"}'),
    (list[datetime.date], [datetime.date(2026, 1, 2)], '["2026-01-02"]'),
    (dict[str, set[int]], {"k": {2, 1}}, '{"k":[1,2]}'),
    (dict[int, str], {2: "b", 1: "a"}, '{"1":"a","2":"b"}'),
    (dict[uuid.UUID, int], {uuid.UUID(int=1): 1}, '{"00000000-0000-0000-0000-000000000001":1}'),
    (uuid.UUID | None, None, "null"),
    (set[uuid.UUID], {uuid.UUID(int=2), uuid.UUID(int=1)}, None),
]


def field_of(annotation: Any) -> Field:
    """The field `value` of a state declared with this annotation."""
    return schema_of(TypedDict("Declared", {"value": annotation}), None, {}).fields["value"]  # type: ignore[operator]


@pytest.mark.parametrize(("annotation", "value", "expected"), TYPED, ids=[str(annotation) for annotation, *_ in TYPED])
def test_a_typed_value_passes_through_its_annotation_both_ways(annotation: Any, value: Any, expected: str | None) -> None:
    # given a field that is not plain JSON
    field = field_of(annotation)
    # when its value is stored, then the bytes are canonical and always the same
    data = canonical_bytes(field.dumped(value), field="value")
    if expected is not None:
        assert data == expected.encode()
    # and when it is read back, then the author gets the type again
    loaded = field.loaded(json.loads(data))
    assert loaded == value and type(loaded) is type(value)
    assert canonical_bytes(field.dumped(loaded), field="value") == data


def test_sets_are_stored_alike_whatever_their_history() -> None:
    # given one set built in two orders, with a table of another size
    names = [f"name-{number}" for number in range(50)]
    one, other = set(names), set(reversed([*names, *(f"gone-{number}" for number in range(500))]))
    other -= {f"gone-{number}" for number in range(500)}
    assert one == other
    # then the bytes are equal, in a set of its own and inside a dataclass
    for annotation, make in ((set[str], lambda names: names), (Shape, lambda names: Shape([], names))):
        field = field_of(annotation)
        assert canonical_bytes(field.dumped(make(one))) == canonical_bytes(field.dumped(make(other)))
    assert field_of(set[str]).dumped(one) == sorted(names)


class Typed(TypedDict, total=False):
    price: Annotated[decimal.Decimal, operator.add]
    shape: Annotated[Shape, lambda current, update: dataclasses.replace(current, points=current.points + update.points)]
    plain: datetime.date


def test_reducers_get_typed_values_and_leave_json() -> None:
    # given reduced fields of a Decimal and a dataclass
    schema = schema_of(Typed, None, {})
    shape = {"points": [{"x": 1, "y": 0}], "tags": ["b", "a"], "at": None}
    after = fold(
        schema,
        FAIL,
        schema.initial(),
        [writes("a", {"price": "0.1", "shape": shape, "plain": "2026-01-01"}), writes("b", {"price": "0.20", "shape": shape})],
    )
    # then the sum is exact, the points are joined, and what is stored is JSON in its one order
    assert after.encoded["price"] == b'"0.30"'
    assert after.encoded["shape"] == b'{"at":null,"points":[{"x":1,"y":0},{"x":1,"y":0}],"tags":["a","b"]}'
    # and nodes get the types
    loaded = schema.loaded(json.loads(after.to_bytes()))
    assert loaded["price"] == decimal.Decimal("0.30") and loaded["plain"] == datetime.date(2026, 1, 1)
    assert loaded["shape"] == Shape([Point(1), Point(1)], {"a", "b"})


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(datetime.datetime, "yesterday"), (set[int], {"a"}), (Point, {"x": "one"}), (Colour, "green"), (uuid.UUID, object())],
)
def test_a_value_that_is_not_of_the_fields_type_is_refused_by_name(annotation: Any, value: Any) -> None:
    # given a value that the next node could not load, then it is refused when it is written
    with pytest.raises(StateError) as caught:
        field_of(annotation).dumped(value)
    assert caught.value.field == "value" and "'value'" in str(caught.value)


def test_a_stored_value_that_no_longer_fits_is_refused_by_name() -> None:
    with pytest.raises(StateError) as caught:
        field_of(datetime.date).loaded("soon")
    assert caught.value.field == "value" and "'value'" in str(caught.value)
