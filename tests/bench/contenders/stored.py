"""What PostgreSQL tells of Lockstep's runs, beside Lockstep's own connections: when all have ended, and how fast they went."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from tests.bench.contenders.child import Runner
from tests.bench.shapes import State

POLL_SECONDS = 0.005
"""Between two looks at runs that are in flight together: short beside what a batch takes, and one short query each."""

CHECK_SECONDS = 5.0
"""Between two looks at the processes that might have ended. Runs that never end, the benchmark's own timeout ends."""


class Stored:
    """The database of a measurement, read."""

    def __init__(self, url: str, check: Callable[[], None] = lambda: None) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)
        self._check = check
        self.statements = 0

    def __enter__(self) -> "Stored":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ended(self, runs: Sequence[Any]) -> Iterator[State]:
        """Wait for the end of all runs, and return their end states. One run is waited for as users would; for several, one
        query asks whether any is unfinished, and their states are read when somebody wants them."""
        if len(runs) == 1:
            return iter([self._result(runs[0])])
        checked = time.monotonic()
        while self._one("SELECT count(*) FROM unfinished")[0]:
            time.sleep(POLL_SECONDS)
            if time.monotonic() > checked + CHECK_SECONDS:
                self._check()
                checked = time.monotonic()
        return map(self._result, runs)

    def _result(self, run: Any) -> State:
        while True:
            try:
                state: State = run.result(CHECK_SECONDS)
                return state
            except TimeoutError:
                self._check()

    def latency_ms(self) -> dict[str, float]:
        """Percentiles of the time from one commit of a run to its next, in milliseconds by the database's clock."""
        p50, p95 = self._one(
            "SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY ms) FROM ("
            "SELECT committed_at - lag(committed_at) OVER (PARTITION BY run_id ORDER BY step_id) AS ms FROM steps "
            "WHERE run_id LIKE 'run-%') AS gaps WHERE ms IS NOT NULL"
        )[0]
        return {"p50": p50, "p95": p95}

    def runner(self, begin: Callable[[str], Any]) -> Runner:
        """What measures with this."""
        return Runner(begin, self.ended, self.latency_ms, lambda: self.statements)

    def _one(self, sql: str) -> tuple[Any, ...]:
        self.statements += 1
        row: tuple[Any, ...] | None = self._connection.execute(sql).fetchone()
        assert row is not None
        return row
