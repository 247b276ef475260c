"""From the author's state type to the core's `Schema`: fields, reducers, defaults and codecs.

A field whose annotation is plain JSON (str, int, list[str], dict[str, Any], ...) passes as it is and is checked when it is
encoded. Any other annotation (datetime, UUID, Decimal, Enum, bytes, set, tuple, dataclass) goes through msgspec both ways, and
one with pydantic models in it through pydantic.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import operator
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, Required, Union

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.core.merge import Convert, Field, Reducer, Schema
from lockstep.errors import ConfigurationError, StateError
from lockstep.messages import add_messages
from lockstep.models import KINDS, defaults_of, fields_of, has_pydantic, is_state, pydantic_codec

PURE_REDUCERS: dict[Any, str] = {
    operator.add: "operator.add",
    operator.or_: "operator.or_",
    operator.and_: "operator.and_",
    operator.mul: "operator.mul",
    max: "max",
    min: "min",
    add_messages: "lockstep.add_messages",
}
"""Reducers that are known by name everywhere and never change their arguments."""

_PLAIN = (str, int, float, bool, type(None), list, dict, Any, object)
_CODEC_TYPES = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
    enum.Enum,
    bytes,
    bytearray,
    set,
    frozenset,
    tuple,
    msgspec.Struct,
)


def schema_of(
    state: type,
    reducer: Reducer | None,
    merges: Mapping[str, Reducer],
    *,
    inputs: type | None = None,
    outputs: type | None = None,
) -> Schema:
    """The schema of a state's class. Raises ConfigurationError, naming the field, for what cannot be stored."""
    hints = _hints_of(state)
    defaults = defaults_of(state)
    fields = {name: _field(name, hints[name], defaults, merges.get(name)) for name in fields_of(state)}
    for name in merges.keys() - fields.keys():
        raise ConfigurationError(f"merges names {name!r}, which is no field of {state.__name__}", option="merges")
    name = name_of(reducer) if reducer else ""
    return Schema(fields, reducer, name, _part("input_schema", inputs, fields), _part("output_schema", outputs, fields))


def _part(option: str, part: type | None, fields: Mapping[str, Field]) -> tuple[str, ...] | None:
    """The names of the fields of a class that has some of a state's."""
    if part is None:
        return None
    names = tuple(_hints_of(part))
    for name in names:
        if name not in fields:
            raise ConfigurationError(f"{option} has field {name!r}; the state has {', '.join(sorted(fields))}", option=option)
    return names


def name_of(function: Any) -> str:
    """The name by which a reducer is known in the graph hash."""
    known = PURE_REDUCERS.get(function) if isinstance(function, typing.Hashable) else None
    # A method of a builtin type, such as set.union, does not say its module.
    module = getattr(function, "__module__", None) or "builtins"
    return known or f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _hints_of(state: type) -> dict[str, Any]:
    if not is_state(state):
        raise ConfigurationError(f"a state is {KINDS}, got {state!r}: declare its fields in one", option="state")
    try:
        return typing.get_type_hints(state, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"the annotations of {state.__name__} cannot be read: {error}; define the names at module level", option="state"
        ) from error


def _field(name: str, hint: Any, defaults: Mapping[str, Any], merge: Reducer | None) -> Field:
    annotation, reducer = _split(name, hint)
    load, dump = _codec(name, annotation)
    initial = None
    if name in defaults:
        try:
            initial = canonical_bytes(dump(defaults[name]) if dump else defaults[name], field=name)
        except (TypeError, ValueError, StateError) as error:
            raise ConfigurationError(f"the default of field {name!r} cannot be stored: {error}", option=name) from error
    elif reducer is not None:
        initial = _zero(name, annotation, dump)
    return Field(
        name=name,
        reducer=reducer,
        reducer_name=name_of(reducer) if reducer else "",
        pure=isinstance(reducer, typing.Hashable) and reducer in PURE_REDUCERS,
        merge=merge,
        initial=initial,
        load=load,
        dump=dump,
    )


def _split(name: str, hint: Any) -> tuple[Any, Reducer | None]:
    """The bare annotation and the reducer that Annotated[...] gives it."""
    reducer: Reducer | None = None
    while True:
        origin = typing.get_origin(hint)
        if origin in (Required, NotRequired):
            hint = typing.get_args(hint)[0]
        elif origin is typing.Annotated:
            callables = [extra for extra in hint.__metadata__ if callable(extra) and not isinstance(extra, type)]
            reducer = callables[-1] if callables else reducer
            hint = hint.__origin__
        else:
            break
    if reducer is not None and not _takes_two(reducer):
        raise ConfigurationError(
            f"the reducer {name_of(reducer)} of field {name!r} must take two arguments: (current, update)", option=name
        )
    return hint, reducer


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True  # A builtin such as max does not show its signature.
    return True


def _codec(name: str, annotation: Any) -> tuple[Convert | None, Convert | None]:
    """`load` and `dump` of an annotation; (None, None) for plain JSON."""
    if _is_plain(annotation):
        return None, None
    if has_pydantic(annotation):
        return pydantic_codec(annotation)
    refused = _refused(annotation)
    if refused is not None:
        raise ConfigurationError(
            f"field {name!r} has a part of type {refused!r}, which cannot be stored; use JSON types, a dataclass, datetime, "
            f"UUID, Decimal, Enum, bytes, set, tuple, or a pydantic model",
            option=name,
        )
    try:
        msgspec.json.Decoder(annotation)
    except TypeError as error:
        raise ConfigurationError(f"field {name!r} cannot be stored: {error}", option=name) from error

    def load(value: Any) -> Any:
        return msgspec.convert(value, annotation, str_keys=True)

    def dump(value: Any) -> Any:
        # The order makes sets deterministic; converting back refuses what the next node could not load.
        plain = msgspec.to_builtins(value, str_keys=True, order="deterministic")
        load(plain)
        return plain

    return load, dump


def _is_plain(annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return annotation in _PLAIN or (typing.is_typeddict(annotation) and all(map(_is_plain, _bare(annotation))))
    if origin is Literal:
        return not any(isinstance(argument, enum.Enum) for argument in arguments)
    if origin is dict:
        return arguments[0] is str and _is_plain(arguments[1])
    return origin in (list, Union, types.UnionType) and all(map(_is_plain, arguments))


def _bare(state: Any) -> list[Any]:
    return [_split(name, hint)[0] for name, hint in typing.get_type_hints(state, include_extras=True).items()]


def _refused(annotation: Any) -> Any:
    """The first part of an annotation that has no JSON form, or None."""
    arguments = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    if typing.get_origin(annotation) is Literal:
        return None
    if arguments:
        return next((part for part in map(_refused, arguments) if part is not None), None)
    if _is_plain(annotation) or typing.is_typeddict(annotation) or dataclasses.is_dataclass(annotation):
        return None
    if isinstance(annotation, type) and issubclass(annotation, _CODEC_TYPES):
        return None
    return annotation


def _zero(name: str, annotation: Any, dump: Convert | None) -> bytes | None:
    """T() of a reduced field as canonical bytes; None where T cannot be made from nothing."""
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return None
    try:
        zero = kind()
        return canonical_bytes(dump(zero) if dump else zero, field=name)
    except (TypeError, ValueError, StateError):
        return None
