"""Both modes for the same graph: in this process, or by a coordinator and a worker that get it over a pipe of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.servers import POSTGRES, RedisServer, empty_database_on

from lockstep import Client, Engine, Graph, Options, Run

PATIENCE_SECONDS = 60.0
ROOT = Path(__file__).parents[2]
ROLE = """
import importlib, pickle, sys
from lockstep.cli import main
graph = pickle.load(sys.stdin.buffer)
module = importlib.import_module(f"lockstep.cli.{sys.argv[1]}")
module.load_graphs = lambda references: [graph.compile()]
main(sys.argv[1:], prog_name="lockstep")
"""


class Served:
    """Runs of one graph, by whatever executes them."""

    def __init__(self, owner: Engine | Client, submit: Callable[..., Run]) -> None:
        self._owner = owner
        self.submit = submit

    def invoke(self, value: dict[str, Any], **submission: Any) -> dict[str, Any]:
        return self.submit(value, **submission).result(PATIENCE_SECONDS)

    def runs(self, **which: Any) -> Iterator[Run]:
        return self._owner.runs(**which)

    def delete(self, run_id: str) -> bool:
        return self._owner.delete(run_id)


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(params=["embedded", "distributed"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    """Serve a graph in the mode of the test."""
    if request.param == "embedded":
        return _embedded
    redis_server: RedisServer = request.getfixturevalue("redis_server")
    return lambda graph, options=None: _distributed(graph, options, redis_server.url, tmp_path)


@contextmanager
def _embedded(graph: Graph, options: Options | None = None) -> Iterator[Served]:
    with Engine(graph, options=options) as engine:
        yield Served(engine, engine.submit)


@contextmanager
def _distributed(graph: Graph, options: Options | None, redis_url: str, folder: Path) -> Iterator[Served]:
    store, namespace = empty_database_on(POSTGRES), f"t{uuid.uuid4().hex[:12]}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")},
        "LOCKSTEP_NAMESPACE": namespace,
        "LOCKSTEP_METRICS_PORT": "0",
        "LOCKSTEP_REDIS_URL": redis_url,
        "LOCKSTEP_GRAPHS": "over:pipe",
    }
    with ExitStack() as stack:
        said = stack.enter_context((folder / "said.log").open("ab"))
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ROLE, *role], env=environment, stdin=subprocess.PIPE, stdout=said, stderr=said, cwd=ROOT
            )
            for role in (("coordinator", "--store", store), ("worker",))
        ]
        stack.callback(_end, processes, folder / "said.log")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(cloudpickle.dumps(graph))
            process.stdin.close()
        client = stack.enter_context(Client(store, redis_url=redis_url, namespace=namespace))
        _await_graph(client, graph.name, folder / "said.log")

        def submit(value: dict[str, Any], *, options: Options | None = options, **submission: Any) -> Run:
            return client.submit(graph.name, value, options=options, **submission)

        yield Served(client, submit)


def _await_graph(client: Client, name: str, said: Path) -> None:
    for _ in range(int(PATIENCE_SECONDS * 20)):
        if name in client._store.loaded_graphs():
            return
        time.sleep(0.05)
    raise AssertionError(f"the coordinator never came: {said.read_text()}")


def _end(processes: list[subprocess.Popen[bytes]], said: Path) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        assert process.wait(PATIENCE_SECONDS) == 0, said.read_text()


class Tally:
    """How often what has happened, in whichever process: a line in a file for each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, what: str) -> None:
        with self._path.open("a") as file:
            file.write(what + "\n")

    def counts(self) -> Counter[str]:
        return Counter(self._path.read_text().splitlines() if self._path.exists() else [])


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(tmp_path / "tally")
