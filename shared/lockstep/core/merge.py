"""The ordered fold: what the deltas of a step, in ascending order_key, make of the state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.core.policy import ConflictPolicy
from lockstep.core.records import Write
from lockstep.core.state import State
from lockstep.errors import ConflictError, LockstepError, ReducerError, StateError, text_of

Reducer = Callable[[Any, Any], Any]
Convert = Callable[[Any], Any]
Contribution = tuple[str, Sequence[Write]]
"""The node_id and the writes of one work item."""


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a state schema.

    `load` and `dump` turn its JSON value into what the annotation says and back; None where they are the same. `initial` is its
    value in S(0), as canonical bytes; None: absent. A `pure` reducer is known not to change its arguments.
    """

    name: str
    reducer: Reducer | None = None
    reducer_name: str = ""
    pure: bool = False
    merge: Reducer | None = None
    initial: bytes | None = None
    load: Convert | None = None
    dump: Convert | None = None

    def loaded(self, value: Any) -> Any:
        """The typed value of a JSON value. Raises StateError."""
        if self.load is None:
            return value
        try:
            return self.load(value)
        except Exception as error:  # the types are the user's, and may raise anything
            raise StateError(f"field {self.name!r}: {error}", field=self.name) from error

    def dumped(self, value: Any) -> Any:
        """The JSON value of a typed value; for plain fields the value itself, checked when it is encoded. Raises StateError."""
        if self.dump is None:
            return value
        try:
            return self.dump(value)
        except Exception as error:  # the types are the user's, and may raise anything
            raise StateError(f"field {self.name!r}: {error}", field=self.name) from error


class Schema(msgspec.Struct, frozen=True):
    """The fields of a state by name, and the reducer for the state as a whole where the author gave one.

    `inputs` are those that an input may have, `outputs` those of a result; None: all.
    """

    fields: dict[str, Field]
    whole: Reducer | None = None
    whole_name: str = ""
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    def initial(self) -> State:
        """S before the input: declared defaults, and T() for reduced fields."""
        return State.of({f.name: json.loads(f.initial) for f in self.fields.values() if f.initial is not None})

    def loaded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A state's JSON values as typed ones."""
        return {name: self.fields[name].loaded(value) for name, value in values.items()}

    def loaded_payload(self, data: bytes) -> Any:
        """What a Send carries, as its node gets it: the state's fields in it as their annotations say."""
        payload = json.loads(data)
        if not isinstance(payload, dict):
            return payload
        return {name: self.fields[name].loaded(v) if name in self.fields else v for name, v in payload.items()}

    def dumped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Typed values as JSON ones. Raises StateError, naming the field, for one that the schema does not have."""
        return {self.field(name).name: self.fields[name].dumped(value) for name, value in values.items()}

    def check_input(self, names: Iterable[str]) -> None:
        """Raise StateError for a field that is none, or that an input must not have."""
        for name in names:
            self.field(name)
            if self.inputs is not None and name not in self.inputs:
                raise StateError(f"the input has field {name!r}; it may have {', '.join(self.inputs)}", field=name)

    def result(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of a final state, what is its result."""
        return {name: value for name, value in values.items() if self.outputs is None or name in self.outputs}

    def field(self, name: str) -> Field:
        """The field of this name, or StateError with those that there are."""
        field = self.fields.get(name) if isinstance(name, str) else None
        if field is None:
            raise StateError(
                f"unknown field {name!r}; the state has {', '.join(sorted(self.fields)) or 'no fields'}", field=str(name)
            )
        return field


def fold(schema: Schema, policy: ConflictPolicy, state: State, contributions: Sequence[Contribution]) -> State:
    """The state after all contributions, which are given in ascending order_key.

    Raises ConflictError, ReducerError, or StateError for a value that the codec refuses. `state` is left as it is.
    """
    if schema.whole is not None:
        return _fold_whole(schema, state, contributions)
    by_field: dict[str, list[tuple[int, Write]]] = {}
    for index, (_, writes) in enumerate(contributions):
        for write in writes:
            by_field.setdefault(schema.field(write.field).name, []).append((index, write))
    return state.changed(
        {name: _settle(schema.fields[name], policy, state, writes, contributions) for name, writes in by_field.items()}
    )


