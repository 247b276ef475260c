"""What the tests of real processes share: a Redis of their own, a database each, and `Cluster`, which starts and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.distributed.servers import Database, RedisServer

from lockstep import Client
from lockstep.broker.names import Names

PATIENCE_SECONDS = 60.0
"""After this long a wait has failed. What passes never waits for it."""
COMMAND = [sys.executable, "-c", "from lockstep.cli import main; main(prog_name='lockstep')"]
FLOWS = Path(__file__).parent / "flows.py"
AUDIT = Path(__file__).parents[2] / "docs" / "examples" / "audit.py"
POSTGRES = os.environ.get("LOCKSTEP_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
GRAPHS = (f"{FLOWS}:chain", f"{FLOWS}:fan", f"{AUDIT}:graph")


class Cluster:
    """Coordinators and workers as processes of their own, over one database and one Redis."""

    def __init__(self, store_url: str, redis_url: str, folder: Path) -> None:
        self.store_url, self.redis_url, self.folder = store_url, redis_url, folder
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.names = Names(self.namespace)
        self.redis = redis.Redis.from_url(redis_url)
        self.client = Client(store_url, redis_url=redis_url, namespace=self.namespace)
        self.coordinators: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        return {**kept, "LOCKSTEP_NAMESPACE": self.namespace, "LOCKSTEP_METRICS_PORT": "0"}

    def spawn(self, *arguments: str, graphs: tuple[str, ...] = GRAPHS) -> subprocess.Popen[bytes]:
        """A `lockstep` process; what it says is in the folder, for when a test fails."""
        role, *others = arguments
        log = (self.folder / f"{role}-{len(self.coordinators) + len(self.workers)}.log").open("wb")
        flags = [flag for graph in graphs for flag in ("--graphs", graph)]
        with log:
            return subprocess.Popen(
                [*COMMAND, role, "--redis", self.redis_url, *flags, *others], env=self.environment(), stdout=log, stderr=log
            )

    def coordinator(self, *arguments: str, graphs: tuple[str, ...] = GRAPHS) -> subprocess.Popen[bytes]:
        """Start one, and wait until it takes part."""
        leases = self.leases()
        process = self.spawn("coordinator", "--store", self.store_url, *arguments, graphs=graphs)
        self.coordinators.append(process)
        self.until(lambda: len(self.leases() - leases) == 1, "the coordinator takes part")
        return process

    def worker(self, *arguments: str, graphs: tuple[str, ...] = GRAPHS) -> subprocess.Popen[bytes]:
        """Start one, and wait until it beats."""
        beating = self.redis.zcard(self.names.beats)
        process = self.spawn("worker", *arguments, graphs=graphs)
        self.workers.append(process)
        self.until(lambda: self.redis.zcard(self.names.beats) > beating, "the worker beats")
        return process

    def leases(self) -> set[str]:
        """The coordinators that own partitions."""
        from sqlalchemy import select

        from lockstep.store.schema import partitions

        with self.client._store._reading() as connection:  # type: ignore[attr-defined]
            return set(connection.execute(select(partitions.c.lease_id).where(partitions.c.lease_id.is_not(None))).scalars())

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for something that happens in other processes."""
        deadline = time.monotonic() + seconds
        while not condition():
            for process in (*self.coordinators, *self.workers):
                assert process.poll() is None or process.returncode in (0, -signal.SIGKILL), self.said()
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
                process.send_signal(signal.SIGTERM)
            for process in alive:
                assert process.wait(PATIENCE_SECONDS) == 0, self.said()
        finally:
            for process in alive:
                process.kill()
                process.wait()
            self.client.close()
            self.redis.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database(POSTGRES, f"lockstep_test_{uuid.uuid4().hex[:12]}")
    yield database
    database.drop()


@pytest.fixture
def cluster(redis_server: RedisServer, database: Database, tmp_path: Path) -> Iterator[Cluster]:
    """No process yet: each test starts those that it needs."""
    cluster = Cluster(database.url, redis_server.url, tmp_path)
    yield cluster
    cluster.close()
