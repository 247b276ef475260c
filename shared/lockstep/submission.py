"""What an engine and a client check of a submission alike."""

from __future__ import annotations

import re
import uuid
from typing import Literal, get_args

from lockstep.core.canonical import canonical_bytes
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.errors import ConfigurationError, RunExistsError, StateError, ThreadBusyError
from lockstep.options import Options
from lockstep.ports import Reader
from lockstep.records import RunRow

IfBusy = Literal["queue", "reject"]
"""What a run does whose thread has another one that has not ended: wait for it, or not be submitted."""

RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def checked_id(option: str, name: str) -> str:
    """A run_id or thread_id. Raises ConfigurationError."""
    if not isinstance(name, str) or not RUN_ID.fullmatch(name):
        raise ConfigurationError(f"{option} {name!a} must be 1 to 128 of A-Z a-z 0-9 . _ : -", option=option)
    return name


def new_run_id() -> str:
    """A run_id that nobody has."""
    return uuid.uuid4().hex


def encoded_input(values: dict[str, object], options: Options, what: str = "the input") -> bytes:
    """The canonical bytes of an input, given as JSON values. Raises StateError, naming the field, or `what`."""
    for name, value in values.items():
        canonical_bytes(value, field=name)
    data = canonical_bytes(values)
    if len(data) > options.max_payload_bytes:
        raise StateError(
            f"{what} takes {len(data)} bytes, more than max_payload_bytes={options.max_payload_bytes}; "
            f"keep large data elsewhere and pass a reference, or raise the option"
        )
    return data


def check_thread(reader: Reader, graph: str, thread_id: str | None, run_id: str, if_busy: IfBusy) -> None:
    """Raise ThreadBusyError if nobody may wait and some other run of the thread has not ended."""
    if if_busy not in get_args(IfBusy):
        raise ConfigurationError(f"if_busy={if_busy!r} is not one of {', '.join(get_args(IfBusy))}", option="if_busy")
    if if_busy == "queue" or thread_id is None:
        return
    for status in set(RunStatus) - FINISHED:
        others = reader.find_runs(graph=graph, thread_id=thread_id, status=status, limit=2)
        if busy := [row.run_id for row in others if row.run_id != run_id]:
            raise ThreadBusyError(
                f"run {busy[0]} of thread {thread_id!r} has not ended; wait for it, cancel it, or submit with if_busy='queue'",
                run_id=busy[0],
                thread_id=thread_id,
            )


def check_same(row: RunRow, graph: str, data: bytes) -> None:
    """Raise RunExistsError if the run that has the run_id is not the one that was submitted."""
    if (row.graph, row.input) != (graph, data):
        raise RunExistsError(
            f"run_id {row.run_id!r} belongs to a run of graph {row.graph!r} with another input; choose another",
            run_id=row.run_id,
        )
