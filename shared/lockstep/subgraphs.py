"""Runs of subgraphs: each is the work of one item of another run, its parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from lockstep.core.canonical import MAX_DEPTH, canonical_bytes
from lockstep.core.ordering import ROOT_PATH
from lockstep.core.records import Finished, Write
from lockstep.ports import Reader, Store
from lockstep.records import JournalRow, RunRow, Top
from lockstep.wire import OUTCOME_DEPTH, finished_of, finished_record

CALLED = "__called__"
"""The one field of such a run's input; no field of a state has such a name."""

CHILD_DIGITS = 32
"""Of the item's path, in the run's id."""

MAX_RUN_ID = 128


class CallInput(msgspec.Struct, frozen=True, kw_only=True):
    """What the run of a subgraph begins with: the path of its parent's item, the input, and who is at the top."""

    path: bytes
    input: dict[str, Any]
    top: Top

    def encoded(self) -> bytes:
        """As the run's input."""
        record = {"path": self.path.hex(), "input": self.input, "top": msgspec.to_builtins(self.top)}
        return canonical_bytes({CALLED: record}, depth=MAX_DEPTH + 2)


def call_input_of(row: RunRow) -> CallInput | None:
    """What the run of a subgraph begins with; None: the run is no item's work."""
    if row.parent_run_id is None:
        return None
    found = json.loads(row.input).get(CALLED)
    if found is None:
        return None
    return CallInput(path=bytes.fromhex(found["path"]), input=found["input"], top=msgspec.convert(found["top"], Top))


def begins_with(row: RunRow) -> tuple[dict[str, Any], bytes]:
    """The input of a run that is no fork, and the path that its first items descend from."""
    called = call_input_of(row)
    return (json.loads(row.input), ROOT_PATH) if called is None else (called.input, called.path)


def child_run_id(parent_run_id: str, path: bytes) -> str:
    """The id of the run that is the work of an item: the parent's, a colon, and the beginning of the item's path.

    Of a parent whose id is too long for that, its SHA-256.
    """
    parent = parent_run_id
    if len(parent) + 1 + CHILD_DIGITS > MAX_RUN_ID:
        parent = hashlib.sha256(parent.encode()).hexdigest()
    return f"{parent}:{path.hex()[:CHILD_DIGITS]}"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run that succeeded has come to: what its nodes wrote, in their order; or its state, where a function reads that.

    `up` is what its last step has sent to the parent instead.
    """

    writes: tuple[Write, ...] = ()
    state: dict[str, Any] = {}
    up: Finished | None = None

    def encoded(self) -> bytes:
        """As an item gets it for an answer."""
        record = finished_record(self.writes, (), self.up)
        return canonical_bytes({**record, "state": self.state} if self.state else record, depth=OUTCOME_DEPTH)


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended that did not succeed, at which version of its row, and which attempt of its parent's item that fails."""

    run_id: str
    status: str
    version: int
    error_type: str
    message: str
    attempt: int

    def encoded(self) -> bytes:
        """As an item gets it for an answer."""
        return canonical_bytes({"failed": msgspec.to_builtins(self)})


def decode_end(data: bytes) -> Result | Failed:
    """The inverse of both. Raises ValueError for anything else."""
    record = json.loads(data)
    if "failed" in record:
        return msgspec.convert(record["failed"], Failed)
    finished = finished_of(record)
    return Result(writes=finished.writes, state=record.get("state", {}), up=finished.up)


def children_of(reader: Reader, run_id: str) -> Iterator[RunRow]:
    """The runs that are the work of this run's items, ascending by run_id; read in pages."""
    after = None
    while rows := reader.find_runs(parent=run_id, after=after):
        yield from (row for row in rows if call_input_of(row) is not None)
        after = rows[-1].run_id


def delete_with_children(store: Store, run_id: str) -> bool:
    """Remove a finished run, and those of its subgraphs; False: it is not there or not finished."""
    children = [row.run_id for row in children_of(store, run_id)]
    if not store.delete(run_id):
        return False
    for child in children:
        delete_with_children(store, child)
    return True


def run_with_ancestors(reader: Reader, run_id: str) -> list[str]:
    """The id of a run, and those of the runs of which it is a subgraph."""
    ids = [run_id]
    while (rows := reader.find_runs(run_ids=ids[-1:])) and call_input_of(rows[0]) is not None:
        ids.append(str(rows[0].parent_run_id))
    return ids


def open_call(rows: Iterable[JournalRow]) -> JournalRow | None:
    """The call among an item's journal rows whose run has not ended, if there is one."""
    rows = list(rows)
    answered = {row.n for row in rows if row.kind == "answer"}
    return next((row for row in rows if row.kind == "called" and row.n not in answered), None)
