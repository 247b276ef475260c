"""A database of an older release is brought up to date while that one's processes execute runs, or after they were killed: none
of them fails, no row changes, each run ends as if undisturbed, and a new sink gets the events of old runs.

releases/N.zip holds the packages of the last commit whose newest migration was N:

    git archive --format=zip -9 -o N.zip COMMIT shared/lockstep coordinator/lockstep_coordinator worker/lockstep_worker
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.guarantees.programs import outlasting
from tests.guarantees.programs.outlasting import ENDED, HALTED, JOURNALLED, graph, input_of
from tests.servers import POSTGRES, Database

from lockstep import Engine, NodeFailedError
from lockstep.records import PublishedEvent
from lockstep.store import open_store
from lockstep.store.migrate import HEAD
from lockstep.wire import ENGINE_EVENTS
from lockstep_coordinator.relay import SinkRelay

RELEASES = Path(__file__).parent / "releases"
STORES = [("0001", "sqlite"), ("0001", "postgres"), ("0002", "sqlite"), ("0002", "postgres")]
"""Each release, with the stores that it had."""
MORE = 3
"""So many short runs more: all but the first of them also begin from now on."""
PATIENCE_SECONDS = 30.0

Rows = dict[str, list[Any]]


@dataclass(frozen=True)
class Ending:
    """What a run came to: all that must be the same, whichever releases executed it."""

    status: str
    state_hash: str
    keys: list[str]
    events: list[tuple[int, int, str, str, bytes]]


class Collected:
    """A sink that keeps the ids of what arrives."""

    name = "added later"

    def __init__(self) -> None:
        self.ids: list[str] = []

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        self.ids += [event.event_id for event in events]
        return len(events)

    def close(self) -> None:
        pass


class Older:
    """A process of an older release that executes programs/outlasting.py, and its database, looked at without any release."""

    def __init__(self, packages: Path, url: str, ledger: Path) -> None:
        roots = [str(packages / root) for root in ("shared", "coordinator", "worker")]
        self.url = url
        self._ledger = ledger
        self._process = subprocess.Popen(
            [sys.executable, outlasting.__file__, url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(roots), "LEDGER": str(ledger)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._short_runs = 0
        self._database = sa.create_engine(url, poolclass=sa.pool.NullPool)
        self._tables = sa.MetaData()

    def until_halted(self) -> None:
        """Wait until it is in the middle of a step of each run that halts. Its tables are known from then on."""
        self._until_ended(1)
        self._tables.reflect(self._database)
        journal, runs = self._table("journal"), self._table("runs")
        in_the_middle = [journal.c.run_id.in_(HALTED), journal.c.step_id > runs.c.step_id]
        rows = sa.select(journal).join(runs, runs.c.run_id == journal.c.run_id).where(*in_the_middle)
        while len(self._found(rows)) < len(HALTED) * JOURNALLED:
            self._until_ended(self._short_runs + 1)

    def until_more_ended(self) -> None:
        """Wait until it has ended more short runs than there are now."""
        self._until_ended(sum(run_id.startswith("short") for run_id in self.ended()) + MORE)

    def _until_ended(self, short_runs: int) -> None:
        """Wait until it has ended so many short runs since it began."""
        assert self._process.stdout is not None
        count, self._short_runs = short_runs - self._short_runs, short_runs
        said = self._process.stdout.read(count)
        assert said == b"." * count, f"it said {said!r}; exit code and complaints: {self.end()}"

    def end(self) -> tuple[int, str]:
        """Let it end all that it has begun; its exit code and what it has complained of."""
        out, err = self._process.communicate(timeout=PATIENCE_SECONDS)
        return self._process.returncode, (out.strip(b".") + err).decode()

    def kill(self) -> None:
        """kill -9, and wait until nothing of it is under way any more: a server still carries out what it has received."""
        self.close()
        if self._database.dialect.name == "postgresql":
            others = sa.text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' "
                "AND pid <> pg_backend_pid()"
            )
            while self._found(others):
                pass

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def revision(self) -> str:
        [(revision,)] = self._found(sa.select(self._table("alembic_version")))
        return str(revision)

    def runs(self) -> list[str]:
        return [row.run_id for row in self._found(sa.select(self._table("runs").c.run_id))]

    def unfinished(self) -> list[str]:
        return [row.run_id for row in self._found(sa.select(self._table("unfinished").c.run_id))]

    def ended(self) -> list[str]:
        runs, unfinished = self._table("runs").c.run_id, self._table("unfinished").c.run_id
        return [row.run_id for row in self._found(sa.select(runs).where(runs.not_in(sa.select(unfinished))))]

    def rows(self) -> Rows:
        """All rows, with the columns that the older release knows; which schema they have is no row."""
        tables = [table for table in self._tables.sorted_tables if table.name != "alembic_version"]
        return {table.name: self._found(sa.select(table).order_by(*table.primary_key)) for table in tables}

    def executions(self) -> Counter[str]:
        """How often each attempt of each item was executed, by whichever release: "run_id path attempt"."""
        return Counter(self._ledger.read_text().splitlines())

    def _table(self, name: str) -> sa.Table:
        return self._tables.tables[name]

    def _found(self, query: sa.Executable) -> list[Any]:
        with self._database.connect() as connection:
            return list(connection.execute(query))


@pytest.fixture(scope="module")
def packages_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the packages of a release. Unpacked: Alembic reads its migrations from files."""
    folder = tmp_path_factory.mktemp("releases")

    def packages_of(release: str) -> Path:
        if not (folder / release).exists():
            with zipfile.ZipFile(RELEASES / f"{release}.zip") as archive:
                archive.extractall(folder / release)
        return folder / release

    return packages_of