def _settle(
    field: Field,
    policy: ConflictPolicy,
    state: State,
    writes: Sequence[tuple[int, Write]],
    contributions: Sequence[Contribution],
) -> Any:
    """The new JSON value of one field, from all writes to it in order, each with the index of its contribution."""
    overwrites = [write for _, write in writes if write.overwrite]
    if len(overwrites) == 1:
        return overwrites[0].value
    if overwrites:
        raise _conflict(field, writes, contributions, "several items write Overwrite(...); let one of them do it")
    values = [write.value for _, write in writes]
    if field.reducer is not None:
        return _reduce(field, state, values)
    last_of_each = list(dict(writes).values())
    if len(last_of_each) == 1 or policy is ConflictPolicy.LAST_WRITER_WINS:
        return last_of_each[-1].value
    if policy is ConflictPolicy.MERGE and field.merge is not None:
        joined = field.loaded(_copied(field, last_of_each[0].value))
        for write in last_of_each[1:]:
            joined = _call(field, field.merge, joined, field.loaded(_copied(field, write.value)))
        return _owned(field, joined)
    raise _conflict(
        field,
        writes,
        contributions,
        "it has no reducer; annotate it, e.g. Annotated[list, operator.add], or choose another ConflictPolicy",
    )


def _reduce(field: Field, state: State, values: Sequence[Any]) -> Any:
    """Fold the reducer over the writes. Where there is no value yet, the first write is taken as it is."""
    assert field.reducer is not None
    # A reducer of the user's may change its arguments, so it gets copies; a pure one needs none.
    pending = list(values) if field.pure else [_copied(field, value) for value in values]
    if field.name in state.encoded:
        current = state.values[field.name] if field.pure else json.loads(state.encoded[field.name])
    else:
        current = pending.pop(0)
    total = field.loaded(current)
    for value in pending:
        total = _call(field, field.reducer, total, field.loaded(value))
    return _owned(field, total)


def _owned(field: Field, value: Any) -> Any:
    """The JSON value of a user function's result, which the function may keep and change later; a dump is a copy already."""
    return field.dumped(value) if field.pure or field.dump else _copied(field, value)


def _copied(field: Field, value: Any) -> Any:
    """A JSON value that shares nothing with the given one."""
    return json.loads(canonical_bytes(value, field=field.name))


def _call(field: Field, function: Reducer, current: Any, value: Any) -> Any:
    try:
        return function(current, value)
    except LockstepError:
        raise
    except BaseException as error:  # also SystemExit: a reducer must not end its coordinator
        name = field.reducer_name or getattr(function, "__name__", repr(function))
        raise ReducerError(
            f"the reducer {name} of field {field.name!r} raised {type(error).__name__}: {text_of(error)}; "
            f"the step's results are kept: mend the reducer, then retry the run",
            field=field.name,
            reducer=name,
        ) from error


def _fold_whole(schema: Schema, state: State, contributions: Sequence[Contribution]) -> State:
    """The fold of a graph with one reducer for its whole state: f(state, delta) -> state, both as typed dicts."""
    assert schema.whole is not None
    whole = Field(name="(the whole state)", reducer_name=schema.whole_name)
    total = schema.loaded(json.loads(state.to_bytes()))
    for _, writes in contributions:
        if writes:
            delta = schema.loaded({write.field: _copied(schema.field(write.field), write.value) for write in writes})
            total = _call(whole, schema.whole, total, delta)
            if not isinstance(total, dict):
                raise ReducerError(
                    f"the reducer {schema.whole_name} returned {type(total).__name__} instead of the state's dict",
                    reducer=schema.whole_name,
                )
    return State.of({name: _owned(schema.field(name), value) for name, value in total.items()})


def _conflict(
    field: Field, writes: Sequence[tuple[int, Write]], contributions: Sequence[Contribution], remedy: str
) -> ConflictError:
    writers = [contributions[index][0] for index in dict(writes)]
    return ConflictError(
        f"{len(writers)} items of one step ({', '.join(dict.fromkeys(writers))}) write field {field.name!r}: {remedy}",
        field=field.name,
        writers=writers,
    )
