"""The classes that a state may be declared as: TypedDict, dataclass, msgspec.Struct, pydantic model. Pydantic is optional."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from lockstep.errors import StateError

KINDS = "a TypedDict, a dataclass, a msgspec.Struct or a pydantic model"


def is_pydantic(kind: Any) -> bool:
    """Whether it is a pydantic model's class. Told by what it has: it can be one only where pydantic is installed."""
    return isinstance(kind, type) and hasattr(kind, "model_fields") and hasattr(kind, "model_validate")


def is_state(kind: Any) -> bool:
    """Whether a state may be declared as this."""
    if typing.is_typeddict(kind) or is_pydantic(kind):
        return True
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct))


def fields_of(state: Any) -> list[str]:
    """The names of a state's fields, in the order in which they are declared."""
    if is_pydantic(state):
        return list(state.model_fields)
    return list(typing.get_type_hints(state))


def defaults_of(state: Any) -> dict[str, Any]:
    """The defaults that a state declares, by field."""
    if is_pydantic(state):
        found = {name: field for name, field in state.model_fields.items() if not field.is_required()}
        return {name: field.get_default(call_default_factory=True) for name, field in found.items()}
    if dataclasses.is_dataclass(state):
        given = [(field.name, field.default, field.default_factory) for field in dataclasses.fields(state)]
        nothing: Any = dataclasses.MISSING
    elif issubclass(state, msgspec.Struct):
        given = [(field.name, field.default, field.default_factory) for field in msgspec.structs.fields(state)]
        nothing = msgspec.NODEFAULT
    else:
        return {}
    defaults = {}
    for name, default, factory in given:
        if default is not nothing:
            defaults[name] = default
        elif factory is not nothing:
            defaults[name] = typing.cast("Callable[[], Any]", factory)()
    return defaults


def instance_of(state: Any, values: dict[str, Any]) -> Any:
    """What a node receives: the dict itself, or an instance. Raises StateError for a field that has no value or a wrong one."""
    if typing.is_typeddict(state):
        return values
    try:
        return state.model_validate(values) if is_pydantic(state) else state(**values)
    except Exception as error:  # pydantic's own, or what a __post_init__ raises
        missing = [name for name in fields_of(state) if name not in values and name not in defaults_of(state)]
        remedy = f"; give {', '.join(missing)} in the input, or a default" if missing else ""
        raise StateError(
            f"{state.__name__} cannot be made from the state: {error}{remedy}", field=missing[0] if missing else None
        ) from error


def values_of(given: Any, what: str) -> dict[str, Any]:
    """The fields of a dict, or of an instance of a state's class; of a pydantic model, those that were set.

    Raises StateError, naming `what`, for anything else.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if is_pydantic(type(given)):
        return {name: getattr(given, name) for name in type(given).model_fields if name in given.model_fields_set}
    if isinstance(given, msgspec.Struct):
        values = {name: getattr(given, name) for name in given.__struct_fields__}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    raise StateError(f"{what} must be a dict of state fields, got {type(given).__name__}")


def has_pydantic(annotation: Any) -> bool:
    """Whether some part of an annotation is a pydantic model."""
    return is_pydantic(annotation) or any(map(has_pydantic, typing.get_args(annotation)))


def pydantic_codec(annotation: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """`load` and `dump` of an annotation with pydantic models in it."""
    from pydantic import TypeAdapter  # Here and not above: only where a model is, is it installed.

    adapter: Any = TypeAdapter(annotation)

    def dump(value: Any) -> Any:
        return adapter.dump_python(adapter.validate_python(value), mode="json")

    return adapter.validate_python, dump