@pytest.fixture
def url(store: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a database that has no schema yet."""
    if store == "sqlite":
        yield f"sqlite:///{tmp_path}/runs.db"
        return
    database = Database(POSTGRES, f"lockstep_test_{uuid.uuid4().hex[:12]}")
    yield database.url
    database.drop()


@pytest.fixture
def older(
    release: str, url: str, packages_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Older]:
    """A process of the older release that is in the middle of its runs; what this process executes is in the same ledger."""
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    older = Older(packages_of(release), url, tmp_path / "ledger")
    try:
        older.until_halted()
        assert older.revision() == release
        yield older
    finally:
        older.close()


def endings(engine: Engine, run_ids: Sequence[str]) -> dict[str, Ending]:
    """What runs came to, once they have ended."""
    found = {}
    for run_id in run_ids:
        run = engine.run(run_id)
        with suppress(NodeFailedError):
            run.result(PATIENCE_SECONDS)
        history = run.history()
        found[run_id] = Ending(
            status=run.status,
            state_hash=history[-1].state_hash,
            keys=[step.idempotency_key for step in history],
            # An older engine tells less by itself.
            events=[
                (e.step_id, e.position, e.node_id, e.type, e.data)
                for e in engine._running().store.events(run_id)
                if not e.type.startswith(ENGINE_EVENTS)
            ],
        )
    return found


def undisturbed(run_ids: Sequence[str], directory: Path) -> dict[str, Ending]:
    """What runs come to that this release executes alone."""
    with pytest.MonkeyPatch.context() as patch, Engine(graph, "memory://") as engine:
        patch.setenv("LEDGER", str(directory / "ledger of the undisturbed"))
        for run_id in run_ids:
            engine.submit(input_of(run_id), run_id=run_id)
        return endings(engine, run_ids)


def published(engine: Engine) -> dict[str, list[str]]:
    """The ids of the events that a new sink gets, in order, by run."""
    outbox, sink = engine._running().store.outbox, Collected()
    outbox.add_sink(sink.name)
    relay = SinkRelay(outbox, sink)
    while relay.turn():
        pass
    return by_run(sink.ids)


def stored(rows: Rows) -> dict[str, list[str]]:
    """The ids of all events, in order, by run."""
    return by_run(f"{event.run_id}/{event.sequence}/{event.position}" for event in rows["outbox"])


def by_run(event_ids: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for event_id in event_ids:
        found.setdefault(event_id.split("/")[0], []).append(event_id)
    return found


def of_runs(rows: Rows, run_ids: Collection[str]) -> Rows:
    """The rows of these runs, whichever tables they are in."""
    return {name: [row for row in found if getattr(row, "run_id", None) in run_ids] for name, found in rows.items()}


def journalled(rows: Rows) -> set[str]:
    """The executions whose results or failures are journalled."""
    attempts = [(row, json.loads(row.meta)["attempt"] if row.kind == "done" else row.n) for row in rows["journal"]]
    return {f"{row.run_id} {row.path.hex()} {attempt}" for row, attempt in attempts}


@pytest.mark.parametrize(("release", "store"), STORES)
def test_an_older_process_goes_on_while_its_database_is_brought_up_to_date(
    older: Older, release: str, command_line: Any, tmp_path: Path
) -> None:
    # given a process of the older release that has ended runs, is in the middle of others, and goes on executing more
    code, out, err = command_line.run("migrate", "--check", "--store", older.url)
    assert (code, err) == (1, "")
    assert f"schema {release}, and this release needs {HEAD}" in out
    ended = older.ended()
    before = of_runs(older.rows(), ended)
    assert {*ENDED} < {*ended}
    assert {name for name, rows in before.items() if rows} == {"runs", "steps", "snapshots", "journal", "outbox"}

    # when this release opens its database
    with Engine(graph, older.url) as engine:
        assert command_line.run("migrate", "--check", "--store", older.url)[0] == 0

        # then the older process begins and ends more runs, and what it is in the middle of stays its own
        older.until_more_ended()
        assert engine.recover() == []
        engine.invoke(input_of("newer"), "newer")
        assert older.end() == (0, "")

        # and all runs end as if undisturbed, and nothing was executed twice
        runs = older.runs()
        assert {*HALTED, "newer"} < {*runs}
        assert older.unfinished() == []
        assert endings(engine, runs) == undisturbed(runs, tmp_path)
        assert set(older.executions().values()) == {1}

        # and a new sink gets the events of all of them; an older process notes nothing for sinks, so it is added after its end
        assert published(engine) == stored(older.rows())

    # and what had ended before has not changed
    assert of_runs(older.rows(), ended) == before


@pytest.mark.parametrize("killed", ["before", "after"])
@pytest.mark.parametrize(("release", "store"), STORES)
def test_what_a_killed_older_process_has_left_is_recovered(older: Older, killed: str, tmp_path: Path) -> None:
    # given a process of the older release that was killed before its database was brought up to date, or after
    if killed == "after":
        open_store(older.url).close()
        older.until_more_ended()
    older.kill()
    left, ended, unfinished = older.rows(), older.ended(), older.unfinished()
    assert {*HALTED} <= {*unfinished}
    assert {*ENDED} < {*ended}

    # when this release opens it, then all rows are what they were
    open_store(older.url).close()
    assert older.revision() == HEAD
    assert older.rows() == left

    # and when it recovers the runs, they end as if undisturbed
    with Engine(graph, older.url) as engine:
        assert sorted(run.run_id for run in engine.recover()) == sorted(unfinished)
        runs = older.runs()
        assert endings(engine, runs) == undisturbed(runs, tmp_path)

        # and what was journalled did not run again
        executions = older.executions()
        assert {executions[execution] for execution in journalled(left)} == {1}

        # and a new sink gets the events of all of them
        assert published(engine) == stored(older.rows())

    # and what had ended before has not changed
    assert of_runs(older.rows(), ended) == of_runs(left, ended)
