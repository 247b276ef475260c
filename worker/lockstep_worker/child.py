"""A process of its own for isolated nodes: `python -m lockstep_worker.child FD`, with calls coming over the socket.

It ends when the socket does, and so with its worker, however that ends. User code finds no LOCKSTEP_* variables here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import pickle
import runpy
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from lockstep.core.records import Failure
from lockstep.costs import Usage
from lockstep.interrupts import ASKS, Question
from lockstep.recording import Call as RecordedCall
from lockstep.records import Chunk, Task
from lockstep.wire import EmittedEvent
from lockstep_worker.context import NodeContext
from lockstep_worker.execute import failure_of
from lockstep_worker.resources import none_for

LOOK_SECONDS = 1.0
"""How often the process looks whether its worker is still there."""


class Where(msgspec.Struct, frozen=True):
    """Where a function is to be found: its module, the file of that, and its name there."""

    module: str
    file: str | None
    name: str


class Call(msgspec.Struct, frozen=True):
    """A node to be called, with the task it belongs to. `argument` is pickled: its types may be in the node's module."""

    function: Where
    takes_context: bool
    argument: bytes
    task: Task
    sys_path: list[str]
    replays: bool = False


class Returned(msgspec.Struct, frozen=True):
    """What a node has returned, the events that it has emitted, how many calls it has begun, and those that it has made."""

    value: Any
    events: list[EmittedEvent]
    begun: int
    calls: list[RecordedCall]
    usage: list[Usage]


class Streamed(msgspec.Struct, frozen=True):
    """What a node has streamed; it goes on."""

    chunk: Chunk


class Asked(msgspec.Struct, frozen=True):
    """What a node asks."""

    number: int
    value: bytes
    calls: bytes | None
    timer: bytes | None
    usage: list[Usage]


class Raised(msgspec.Struct, frozen=True):
    """What a node has raised; the exception itself is there if it can be pickled."""

    failure: Failure
    error: BaseException | None
    usage: list[Usage]


def where_is(function: Any) -> Where:
    """Where another process finds a function."""
    module = sys.modules[function.__module__]
    return Where(function.__module__, getattr(module, "__file__", None), function.__qualname__)


def find(where: Where) -> Any:
    """The function that is there. Imports its module, by its name if that leads to the same file."""
    module = sys.modules.get(where.module) if where.module != "__main__" else None
    if module is None:
        module = _imported(where)
    found: Any = module
    for name in where.name.split("."):
        found = getattr(found, name)
    return found


def _imported(where: Where) -> Any:
    main = sys.modules["__main__"]
    if where.module == "__main__":
        if where.name.partition(".")[0] not in vars(main):
            # Under the name that the standard library's processes use: what a script does under `__main__` is not done again,
            # and the worker, whose `__main__` has this name too, finds the types of what comes back.
            script = runpy.run_path(str(where.file), run_name="__mp_main__")
            sys.modules["__mp_main__"] = main
            vars(main).update({name: value for name, value in script.items() if not name.startswith("__")})
        return main
    try:
        spec = importlib.util.find_spec(where.module)
    except ModuleNotFoundError:  # Of a package around it: the worker found the module by its path.
        spec = None
    if where.file is None or (spec is not None and spec.origin == where.file):
        return importlib.import_module(where.module)
    spec = importlib.util.spec_from_file_location(where.module, where.file)
    assert spec is not None and spec.loader is not None, "a module that has a file can be loaded from it"
    module = sys.modules[where.module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def answer(call: Call, send: Callable[[bytes], None]) -> bytes:
    """Make the call; the pickled Returned, Asked or Raised. What the node streams before is sent, pickled too."""
    stream = None if call.replays else lambda chunk: send(pickle.dumps(Streamed(chunk)))
    opens = none_for(call.task.node_id, "it has a process of its own, and opens there what it needs")
    context = NodeContext(call.task, replays=call.replays, send=stream, open_resources=opens)
    try:
        sys.path[:] = call.sys_path
        function = find(call.function)
        argument = pickle.loads(call.argument)  # From the worker that has started this process, and from nobody else.
        ASKS.set(context.ask)
        value = function(argument, context) if call.takes_context else function(argument)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        return pickle.dumps(Returned(value, context.events, context.recorder.begun, context.recorder.made, context.usage))
    except Question as question:
        return pickle.dumps(Asked(question.number, question.value, question.calls, question.timer, context.usage))
    except BaseException as error:  # also SystemExit: the next node may find this process as it was
        failure = failure_of(error, call.task)
        try:
            pickled = pickle.dumps(Raised(failure, error, context.usage))
            pickle.loads(pickled)  # Some exceptions can be pickled, and not read again.
        except Exception:
            return pickle.dumps(Raised(failure, None, context.usage))
        return pickled


def _end_with(worker: int) -> None:
    """End this process when the worker has ended, whatever a node does meanwhile."""
    while os.getppid() == worker:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def main() -> None:
    """Answer calls until the worker is gone."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            call: Call = connection.recv()
        except EOFError:
            return
        connection.send_bytes(answer(call, connection.send_bytes))


if __name__ == "__main__":
    # Under its own name: what is pickled here names the module, and `__main__` is the user's.
    importlib.import_module("lockstep_worker.child").main()
