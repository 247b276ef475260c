"""`ctx.record`: makes the calls of one execution of a node and keeps them, or gives back what an earlier one has recorded."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.errors import NodeFailedError, ReplayMismatchError, StateError, text_of
from lockstep.recording import Call, CallError, differences, shown

DIFFERENCES_SHOWN = 5


class Recorder:
    """Numbers the calls in the order in which they are begun. The first ones are `recorded` and are not made again.

    `replays`: there are no others; the node must make exactly these.
    """

    def __init__(self, node_id: str, recorded: Sequence[Call], *, replays: bool) -> None:
        self._node_id = node_id
        self._recorded = recorded
        self._replays = replays
        self._begun = 0
        self._made: dict[int, Call] = {}
        self._mismatch: ReplayMismatchError | None = None

    def record(self, name: str, request: Any, call: Callable[[], Any]) -> Any:
        """See `Context.record`."""
        plain = json.loads(canonical_bytes(request, field=f"the request of record({name!r})"))
        number, self._begun = self._begun, self._begun + 1
        if number < len(self._recorded):
            return self._again(number, name, plain, call)
        if self._replays:
            raise self._differs(
                f"call {number + 1} ({name})", "", None, shown(plain), f"it made a call that was not recorded: {shown(plain)}"
            )
        self._made[number] = begun = Call(name, plain, unfinished=True)
        try:
            result = call()
        except Exception as error:
            self._made[number] = _failed(begun, error, awaited=False)
            raise
        return self._awaited(number, result) if inspect.isawaitable(result) else self._finish(number, result, awaited=False)

    async def _awaited(self, number: int, result: Any) -> Any:
        begun = self._made[number] = msgspec.structs.replace(self._made[number], awaited=True)
        try:
            response = await result
        except Exception as error:
            self._made[number] = _failed(begun, error, awaited=True)
            raise
        return self._finish(number, response, awaited=True)

    def _finish(self, number: int, response: Any, *, awaited: bool) -> Any:
        begun = self._made[number]
        try:
            data = canonical_bytes(response, field=f"what record({begun.name!r}) got")
        except StateError as error:
            self._made[number] = _failed(begun, error, awaited=awaited)
            raise
        self._made[number] = Call(begun.name, begun.request, json.loads(data), awaited=awaited)
        return json.loads(data)  # As in a replay: the node may change it, and tuples are lists.

    def _again(self, number: int, name: str, request: Any, call: Callable[[], Any]) -> Any:
        """What an earlier execution got for this call."""
        recorded = self._recorded[number]
        place = f"call {number + 1} ({recorded.name})"
        if name != recorded.name:
            raise self._differs(place, "name", recorded.name, name, f"it called {name!r} in place of {recorded.name!r}")
        found = list(itertools.islice(differences(recorded.request, request, "request"), DIFFERENCES_SHOWN))
        if found:
            first = found[0]
            raise self._differs(place, first.place, first.expected, first.actual, "; ".join(map(str, found)))
        return _later(recorded, call) if recorded.awaited else _given(recorded, call)

    def _differs(self, place: str, field: str, expected: str | None, actual: str | None, how: str) -> ReplayMismatchError:
        error = ReplayMismatchError(
            f"node {self._node_id!r}, {place}: {how}",
            differs=f"{place} {field}".rstrip(),
            expected=expected,
            actual=actual,
        )
        self._mismatch = self._mismatch or error  # The node may catch it; `end` does not let it pass.
        return error

    def adopt(self, begun: int, made: Sequence[Call]) -> None:
        """The node has run in another process, which has begun so many calls and made these."""
        self._made.update(enumerate(made, start=begun - len(made)))
        self._begun = begun

    @property
    def mismatch(self) -> ReplayMismatchError | None:
        """The first call that was another one than was recorded, whatever the node made of that."""
        return self._mismatch

    @property
    def begun(self) -> int:
        """How many calls were begun."""
        return self._begun

    @property
    def made(self) -> list[Call]:
        """The calls that were made here, in the order in which they were begun."""
        return list(self._made.values())

    @property
    def kept(self) -> list[Call]:
        """Those of `made` that need not be made again: up to the first that is unfinished."""
        return list(itertools.takewhile(lambda call: not call.unfinished, self._made.values()))

    def end(self) -> list[Call]:
        """The node is done: the calls that it has made. Raises ReplayMismatchError if it should have made others."""
        if self._mismatch is not None:
            raise self._mismatch
        if self._begun < len(self._recorded):
            missing = self._recorded[self._begun]
            place = f"call {self._begun + 1} ({missing.name})"
            raise self._differs(place, "", shown(missing.request), None, f"it did not make the call: {shown(missing.request)}")
        return self.made


def _given(recorded: Call, call: Callable[[], Any]) -> Any:
    if recorded.error is not None:
        raise _error_of(recorded.error, call)
    return json.loads(canonical_bytes(recorded.response))


async def _later(recorded: Call, call: Callable[[], Any]) -> Any:
    if recorded.unfinished:
        await asyncio.get_running_loop().create_future()  # As then, the node has something else to go on with.
    return _given(recorded, call)


def _failed(begun: Call, error: Exception, *, awaited: bool) -> Call:
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__ if issubclass(kind, Exception)]
    return Call(begun.name, begun.request, error=CallError(kinds, text_of(error)), awaited=awaited)


def _error_of(error: CallError, call: Callable[[], Any]) -> Exception:
    """The exception again: of its own class if that is found here, as it is where the node catches it; else of a parent's."""
    for name in error.kinds:
        module, _, qualified = name.rpartition(".")
        # The node's own module may have been another one's name then: it was a script, or was loaded by its path.
        for place in (module, getattr(call, "__module__", None)):
            kind = getattr(sys.modules.get(place or ""), qualified, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                return _made_anew(kind, error.message)
    return NodeFailedError(error.message)


def _made_anew(kind: type[Exception], message: str) -> Exception:
    # Its __init__ may want what was not recorded.
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error
