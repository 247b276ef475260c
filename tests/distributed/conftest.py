"""What the tests of real processes share: a database each, and `Cluster`, which starts and kills."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from sqlalchemy import Connection, create_engine, func, select, update
from tests.servers import POSTGRES, Database, RedisServer

from lockstep import Client, Engine, Run
from lockstep.broker.names import Names
from lockstep.cli.load import load_graph
from lockstep.fsck import check_store
from lockstep.store import schema

PATIENCE_SECONDS = 60.0
"""After this long a wait has failed. What passes never waits for it."""
COMMAND = [sys.executable, "-c", "from lockstep.cli import main; main(prog_name='lockstep')"]
FLOWS = Path(__file__).parent / "flows.py"
AUDIT = Path(__file__).parents[2] / "docs" / "examples" / "audit.py"
GRAPHS = (
    f"{FLOWS}:chain",
    f"{FLOWS}:fan",
    f"{FLOWS}:ends",
    f"{FLOWS}:told",
    f"{FLOWS}:asks",
    f"{FLOWS}:pays",
    f"{FLOWS}:speaks",
    f"{FLOWS}:rests",
    f"{FLOWS}:nests",
    f"{FLOWS}:asks_below",
    f"{FLOWS}:speaks_below",
    f"{AUDIT}:graph",
)

STRICT = bool(os.environ.get("LOCKSTEP_TEST_STRICT"))
"""Whether all processes run under settings as hard as can be, see test_strict_settings.py; those that a test chooses win."""
STRICT_PROGRAM = Path(__file__).parent / "programs" / "strict.py"
STRICTLY = {"coordinator": ["--queue-depth", "1"], "worker": ["--concurrency", "1"]}

Process = subprocess.Popen[bytes]
Figure = Callable[[str, object], None]


class Start(NamedTuple):
    """A line of a ledger: a node has started."""

    run_id: str
    path: str
    delivery: int
    pid: int

    @property
    def item(self) -> tuple[str, str]:
        return self.run_id, self.path


class Ledger:
    """The file in which the nodes of a test's runs note their starts, whichever process they are in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def starts(self) -> list[Start]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [Start(run_id, path, int(delivery), int(pid)) for run_id, path, delivery, pid in map(str.split, lines)]

    def deliveries(self) -> list[int]:
        return [start.delivery for start in self.starts()]

    def counts(self) -> Counter[tuple[str, str]]:
        """How often each item has started."""
        return Counter(start.item for start in self.starts())

    def __len__(self) -> int:
        return len(self.starts())


def embedded_hash(name: str, value: dict[str, Any]) -> bytes | None:
    """What a run of the flow must give. Its nodes note their starts in the ledger, so ask when that is read."""
    with Engine(load_graph(f"{FLOWS}:{name}")) as engine:
        run = engine.submit(value)
        run.result(PATIENCE_SECONDS)
        return run.row().state_hash


def assert_as_embedded(runs: dict[Run, tuple[str, dict[str, Any]]]) -> None:
    """All runs end, and have the hashes of embedded runs of the same flow and input."""
    for run in runs:
        run.result(2 * PATIENCE_SECONDS)
    known: dict[str, bytes | None] = {}
    for run, (name, value) in runs.items():
        key = f"{name} {value}"
        if key not in known:
            known[key] = embedded_hash(name, value)
        assert run.row().state_hash == known[key]


