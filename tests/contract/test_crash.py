"""Sudden death: whenever a process is killed, each group that it committed is there whole, and the others not at all."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, cast

from lockstep.records import Committed
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import Adapter, World

RUNS = [f"run-{n:02}" for n in range(20)]

COMMIT_UNTIL_KILLED = """
import itertools, sys
from hashlib import sha256
from lockstep.core.lifecycle import RunStatus
from lockstep.records import Committed, Event, JournalRow, RunUpdate, StepRow, Transition
from lockstep.store import open_store

def transition(run_id, k):
    key = sha256(f"{run_id} {k}".encode()).digest()
    return Transition(
        run_id=run_id,
        journal=[JournalRow(run_id=run_id, path=key, kind="done", n=0, step_id=k, payload=b"{}", meta=b"{}")],
        step=StepRow(run_id=run_id, step_id=k, idempotency_key=key, state_hash=key, patch=b"[]", frontier=b"[]"),
        events=[Event(run_id=run_id, sequence=k + 1, position=0, step_id=k, node_id="node", type="found", data=b"1")],
        update=RunUpdate(
            run_id=run_id, expected_version=k, status=RunStatus.RUNNING, step_id=k, state_hash=key, error=None, options=b"{}",
            retries=0,
        ),
    )

store = open_store(sys.argv[1])
store.open_lease("dying", "dying", 3600.0)
for k in itertools.count():
    outcomes = store.commit("dying", [transition(run_id, k) for run_id in sys.argv[2:]])
    assert set(outcomes) == {Committed()}
    print(k, flush=True)
"""


def test_a_process_that_is_killed_leaves_whole_groups(sql_adapter: Adapter, world: World) -> None:
    # given a coordinator in a process of its own that commits group after group of all its runs
    world.submit(*RUNS, partition_id="dying")
    url = cast("SqlStore", world.a)._access.database.engine.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", COMMIT_UNTIL_KILLED, url, *RUNS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    heard = [int(process.stdout.readline()) for _ in range(10)]

    # when it is killed, at whatever it was doing
    process.kill()
    heard += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()

    # then its runs can be taken over, and each of them has every group that was answered, whole, and at most the one after
    assert world.adopt(dead=["dying"]) == RUNS
    rows = world.a.find_runs()
    [last] = {row.step_id for row in rows}
    assert last in (heard[-1], heard[-1] + 1)
    for row in rows:
        steps = world.a.steps(row.run_id, 0, 10_000)
        assert [step.step_id for step in steps] == list(range(last + 1))
        assert [event.sequence for event in world.a.events(row.run_id)] == list(range(1, last + 2))
        assert len(world.a.journal(row.run_id, [step.idempotency_key for step in steps])) == last + 1
        assert row.version == last + 1
    # and go on from there
    assert world.commit(*[world.step(run_id, last + 1) for run_id in RUNS], lease="B") == [Committed()] * len(RUNS)
