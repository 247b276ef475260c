"""What the tests of the command line share: a folder with flows in it, and a way to start commands there."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import pytest

from lockstep.store import open_store

ENTRY = "from lockstep.cli import main; main(prog_name='lockstep')"
TIMEOUT_SECONDS = 60
"""Bounds every command. Only one that hangs takes so long."""

FLOWS = '''
"""A research flow, one that fails until it is mended, and one that can be held."""

import operator
import os
import sys
from pathlib import Path
from typing import Annotated, TypedDict

from lockstep import START, Graph, Send


class State(TypedDict, total=False):
    topic: str
    n: int
    notes: Annotated[list[str], operator.add]


def plan(state):
    return {"topic": state["topic"].upper()}


def search(question):
    return {"notes": [question]}


def report(state):
    return {"n": len(state["notes"])}


graph = Graph(State, name="research").add_node(plan).add_node(search).add_node(report).add_edge(START, "plan")
graph.add_conditional_edges("plan", lambda state: [Send("search", f"{state['topic']} {i}") for i in range(3)], ["search"])
graph.add_edge("search", "report")


def note(name):
    with open("ledger.txt", "a") as ledger:
        print(name, file=ledger)


def first(state):
    note("first")
    return {"notes": ["first"]}


def second(state):
    note("second")
    if "HOLD" in os.environ:
        print("holding", file=sys.stderr, flush=True)
        Path("gate").read_text()
    return {"notes": ["second"]}


held = Graph(State, name="held", version=os.environ.get("FLOW_VERSION", "")).add_sequence([first, second])
held.add_edge(START, "first")


def broken(state):
    note("broken")
    if not Path("mended").exists():
        raise LookupError("not yet: [bold]é[/bold]")
    return {"notes": ["mended"]}


failing = Graph(State, name="failing").add_node(first).add_node(broken)
failing.add_edge(START, "first").add_edge("first", "broken")


def talk(state, ctx):
    if state.get("topic") == "prints":
        print("a node prints")
    else:
        ctx.logger.info("a node logs")
    return {"n": 1}


talking = Graph(State, name="talking").add_node(talk).add_edge(START, "talk")
not_a_graph = 42
'''


class Cli:
    """Starts commands in a folder, without what the environment says of Lockstep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str, entry: str = ENTRY, stdin: int | None = None, **environment: str) -> subprocess.Popen[str]:
        """A command under way; its outputs are pipes."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        command = [sys.executable, "-W", "error", "-c", entry, *arguments]
        return subprocess.Popen(command, stdin=stdin, cwd=self.folder, env={**inherited, **paths, **environment}, **pipes)

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What became of a command."""
        with self.start(*arguments, **environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def hold(self, run_id: str, *more: str, **environment: str) -> subprocess.Popen[str]:
        """A `lockstep run` of the held flow, whose second node waits for somebody to write to `gate`."""
        if not (self.folder / "gate").exists():
            os.mkfifo(self.folder / "gate")
        command = ("run", "flows.py:held", "--run-id", run_id, "--json", *more)
        process = self.start(*command, HOLD="1", **environment)
        read_until(process.stderr, "holding")
        return process

    def ledger(self) -> list[str]:
        """The nodes that have run, in order."""
        return (self.folder / "ledger.txt").read_text().split()


def read_until(stream: IO[str] | None, text: str) -> str:
    """Everything up to and including the line with this text."""
    assert stream is not None
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"no line with {text!r} in: {''.join(lines)}")


@functools.cache
def empty_database() -> bytes:
    """The file of a database without runs. To make it takes longer than most commands do."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "empty.db")
        open_store(f"sqlite:///{file}").close()
        return file.read_bytes()


def folder_with_flows(folder: Path) -> Cli:
    (folder / "flows.py").write_text(FLOWS, encoding="utf-8")
    (folder / "lockstep.db").write_bytes(empty_database())
    return Cli(folder)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return folder_with_flows(tmp_path)


@pytest.fixture(scope="session")
def new_cli(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Cli]:
    """Makes folders that several tests share."""
    return lambda: folder_with_flows(tmp_path_factory.mktemp("shared"))
