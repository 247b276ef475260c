"""Coordinators, workers and servers of its own, runs that are always under way, and one fault after the other."""

from __future__ import annotations

import bisect
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from tests.chaos.line import Line
from tests.distributed.conftest import FLOWS, Cluster, Process, embedded_hash
from tests.history import violations
from tests.servers import MariaDBServer, PostgresServer, RedisServer

from lockstep import LockstepError, StoreUnavailableError
from lockstep.cli.load import load_graph
from lockstep.compiled import by_hash
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.store import open_store, schema

COORDINATORS, WORKERS, SLOTS = 2, 3, 8
IN_FLIGHT = 200
SUSPENDED_SECONDS = 10.0
"""Longer than a lease holds, and than a worker may miss its beats."""
AWAY_SECONDS = 1.0
"""How long a server that is restarted is away."""
MAX_STALL_SECONDS = 10.0
MAX_SLOW_SECONDS = 5.0
MAX_DELAY_SECONDS = 0.1
CALM_SECONDS = 100.0
"""After the last fault, all runs have to end within this time."""
RECOVERY_SECONDS = 15.0
"""And each must have moved within this one."""
ENOUGH_SUSPENDED = 10
"""Of so many suspended coordinators, some come back as zombies. Of a few, all may be killed before, or be alone."""
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"steps": 12, "delay_ms": 20.0}),
    ("fan", {"width": 8, "delay_ms": 20.0}),
    ("nests", {"width": 3, "steps": 3, "delay_ms": 20.0}),  # Its children are not counted as runs.
    ("chain", {"steps": 4, "seen": list(range(2000))}),  # A state that travels beside its tasks.
]
MUST_BE_EMPTY = ("lost", "failed", "another hash", "defects")


