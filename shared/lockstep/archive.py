"""A run as a file: all that the store holds of it, as lines of JSON that another store takes in.

The first line names the format, the second is the run's row. Then each step comes with its snapshot, its events, and the
journal of the items that it left to run. The last line holds the number of lines before it and their SHA-256, so a file that
was cut or changed is noticed. Canonical bytes stand in the lines as they are, hashes in hex: tools for JSON can read it all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Raw

from lockstep.core.canonical import INT_MAX, INT_MIN
from lockstep.core.lifecycle import FINISHED
from lockstep.errors import ArchiveError, ConfigurationError, RunExistsError, RunNotFoundError
from lockstep.integrity import KINDS, NAMES, Check, Unfit, stored_rows
from lockstep.ports import Reader, Store
from lockstep.records import FORMAT_VERSION, RunRow, StoredRow
from lockstep.submission import checked_id

HEADER = {"record": "lockstep-run", "format_version": FORMAT_VERSION}
IN_HEX = {"state_hash", "idempotency_key", "path"}
"""Fields that hold hashes and paths."""
EMBEDDED = {"input", "options", "error", "patch", "frontier", "state", "data", "payload", "meta"}
"""Fields whose bytes are JSON."""

OF_ITS_STORE = {"partition_id": "imported", "updated_at": 0}
"""Fields of a run that another store decides for itself; here, what stands in for them until it does."""

MAX_LINE_BYTES = 1 << 30
"""A longer line is refused unread; databases do not take larger values either."""

T = TypeVar("T", bound=msgspec.Struct)


class BinaryLines(Protocol):
    """A file that was opened to be read in binary."""

    def readline(self, size: int, /) -> bytes:
        """The next line, at most so many bytes of it."""


def export_run(reader: Reader, run_id: str) -> Iterator[bytes]:
    """The lines of a run's file. The same run gives the same bytes.

    Raises RunNotFoundError, and ArchiveError if what is stored is not what was committed.
    """
    rows = reader.find_runs(run_ids=[run_id])
    if not rows:
        raise RunNotFoundError(f"no run {run_id!r}; `lockstep runs` lists those there are", run_id=run_id)
    digest, count = hashlib.sha256(), 0
    for line in _body(reader, rows[0]):
        digest.update(line)
        count += 1
        yield line
    yield _line({"record": "end", "lines": count, "sha256": digest.hexdigest()})


def _body(reader: Reader, row: RunRow) -> Iterator[bytes]:
    yield _line(HEADER)
    check = Check(row)
    try:
        yield _record_line("run", row, leaving_out=OF_ITS_STORE)
        for record in stored_rows(reader, row):
            check.follow(record)
            yield _record_line(NAMES[type(record)], record)
        check.end()
    except Unfit as error:
        text = f"what is stored of run {row.run_id} is damaged: {error}; restore a backup"
        raise ArchiveError(text, run_id=row.run_id) from error


def import_run(store: Store, file: BinaryLines, *, unfinished: bool = False) -> RunRow:
    """Store the run of a file that `export_run` made, under its run_id, and return its row.

    Its states, hashes and keys are computed again before anything is kept. Its events are there, but are not published again:
    where it came from did that. It counts as changed now, so retention leaves it for as long as a run that has just finished.

    Raises ArchiveError for a file that is cut, changed or of another release, naming the line; RunExistsError; and
    ConfigurationError for a run that has not finished, unless `unfinished` says that no other store goes on with it.
    """
    lines = Lines(file)
    row = lines.head()
    if row.status not in FINISHED and not unfinished:
        raise ConfigurationError(
            f"run {row.run_id} is {row.status}: if it went on here and where it comes from, its nodes would run twice; "
            f"let it finish or cancel it there, or, if it is gone there, pass --unfinished",
            option="unfinished",
        )
    if not store.restore(row, lines.rows(row)):
        raise RunExistsError(f"there is a run {row.run_id!r} already; delete it first", run_id=row.run_id)
    [stored] = store.find_runs(run_ids=[row.run_id])
    return stored


class Lines:
    """Reads the lines of a file, and knows where it is."""

    def __init__(self, file: BinaryLines) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._count = 0

    def head(self) -> RunRow:
        """The row of the run, from the first two lines."""
        header = self._next()
        if header.get("record") != HEADER["record"]:
            raise self._broken("this is not the file of a run that `lockstep export` wrote")
        if header != HEADER:
            raise self._broken(f"it has format {header.get('format_version')}, this release reads {FORMAT_VERSION}")
        fields = self._next()
        if fields.pop("record", None) != "run":
            raise self._broken("the row of the run is missing")
        row = self._record(RunRow, fields | OF_ITS_STORE)
        checked_id("run_id", row.run_id)
        return row

    def rows(self, row: RunRow) -> Iterator[StoredRow]:
        """All that belongs to the run, checked one by one; ends only if the file is whole."""
        check = Check(row)
        while True:
            before = {"record": "end", "lines": self._count, "sha256": self._digest.hexdigest()}
            fields = self._next()
            if fields.get("record") == "end":
                break
            kind = KINDS.get(fields.pop("record", None))
            if kind is None:
                raise self._broken("there is no such record")
            record = self._record(kind, fields)
            with self._checked():
                check.follow(record)
            yield record
        if fields != before:
            raise self._broken("the lines before are not those that were exported")
        with self._checked():
            check.end()
        if self._file.readline(1):
            raise self._broken("there is more behind the end")

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except Unfit as error:
            raise self._broken(str(error)) from error

    def _next(self) -> dict[str, Any]:
        line = self._file.readline(MAX_LINE_BYTES)
        self._count += 1
        if not line.endswith(b"\n"):
            raise self._broken("the file ends too early" if len(line) < MAX_LINE_BYTES else "it is too long")
        self._digest.update(line)
        try:
            raw = msgspec.json.decode(line, type=dict[str, Raw])
            # What is JSON by itself stays as it is.
            return {name: bytes(value) if name in EMBEDDED else msgspec.json.decode(value) for name, value in raw.items()}
        except (ValueError, RecursionError) as error:
            raise self._broken(f"it is no line of JSON: {error}") from error

    def _record(self, kind: type[T], fields: dict[str, Any]) -> T:
        try:
            for name in IN_HEX & fields.keys():
                fields[name] = bytes.fromhex(fields[name]) if fields[name] is not None else None
            if kind is RunRow and fields.get("error") == b"null":
                fields["error"] = None
            if any(isinstance(value, int) and not INT_MIN <= value <= INT_MAX for value in fields.values()):
                raise ValueError("a number is out of range")
            if fields.keys() != set(kind.__struct_fields__):
                raise ValueError(f"its fields are {', '.join(fields)}")
            return msgspec.convert(fields, kind)
        except (ValueError, TypeError) as error:
            raise self._broken(f"it is no {kind.__name__}: {error}") from error

    def _broken(self, how: str) -> ArchiveError:
        return ArchiveError(f"line {self._count}: {how}; export the run again", line=self._count)


def _record_line(name: str, record: msgspec.Struct, leaving_out: Collection[str] = ()) -> bytes:
    fields: dict[str, Any] = {"record": name}
    for field, value in msgspec.structs.asdict(record).items():
        if field not in leaving_out:
            fields[field] = _shown(field, value)
    line = _line(fields)
    try:
        msgspec.json.decode(line, type=dict[str, Raw])
    except msgspec.DecodeError as error:
        raise Unfit(f"its {name} is not JSON") from error
    return line


def _shown(field: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return value.hex() if field in IN_HEX else Raw(value)


def _line(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields) + b"\n"
