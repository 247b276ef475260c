"""What functions say of themselves, by their signatures and annotations: how they are called, and where they may lead."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lockstep.compiled import NodeFunction
from lockstep.errors import ConfigurationError


def is_async(function: NodeFunction) -> bool:
    """Whether it has to be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def takes_context(function: NodeFunction, what: str) -> bool:
    """Whether a function wants the Context beside the state. Raises ConfigurationError if it can take neither one nor two."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return False  # A builtin that does not show its signature gets the state alone.
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_context = len(positional) > 1 and (positional[1].default is inspect.Parameter.empty or positional[1].name == "ctx")
    try:
        signature.bind(*[None] * (2 if takes_context else 1))
    except TypeError:
        pass
    else:
        return takes_context
    raise ConfigurationError(f"{what} must take (state) or (state, ctx), but it takes {signature}", option="node")


def labels_of(router: NodeFunction, path_map: Mapping[Any, str] | Sequence[str] | None) -> dict[Any, str] | None:
    """What a router may return, mapped to nodes: from path_map, else from a `-> Literal[...]` annotation."""
    if path_map is not None:
        return dict(path_map) if isinstance(path_map, Mapping) else {name: name for name in path_map}
    returned = _returned(router)
    if typing.get_origin(returned) is Literal:
        return {name: name for name in typing.get_args(returned)}
    return None


def may_return_command(function: NodeFunction) -> bool:
    """Whether it may say where to go next: by its annotation, or because it has none."""
    returned = _returned(function)
    return returned is Any or "Command" in str(returned)


def _returned(function: NodeFunction) -> Any:
    """The return annotation; Any where there is none, or it cannot be read."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any
