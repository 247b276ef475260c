"""Several processes and engines on one SQLite file: each has its own lease, none waits for another's, nothing is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lockstep import Engine
from lockstep.cli.load import load_graph
from lockstep.fsck import check_store
from lockstep.store import open_store

NAMES = ["north", "east", "south", "west"]
RUNS = 50
CROWDED_SECONDS = float(os.environ.get("LOCKSTEP_TEST_CROWDED_SECONDS", "5"))
"""How long many processes share a file."""


class File:
    """A SQLite file, and what it holds, looked at without the library."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._path)) as database:
            return database.execute(query).fetchall()

    def assert_whole(self) -> None:
        """Nothing is damaged, nothing is left over, and no step, result or key is there twice."""
        assert self.rows("PRAGMA integrity_check") == [("ok",)]
        for table in ("leases", "partitions", "unfinished"):
            assert self.rows(f"SELECT * FROM {table}") == []
        [(runs, steps)] = self.rows("SELECT count(*), sum(step_id + 1) FROM runs WHERE status = 'succeeded'")
        assert self.rows("SELECT count(*) FROM runs") == [(runs,)]
        assert self.rows("SELECT count(*), count(DISTINCT idempotency_key) FROM steps") == [(steps, steps)]
        assert self.rows("SELECT run_id, path FROM journal WHERE kind = 'done' GROUP BY 1, 2 HAVING count(*) > 1") == []


@pytest.fixture
def file(tmp_path: Path) -> File:
    """A file that the first who comes has to make."""
    return File(tmp_path / "runs.db")


@pytest.fixture
def flows(program: Callable[[str], Path]) -> Any:
    """The module programs/shared_flows.py."""
    load_graph(f"{program('shared_flows.py')}:north")
    import shared_flows

    return shared_flows


def test_four_processes_run_four_graphs_on_one_file(
    command_line: Any, program: Callable[[str], Path], pulse: Any, flows: Any, file: File
) -> None:
    # given four processes at once, on a file that none of them has made yet
    beat, gate = pulse(), pulse()
    processes = {
        name: command_line.start(
            *("run", f"{program('shared_flows.py')}:{name}", "--run-id", name, "--store", file.url, "--json"),
            pass_fds=[beat.fd, gate.read_fd],
            PULSE=str(beat.fd),
            GATE=str(gate.read_fd),
        )
        for name in NAMES
    }
    beat.close_writer()

    # when the first node of each is under way, while those of the others are too
    arrived = beat.wait(len(NAMES))

    # then each process owns its run by a lease and a partition of its own
    owners = file.rows(
        "SELECT runs.run_id, partitions.partition_id, leases.lease_id, leases.holder FROM runs"
        " JOIN partitions USING (partition_id) JOIN leases USING (lease_id)"
    )
    counts = file.rows("SELECT (SELECT count(*) FROM leases), (SELECT count(*) FROM partitions)")
    gate.close_writer()
    ended = {name: (*process.communicate(timeout=60), process.returncode) for name, process in processes.items()}
    beat.close()
    gate.close()
    assert arrived == len(NAMES), ended
    assert sorted(run_id for run_id, *_ in owners) == sorted(NAMES)
    assert [len(set(column)) for column in zip(*owners, strict=True)] == [len(NAMES)] * 4
    assert counts == [(len(NAMES), len(NAMES))]

    # and when they go on, all of them succeed, and none has found the file locked
    for name, (out, err, returncode) in ended.items():
        assert returncode == 0, err
        assert "locked" not in err
        record = json.loads(out)
        assert (record["graph"], record["status"], record["state"]) == (name, "succeeded", flows.expected(name))
    file.assert_whole()


def test_four_engines_run_200_runs_on_one_file_while_others_read(flows: Any, file: File) -> None:
    # given four engines that write, and two threads that read through a fifth one meanwhile
    reader, written = Engine([getattr(flows, name) for name in NAMES], file.url), threading.Event()

    def write(name: str) -> list[dict[str, Any]]:
        with Engine(getattr(flows, name), file.url) as engine:
            runs = [engine.submit({"turns": flows.TURNS - 1}, run_id=f"{name}-{number}") for number in range(RUNS)]
            return [run.result() for run in runs]

    def read() -> int:
        looks = 0
        while not written.is_set():
            for run in reader.runs():
                history = run.history()
                assert [step.step_id for step in history] == list(range(len(history)))
                if history:
                    run.state(history[-1].step_id)  # Raises if it does not have the hash that was committed.
                looks += 1
        return looks

    # when
    with reader, ThreadPoolExecutor(len(NAMES) + 2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        results = dict(zip(NAMES, pool.map(write, NAMES), strict=True))
        written.set()
        looks = [future.result() for future in readers]
        succeeded = list(reader.runs(status="succeeded"))

    # then all runs have succeeded, readers have seen nothing but committed states, and no engine took over another's run
    for name in NAMES:
        turns = range(flows.TURNS, flows.TURNS + 1)
        work = [f"{name} {turn}.{number}" for turn in turns for number in range(flows.WIDTH)]
        assert results[name] == [{"turns": flows.TURNS + 1, "seen": [name, *work]}] * RUNS
    assert min(looks) > 0
    assert len(succeeded) == RUNS * len(NAMES)
    assert file.rows("SELECT count(DISTINCT partition_id), min(retries), max(retries) FROM runs") == [(len(NAMES), 0, 0)]
    file.assert_whole()


def test_four_processes_write_and_four_read_one_file(program: Callable[[str], Path], file: File) -> None:
    # given eight processes, some seconds of them
    with closing(open_store(file.url)):
        pass
    arguments = [sys.executable, "-W", "error", str(program("crowding.py"))]
    processes = [
        subprocess.Popen(
            [*arguments, role, file.url, str(CROWDED_SECONDS), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ("write", "read")
        for name in NAMES
    ]
    try:
        said = [(*process.communicate(timeout=CROWDED_SECONDS + 60), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()

    # then none of them has met an error, and all have got on
    assert [(err, returncode) for _, err, returncode in said] == [("", 0)] * 8
    written = [json.loads(out)["runs"] for out, _, _ in said[:4]]
    looks = [json.loads(out)["looks"] for out, _, _ in said[4:]]
    assert min(written) and min(looks), (written, looks)
    # and all that was written is there, whole
    assert file.rows("SELECT count(*) FROM runs") == [(sum(written),)]
    file.assert_whole()
    with closing(open_store(file.url)) as store:
        assert list(check_store(store)) == []


def test_engines_that_come_and_go_on_one_file_disturb_nobody(flows: Any, file: File) -> None:
    # given an engine at work, when others start, recover, run and end beside it
    def visit(number: int) -> list[Any]:
        with Engine(flows.east, file.url) as engine:
            recovered = engine.recover()
            engine.invoke({"turns": flows.TURNS}, run_id=f"visit-{number}")
            return recovered

    with Engine(flows.north, file.url) as engine, ThreadPoolExecutor(4) as pool:
        runs = [engine.submit({}, run_id=f"run-{number}") for number in range(10)]
        recovered = [run for found in pool.map(visit, range(12)) for run in found]
        states = [run.result() for run in runs]

    # then
    assert recovered == []
    assert states == [flows.expected("north")] * 10
    file.assert_whole()