class Cluster:
    """Coordinators and workers as processes of their own, over one database and one Redis."""

    def __init__(self, store_url: str, redis_url: str, folder: Path) -> None:
        self.store_url, self.redis_url, self.folder = store_url, redis_url, folder
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.names = Names(self.namespace)
        self.redis = redis.Redis.from_url(redis_url)
        self._engine = create_engine(store_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self.client = Client(store_url, redis_url=redis_url, namespace=self.namespace)
        self.coordinators: list[Process] = []
        self.workers: list[Process] = []
        self._numbers = itertools.count()
        self.deaths = {0, -signal.SIGKILL}
        """How a process may end before the test does."""

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        return {**kept, "LOCKSTEP_NAMESPACE": self.namespace, "LOCKSTEP_METRICS_PORT": "0"}

    def spawn(
        self,
        *arguments: str,
        graphs: tuple[str, ...] = GRAPHS,
        redis_url: str | None = None,
        command: Sequence[str] = COMMAND,
        **environment: str,
    ) -> Process:
        """A `lockstep` process; what it says is in the folder, for when a test fails."""
        role, *others = arguments
        if STRICT and command is COMMAND and role in STRICTLY:
            command, others = [sys.executable, str(STRICT_PROGRAM), "redeliver,lease"], [*STRICTLY[role], *others]
        log = (self.folder / f"{role}-{next(self._numbers)}.log").open("wb")
        flags = [flag for graph in graphs for flag in ("--graphs", graph)] if role != "relay" else []
        with log:
            return subprocess.Popen(
                [*command, role, "--redis", redis_url or self.redis_url, *flags, *others],
                env={**self.environment(), **environment},
                stdout=log,
                stderr=log,
            )

    def coordinator(self, *arguments: str, graphs: tuple[str, ...] = GRAPHS, **environment: str) -> Process:
        """Start one, and wait until it takes part."""
        leases = self.leases()
        process = self.spawn("coordinator", "--store", self.store_url, *arguments, graphs=graphs, **environment)
        self.coordinators.append(process)
        self.until(lambda: len(self.leases() - leases) == 1, "the coordinator takes part")
        return process

    def worker(
        self, *arguments: str, graphs: tuple[str, ...] = GRAPHS, redis_url: str | None = None, **environment: str
    ) -> Process:
        """Start one, and wait until it beats."""
        process = self.spawn("worker", *arguments, graphs=graphs, redis_url=redis_url, **environment)
        self.workers.append(process)
        # Its first claim counts as a beat, too.
        self.until(lambda: self.redis.exists(self.names.worker(self.worker_name(process) or "")), "the worker beats")
        return process

    def worker_name(self, process: Process) -> str | None:
        """What a worker's process is called in Redis; None: it is not there."""
        members: Any = self.redis.zrange(self.names.beats, 0, -1)
        names = [member.decode() for member in members]
        return next((name for name in names if name.split("-")[-2] == str(process.pid)), None)

    def beating(self, process: Process) -> list[int]:
        """The processes that beat for a worker."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"lockstep.broker.beat" in _command_line(pid)]

    def last_beat(self, process: Process) -> float:
        """When a worker has beaten last, by the server's clock in seconds."""
        score: Any = self.redis.zscore(self.names.beats, self.worker_name(process) or "")
        return float(score) / 1000

    def now(self) -> float:
        """The server's clock in seconds."""
        seconds, micros = self.redis.time()
        return float(seconds) + micros / 1e6

    def pass_time(self, process: Process, seconds: float) -> None:
        """Wait until a worker has gone on beating for so long: all that others might do about it is done by then."""
        since = self.last_beat(process)
        self.until(lambda: self.last_beat(process) >= since + seconds, "the worker goes on beating")

    def claimed(self, process: Process) -> int:
        """How many jobs Redis believes a worker to hold."""
        held: Any = self.redis.hlen(self.names.claims(self.worker_name(process) or ""))
        return int(held)

    def queued(self, queue: str = "default") -> int:
        """How many tasks wait in a queue."""
        ids: Any = self.redis.lrange(self.names.queue(queue), 0, -1)
        return sum(int(job_id.rpartition(b"-")[2]) for job_id in ids)

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection to the database; one that has ended with its server is replaced."""
        return self._engine.connect()

    def leases(self) -> set[str]:
        """The coordinators that own partitions."""
        owner = schema.partitions.c.lease_id
        with self.reading() as connection:
            return set(connection.execute(select(owner).where(owner.is_not(None))).scalars())

    def lease_of(self, coordinator: Process) -> str | None:
        """The lease that a process has, by what its holder says."""
        with self.reading() as connection:
            rows = connection.execute(select(schema.leases.c.lease_id, schema.leases.c.holder)).all()
        return next((row.lease_id for row in rows if row.holder.split(":")[-2] == str(coordinator.pid)), None)

    def owner_of(self, run: Run) -> Process | None:
        """The coordinator that moves a run."""
        partition = schema.partitions.c
        with self.reading() as connection:
            query = select(partition.lease_id).where(partition.partition_id == run.row().partition_id)
            lease = connection.execute(query).scalar()
        return next((process for process in self.coordinators if lease and self.lease_of(process) == lease), None)

    def move_to_another_host(self, coordinator: Process) -> None:
        """Make a coordinator look, to the others, as if it ran elsewhere: only the end of its lease tells them that it died."""
        lease = schema.leases.c
        with self.reading() as connection:
            known = connection.execute(select(lease.holder).where(lease.lease_id == self.lease_of(coordinator))).scalar_one()
            elsewhere = f"elsewhere:{known.split(':', 1)[1]}"
            connection.execute(update(schema.leases).where(lease.holder == known).values(holder=elsewhere))

    def commits(self) -> int:
        """How many steps are stored."""
        with self.reading() as connection:
            steps: int = connection.execute(select(func.count()).select_from(schema.steps)).scalar_one()
            return steps

    def journalled(self, run: Run) -> set[tuple[str, str]]:
        """The run's items whose results are stored."""
        row = schema.journal.c
        with self.reading() as connection:
            done = connection.execute(select(row.path).where(row.run_id == run.run_id, row.kind == "done")).scalars()
            return {(run.run_id, path.hex()) for path in done}

    def journalled_of(self, *runs: Run) -> set[tuple[str, str]]:
        """The items of these runs whose results are stored."""
        return {item for run in runs for item in self.journalled(run)}

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for something that happens in other processes."""
        deadline = time.monotonic() + seconds
        while not condition():
            for process in (*self.coordinators, *self.workers):
                assert process.poll() is None or process.returncode in self.deaths, self.said()
            assert time.monotonic() < deadline, f"never: {what}\n{self.said()}"
            time.sleep(0.01)

    def said(self) -> str:
        """What the processes have said."""
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))

    def terminate(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and a clean end."""
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0, self.said()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL."""
        process.kill()
        process.wait()

    def close(self) -> None:
        """End all processes; those that are alive must end cleanly when asked."""
        alive = [process for process in (*self.workers, *self.coordinators) if process.poll() is None]
        try:
            for process in alive:
                process.send_signal(signal.SIGCONT)
            for process in alive:
                process.send_signal(signal.SIGTERM)
            for process in alive:
                assert process.wait(PATIENCE_SECONDS) == 0, self.said()
            # Whatever a test has done to the processes, what is stored must hold together.
            assert list(check_store(self.client.reader)) == []
        finally:
            for process in alive:
                process.kill()
                process.wait()
            self.client.close()
            self._engine.dispose()
            self.redis.close()


def _command_line(pid: str) -> bytes:
    """What a process was started with; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Nodes wait until this file exists."""
    return tmp_path / "gate"


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Notes something measured, and shows it under `-s`. Nothing is asserted of it: machines differ."""

    def note(name: str, value: object) -> None:
        shown = f"{value:.2f}" if isinstance(value, float) else value
        record_property(name, shown)
        sys.stdout.write(f"\n    {name}: {shown}\n")

    return note


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """On PostgreSQL, or on the server that a test names as this fixture's parameter."""
    database = Database(getattr(request, "param", POSTGRES), f"lockstep_test_{uuid.uuid4().hex[:12]}")
    yield database
    database.drop()


@pytest.fixture
def cluster(redis_server: RedisServer, database: Database, tmp_path: Path) -> Iterator[Cluster]:
    """No process yet: each test starts those that it needs."""
    cluster = Cluster(database.url, redis_server.url, tmp_path)
    yield cluster
    cluster.close()
