"""Coordinators, workers and servers of its own, runs that are always under way, and one fault after the other."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from tests.distributed.conftest import Cluster, Process, embedded_hash
from tests.servers import MYSQL, Database, PostgresServer, RedisServer

from lockstep import LockstepError, StoreUnavailableError
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.fsck import check_store
from lockstep.store import open_store

COORDINATORS, WORKERS, SLOTS = 2, 3, 8
IN_FLIGHT = 200
SUSPENDED_SECONDS = 10.0
"""Longer than a lease holds, and than a worker may miss its beats."""
AWAY_SECONDS = 1.0
"""How long a server that is restarted is away."""
CALM_SECONDS = 100.0
"""After the last fault, all runs have to end within this time."""
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"steps": 12, "delay_ms": 20.0}),
    ("fan", {"width": 8, "delay_ms": 20.0}),
    ("chain", {"steps": 4, "seen": list(range(2000))}),  # A state that travels beside its tasks.
]


class Storm:
    """One store under fire; `rage`, then `calm`, which tells what came of it. A context manager: it ends all that it starts."""

    def __init__(self, store: str, seed: int, folder: Path) -> None:
        self._rng = Random(seed)
        self._stack = ExitStack()
        self.faults: Counter[str] = Counter()
        self.runs: dict[str, tuple[str, dict[str, Any]]] = {}
        self._last_fault = 0.0
        self._later: list[threading.Timer] = []
        self._ended = threading.Event()
        self._postgres: PostgresServer | None = None
        self._possible: list[Callable[[], None]] = [
            *[self.kill_worker, self.kill_coordinator, self.suspend_worker, self.suspend_coordinator] * 2,
            *[self.flush_redis, self.restart_redis],
        ]
        try:
            self._start(store, folder)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, store: str, folder: Path) -> None:
        self._redis = RedisServer()
        self._stack.callback(self._redis.stop)
        url = self._open(store, folder)
        self._admin = create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._stack.callback(self._admin.dispose)
        self.cluster = Cluster(url, self._redis.url, folder)
        self._stack.callback(self.cluster.close)
        self._coordinators = [self.cluster.coordinator() for _ in range(COORDINATORS)]
        self._workers = [self.cluster.worker("--concurrency", str(SLOTS)) for _ in range(WORKERS)]
        if store != "sqlite":
            self._possible += [self.end_sessions] * 2
        if self._postgres is not None:
            self._possible.append(self.restart_postgres)

    def __enter__(self) -> Storm:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, store: str, folder: Path) -> str:
        match store:
            case "sqlite":
                url = f"sqlite:///{folder}/runs.db"
                open_store(url).close()
                return url
            case "mysql":
                database = Database(MYSQL, f"lockstep_test_chaos_{self._redis.port}")
                self._stack.callback(database.drop)
                return database.url
            case _:
                self._postgres = PostgresServer()
                self._stack.callback(self._postgres.close)
                return self._postgres.url

    # Faults

    def kill_worker(self) -> None:
        """SIGKILL, and another one in its place."""
        place = self._rng.randrange(WORKERS)
        self._kill(self._workers[place])
        self._workers[place] = self.cluster.spawn("worker", "--concurrency", str(SLOTS))
        self.cluster.workers[:] = self._workers

    def kill_coordinator(self) -> None:
        """SIGKILL, and another one in its place."""
        place = self._rng.randrange(COORDINATORS)
        self._kill(self._coordinators[place])
        self._coordinators[place] = self.cluster.spawn("coordinator", "--store", self.cluster.store_url)
        self.cluster.coordinators[:] = self._coordinators

    @staticmethod
    def _kill(process: Process) -> None:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()

    def suspend_worker(self) -> None:
        """SIGSTOP, until it counts as dead and a while longer."""
        self._suspend(self._rng.choice(self._workers))

    def suspend_coordinator(self) -> None:
        """SIGSTOP, until its lease has ended and a while longer."""
        self._suspend(self._rng.choice(self._coordinators))

    def _suspend(self, process: Process) -> None:
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(SUSPENDED_SECONDS, process.send_signal, [signal.SIGCONT])
        timer.start()
        self._later.append(timer)

    def flush_redis(self) -> None:
        """FLUSHALL."""
        self.cluster.redis.flushall()

    def restart_redis(self) -> None:
        """It comes back with nothing in it."""
        self._redis.stop()
        time.sleep(AWAY_SECONDS)
        self._redis.start()

    def end_sessions(self) -> None:
        """The server ends all connections to the database."""
        with self._admin.connect() as connection:
            if connection.dialect.name == "postgresql":
                others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
                return
            query = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            for number in list(connection.execute(text(query)).scalars()):
                try:
                    connection.execute(text(f"KILL {number}"))
                except OperationalError:  # It has ended by itself meanwhile.
                    continue

    def restart_postgres(self) -> None:
        """It dies at once, and comes back."""
        assert self._postgres is not None
        self._postgres.stop()
        time.sleep(AWAY_SECONDS)
        self._postgres.start()

    # The storm

    def rage(self, seconds: float, say: Callable[[str], None]) -> None:
        """Keep runs going, and break something at least every two seconds."""
        load = threading.Thread(target=self._keep_going)
        load.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                fault = self._rng.choice(self._possible)
                self.faults[fault.__name__] += 1
                say(fault.__name__)
                fault()
                self._last_fault = time.monotonic()
                time.sleep(self._rng.uniform(0.2, 2.0))
        finally:
            self._ended.set()
            for timer in self._later:
                timer.join()
            load.join()

    def _keep_going(self) -> None:
        """Submit a run for each that has ended, so that there are always some under way."""
        open_runs: set[str] = set()
        number = 0
        while not self._ended.is_set():
            try:
                while len(open_runs) < IN_FLIGHT and not self._ended.is_set():
                    run_id, (graph, value) = f"run-{number}", SHAPES[number % len(SHAPES)]
                    self.cluster.client.submit(graph, value, run_id=run_id)  # Again, if nobody knows whether it arrived.
                    self.runs[run_id] = graph, value
                    open_runs.add(run_id)
                    number += 1
                rows = self.cluster.client.reader.find_runs(run_ids=open_runs, limit=IN_FLIGHT)
                open_runs -= {row.run_id for row in rows if row.status in FINISHED}
            except LockstepError as error:
                assert isinstance(error, StoreUnavailableError), error
            time.sleep(0.05)

    # What came of it

    def calm(self) -> dict[str, Any]:
        """Wait until all runs have ended, and look at everything that there is."""
        since = time.monotonic()
        self.cluster.deaths |= {-signal.SIGKILL}
        while time.monotonic() - since < CALM_SECONDS:
            if all(row.status in FINISHED for row in self._rows()):
                break
            time.sleep(0.1)
        seconds = time.monotonic() - self._last_fault
        rows = self._rows()
        expected = {str(shape): embedded_hash(*shape) for shape in SHAPES}
        return {
            "faults": dict(sorted(self.faults.items())),
            "runs": len(rows),
            "steps": sum(row.step_id + 1 for row in rows),
            "lost": len(self.runs) - len(rows) + sum(row.status not in FINISHED for row in rows),
            "failed": sorted({(row.error or b"").decode()[:200] for row in rows if row.status is RunStatus.FAILED}),
            "another hash": [row.run_id for row in rows if row.state_hash != expected[str(self.runs[row.run_id])]],
            "defects": [f"{defect.run_id}: {defect.what}" for defect in check_store(self.cluster.client.reader)],
            "leases that were lost": self.cluster.said().count("the lease was taken away"),
            "seconds from the last fault to the last end": seconds,
        }

    def _rows(self) -> list[Any]:
        rows: list[Any] = []
        while page := self.cluster.client.reader.find_runs(after=rows[-1].run_id if rows else None, limit=500):
            rows += page
        return rows