class Storm:
    """One store under fire; `rage`, then `calm`, which tells what came of it. A context manager: it ends all that it starts.

    Everybody reaches the servers by lines that can be slow, stalled or cut.
    """

    def __init__(self, store: str, seed: int, folder: Path, in_flight: int = IN_FLIGHT) -> None:
        self._rng = Random(seed)
        self._stack = ExitStack()
        self._in_flight = in_flight
        self.faults: Counter[str] = Counter()
        self.runs: dict[str, tuple[str, dict[str, Any]]] = {}
        self._moments: list[float] = []
        self._over = 0.0
        self._later: list[threading.Timer] = []
        self._ended = threading.Event()
        self._database: PostgresServer | MariaDBServer | None = None
        self._lines: list[Line] = []
        try:
            self._start(store, folder)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, store: str, folder: Path) -> None:
        self._redis = RedisServer()
        self._stack.callback(self._redis.stop)
        url, direct_url = self._open(store, folder)
        self._admin = sa.create_engine(direct_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._stack.callback(self._admin.dispose)
        redis_url = f"redis://127.0.0.1:{self._line_to(self._redis.port).port}/0"
        self.cluster = Cluster(url, redis_url, folder)
        self._stack.callback(self.cluster.close)
        self._coordinators = [self.cluster.coordinator() for _ in range(COORDINATORS)]
        self._workers = [self.cluster.worker("--concurrency", str(SLOTS)) for _ in range(WORKERS)]
        self._possible: list[Callable[[], None]] = [
            *[self.kill_worker, self.kill_coordinator, self.suspend_worker, self.suspend_coordinator] * 2,
            *[self.flush_redis, self.restart_redis, self.slow_line, self.stall_line, self.cut_line],
        ]
        if self._database is not None:
            self._possible += [self.end_sessions, self.end_sessions, self.restart_database]

    def __enter__(self) -> Storm:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, store: str, folder: Path) -> tuple[str, str]:
        """The URL by which everybody reaches the store, and the one that no fault lies on."""
        if store == "sqlite":
            url = f"sqlite:///{folder}/runs.db"
            open_store(url).close()
            return url, url
        self._database = MariaDBServer() if store == "mysql" else PostgresServer()
        self._stack.callback(self._database.close)
        direct_url = self._database.url
        line = self._line_to(self._database.port)
        return sa.make_url(direct_url).set(port=line.port).render_as_string(hide_password=False), direct_url

    def _line_to(self, port: int) -> Line:
        self._lines.append(Line(port))
        self._stack.callback(self._lines[-1].close)
        return self._lines[-1]

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
        self._after(SUSPENDED_SECONDS, lambda: process.send_signal(signal.SIGCONT))

    def _after(self, seconds: float, undo: Callable[[], None]) -> None:
        """Undo a fault later; it is over then, and not before."""

        def end() -> None:
            undo()
            self._over = time.time()

        timer = threading.Timer(seconds, end)
        timer.start()
        self._later.append(timer)

    def flush_redis(self) -> None:
        """FLUSHALL."""
        self._redis.flush()

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
                connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {others}"))
                return
            query = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            for number in list(connection.execute(sa.text(query)).scalars()):
                try:
                    connection.execute(sa.text(f"KILL {number}"))
                except OperationalError:  # It has ended by itself meanwhile.
                    continue

    def restart_database(self) -> None:
        """It dies at once, and comes back."""
        assert self._database is not None
        self._database.stop()
        time.sleep(AWAY_SECONDS)
        self._database.start()

    def slow_line(self) -> None:
        """What is sent to Redis or the database, and back, takes longer for some seconds."""
        line = self._rng.choice(self._lines)
        line.slow(self._rng.uniform(0.01, MAX_DELAY_SECONDS))
        self._after(self._rng.uniform(1.0, MAX_SLOW_SECONDS), lambda: line.slow(0.0))

    def stall_line(self) -> None:
        """Nothing gets through to Redis or the database, and nobody is told; then all of it arrives."""
        line = self._rng.choice(self._lines)
        line.stall()
        self._after(self._rng.uniform(1.0, MAX_STALL_SECONDS), line.flow)

    def cut_line(self) -> None:
        """All connections to Redis or to the database end."""
        self._rng.choice(self._lines).cut()

    def _replace_the_ended(self) -> None:
        """Do what a service manager does: a process that finds no server when it starts says so, and ends."""
        for place, process in enumerate(self._workers):
            if process.poll() is not None:
                self._workers[place] = self.cluster.spawn("worker", "--concurrency", str(SLOTS))
        for place, process in enumerate(self._coordinators):
            if process.poll() is not None:
                self._coordinators[place] = self.cluster.spawn("coordinator", "--store", self.cluster.store_url)
        self.cluster.workers[:], self.cluster.coordinators[:] = self._workers, self._coordinators

    # The storm

    def rage(self, seconds: float, say: Callable[[str], None]) -> None:
        """Keep runs going, and break something at least every two seconds."""
        load = threading.Thread(target=self._keep_going)
        load.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self._replace_the_ended()
                fault = self._rng.choice(self._possible)
                self.faults[fault.__name__] += 1
                say(fault.__name__)
                self._moments.append(time.time())
                fault()
                self._over = time.time()
                time.sleep(self._rng.uniform(0.2, 2.0))
        finally:
            for timer in self._later:
                timer.join()
            self._ended.set()
            load.join()

    def _keep_going(self) -> None:
        """Submit a run for each that has ended, so that there are always some under way."""
        open_runs: set[str] = set()
        number = 0
        while not self._ended.is_set():
            try:
                while len(open_runs) < self._in_flight and not self._ended.is_set():
                    run_id, (graph, value) = f"run-{number}", SHAPES[number % len(SHAPES)]
                    self.cluster.client.submit(graph, value, run_id=run_id)  # Again, if nobody knows whether it arrived.
                    self.runs[run_id] = graph, value
                    open_runs.add(run_id)
                    number += 1
                rows = self.cluster.client.reader.find_runs(run_ids=open_runs, limit=self._in_flight)
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
            self._replace_the_ended()
            if all(row.status in FINISHED for row in self._rows()):
                break
            time.sleep(0.1)
        rows = self._rows()
        expected = {str(shape): embedded_hash(*shape) for shape in SHAPES}
        graphs = by_hash(load_graph(f"{FLOWS}:{name}").compile() for name in ("chain", "fan", "nests"))
        return {
            "faults": dict(sorted(self.faults.items())),
            "runs": len(rows),
            "steps": sum(row.step_id + 1 for row in rows),
            "lost": len(self.runs) - len(rows) + sum(row.status not in FINISHED for row in rows),
            "failed": sorted({(row.error or b"").decode()[:200] for row in rows if row.status is RunStatus.FAILED}),
            "another hash": [row.run_id for row in rows if row.state_hash != expected[str(self.runs[row.run_id])]],
            # Two commits of a step, two results of an item and lost deltas among them.
            "defects": list(violations(self.cluster.client.reader, graphs)),
            "refused zombies": self.cluster.said().count("the lease was taken away"),
            **self._recovery(),
        }

    def _recovery(self) -> dict[str, float]:
        """How long after each fault the next step was committed, and after the last one, until all runs had moved.

        A fault that lasts is over when it is undone. The servers' clocks are this machine's.
        """
        with self._admin.connect() as connection:
            steps = schema.steps.c
            rows = connection.execute(sa.select(steps.run_id, steps.committed_at).order_by(steps.committed_at)).all()
        commits = [row.committed_at / 1000 for row in rows]
        waits = [
            commits[place] - moment for moment in self._moments if (place := bisect.bisect(commits, moment)) < len(commits)
        ]
        moved: dict[str, float] = {}
        for row in rows:
            if row.committed_at / 1000 > self._over:
                moved.setdefault(row.run_id, row.committed_at / 1000 - self._over)
        return {
            "seconds to the next commit, p50": round(statistics.median(waits), 2),
            "seconds to the next commit, max": round(max(waits), 2),
            "seconds from the last fault until all had moved": round(max(moved.values(), default=0.0), 2),
        }

    def _rows(self) -> list[Any]:
        rows: list[Any] = []
        while page := self.cluster.client.reader.find_runs(after=rows[-1].run_id if rows else None, limit=500):
            rows += page
        return [row for row in rows if row.parent_run_id is None]


def is_violated(report: dict[str, Any]) -> bool:
    """Whether a promise was broken; how fast all went on is not looked at."""
    made_zombies = report["faults"].get("suspend_coordinator", 0) >= ENOUGH_SUSPENDED
    return any(report[name] for name in MUST_BE_EMPTY) or (made_zombies and not report["refused zombies"])
