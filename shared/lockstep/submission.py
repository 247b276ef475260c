"""What an engine and a client check of a submission alike."""

from __future__ import annotations

import re
import uuid

from lockstep.core.canonical import canonical_bytes
from lockstep.errors import ConfigurationError, RunExistsError, StateError
from lockstep.options import Options
from lockstep.records import RunRow

RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def checked_id(option: str, name: str) -> str:
    """A run_id or thread_id. Raises ConfigurationError."""
    if not isinstance(name, str) or not RUN_ID.fullmatch(name):
        raise ConfigurationError(f"{option} {name!a} must be 1 to 128 of A-Z a-z 0-9 . _ : -", option=option)
    return name


def new_run_id() -> str:
    """A run_id that nobody has."""
    return uuid.uuid4().hex


def encoded_input(values: dict[str, object], options: Options) -> bytes:
    """The canonical bytes of an input, given as JSON values. Raises StateError, naming the field."""
    for name, value in values.items():
        canonical_bytes(value, field=name)
    data = canonical_bytes(values)
    if len(data) > options.max_payload_bytes:
        raise StateError(
            f"the input takes {len(data)} bytes, more than max_payload_bytes={options.max_payload_bytes}; "
            f"keep large data elsewhere and pass a reference, or raise the option"
        )
    return data


def check_same(row: RunRow, graph: str, data: bytes) -> None:
    """Raise RunExistsError if the run that has the run_id is not the one that was submitted."""
    if (row.graph, row.input) != (graph, data):
        raise RunExistsError(
            f"run_id {row.run_id!r} belongs to a run of graph {row.graph!r} with another input; choose another",
            run_id=row.run_id,
        )
