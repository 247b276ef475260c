"""Forks: runs that begin with what another one had come to."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from lockstep.core.canonical import MAX_DEPTH, canonical_bytes
from lockstep.records import RunRow

FORKED = "__fork__"
"""The one field of a fork's input; no field of a state has such a name."""


class Origin(msgspec.Struct, frozen=True):
    """Where a run was forked from: another run, after a step."""

    run_id: str
    step_id: int


class ForkInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a fork begins with: a state and frontier of its origin, as JSON, and what is changed of them."""

    run_id: str
    step_id: int
    state: dict[str, Any]
    frontier: dict[str, Any]
    update: dict[str, Any] = {}
    as_node: str | None = None

    def encoded(self) -> bytes:
        """As the run's input."""
        return canonical_bytes({FORKED: msgspec.to_builtins(self)}, depth=MAX_DEPTH + 5)


def fork_input_of(row: RunRow) -> ForkInput | None:
    """What a fork begins with; None: the run is none."""
    if row.parent_run_id is None:
        return None
    found = json.loads(row.input).get(FORKED)
    return None if found is None else msgspec.convert(found, ForkInput)


def origin_of(row: RunRow) -> Origin | None:
    """Where a run was forked from; None: it was not."""
    begun = fork_input_of(row)
    return None if begun is None else Origin(begun.run_id, begun.step_id)
