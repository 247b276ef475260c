"""Which commits on SQLite wait for the disk: see docs/decisions/0001-sqlite-durability.md."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.errors import ConfigurationError
from lockstep.records import NewRun, RunUpdate, StepRow, Transition
from lockstep.store.sql import SqlStore

NORMAL, FULL = 1, 2


def step(step_id: int, status: RunStatus = RunStatus.RUNNING) -> Transition:
    row = StepRow(run_id="r", step_id=step_id, idempotency_key=bytes([step_id] * 32), state_hash=b"h", patch=b"", frontier=b"")
    update = RunUpdate(
        run_id="r",
        expected_version=step_id,
        status=status,
        step_id=step_id,
        state_hash=b"h",
        error=None,
        options=b"{}",
        retries=0,
    )
    return Transition(run_id="r", step=row, update=update)


def waits_of(url: str) -> list[int]:
    """The setting under which each commit of a run of three steps was made."""
    with closing(SqlStore(url)) as store:
        store.open_lease("A", "here", 3600)
        new = NewRun(run_id="r", graph="g", graph_hash="h", input=b"{}", options=b"{}", partition_id="A", shard=0)
        store.submit([new])
        used = []
        for transition in (step(0), step(1), step(2, RunStatus.SUCCEEDED)):
            store.commit("A", [transition])
            used.append(store._commits.of("A")._driver.execute("PRAGMA synchronous").fetchone()[0])
        return used


def test_the_commit_that_ends_a_run_waits_and_those_between_do_not(tmp_path: Path) -> None:
    assert waits_of(f"sqlite:///{tmp_path}/a.db") == [NORMAL, NORMAL, FULL]


def test_every_commit_waits_where_the_url_says_so(tmp_path: Path) -> None:
    assert waits_of(f"sqlite:///{tmp_path}/a.db?synchronous=full") == [FULL, FULL, FULL]


def test_another_setting_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="synchronous=off is not one of relied, full"):
        SqlStore(f"sqlite:///{tmp_path}/a.db?synchronous=off")


def test_submissions_and_all_other_writes_wait(tmp_path: Path) -> None:
    # given a connection of the pool, over which runs are submitted and commands sent
    with closing(SqlStore(f"sqlite:///{tmp_path}/a.db")) as store, store._access.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == FULL
