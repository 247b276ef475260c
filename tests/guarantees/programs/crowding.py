"""Writes to a SQLite file, or reads from it, for some seconds, and prints as JSON what was done.

crowding.py write|read URL SECONDS NAME
"""

import json
import sys
import time
from contextlib import closing
from pathlib import Path

from lockstep import Engine
from lockstep.cli.load import load_graph
from lockstep.history import read_history, read_state
from lockstep.store import open_store


def write(url: str, seconds: float, name: str) -> dict[str, int]:
    """Run after run, each to its end."""
    graph = load_graph(f"{Path(__file__).parent}/shared_flows.py:{name}")
    import shared_flows

    end = time.monotonic() + seconds
    runs = 0
    with Engine(graph, url) as engine:
        while time.monotonic() < end:
            some = [engine.submit({"turns": shared_flows.TURNS - 3}, run_id=f"{name}-{runs + n}") for n in range(4)]
            for run in some:
                assert run.result()["turns"] == shared_flows.TURNS + 1
            runs += len(some)
    return {"runs": runs}


def read(url: str, seconds: float, name: str) -> dict[str, int]:
    """The state and history of each run that is there, again and again."""
    end = time.monotonic() + seconds
    looks = 0
    with closing(open_store(url, create=False)) as store:
        while time.monotonic() < end:
            after = None
            while (rows := store.find_runs(after=after, limit=20)) and time.monotonic() < end:
                for row in rows:
                    if row.step_id >= 0:
                        read_state(store, row.run_id, row.step_id)  # Raises if it does not have the hash that was committed.
                        steps = [step.step_id for step in read_history(store, row.run_id, 0, row.step_id)]
                        assert steps == list(range(row.step_id + 1))
                        looks += 1
                after = rows[-1].run_id
    return {"looks": looks}


if __name__ == "__main__":
    role, url, seconds, name = sys.argv[1:]
    print(json.dumps({"write": write, "read": read}[role](url, float(seconds), name)))  # noqa: T201 # The answer.
