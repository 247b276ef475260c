"""`lockstep relay`, `lockstep outbox`, and sinks beside `lockstep dev`: events from the command line to where they go."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Cli

WAIT_SECONDS = 60.0

EMITTING = '''
"""A flow that emits, and an observer that writes down what it gets, or refuses."""

from pathlib import Path
from typing import TypedDict

from lockstep import START, Graph, PublishError


class State(TypedDict, total=False):
    n: int


def emit(state, ctx):
    for n in range(3):
        ctx.emit("counted", n)
    return {"n": 3}


graph = Graph(State, name="emitting").add_node(emit).add_edge(START, "emit")


class Notes:
    def observe(self, event):
        if event.event.position == 1 and Path("refuse").exists():
            raise PublishError("not this one", permanent=True)
        with Path("notes.txt").open("a") as file:
            file.write(event.event_id + "\\n")


notes = Notes()
'''


@pytest.fixture
def emitting(cli: Cli) -> Cli:
    (cli.folder / "emitting.py").write_text(EMITTING)
    return cli


@pytest.fixture
def serve(emitting: Cli) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command that serves; it must end cleanly when it is asked to."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(emitting.start(*arguments, LOCKSTEP_METRICS_PORT="0"))
        return started[-1]

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 0, said


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def noted(cli: Cli) -> list[str]:
    file = cli.folder / "notes.txt"
    return file.read_text().split() if file.exists() else []


def listed(cli: Cli, *arguments: str) -> Any:
    done = cli("outbox", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def events_of(run_id: str, *positions: int) -> list[str]:
    return [f"{run_id}/2/{position}" for position in positions or (0, 1, 2)]


def test_a_relay_publishes_what_runs_have_emitted(emitting: Cli, serve: Callable[..., subprocess.Popen[str]]) -> None:
    # given a run that has ended, when a relay starts, then it publishes its events
    assert emitting("run", "emitting.py:graph", "--run-id", "one").returncode == 0
    serve("relay", "--sink", "notes=emitting.py:notes")
    until(lambda: noted(emitting) == events_of("one"))
    # and those of a run that comes later
    assert emitting("run", "emitting.py:graph", "--run-id", "two").returncode == 0
    until(lambda: noted(emitting) == [*events_of("one"), *events_of("two")])
    until(lambda: listed(emitting)["waiting"] == [])
    [sink] = listed(emitting)["sinks"]
    assert (sink["sink"], sink["runs"], sink["parked"]) == ("notes", 0, 0)
    # and again, from where somebody wants
    assert emitting("outbox", "--sink", "notes", "--replay", "two", "--from", "1").returncode == 0
    until(lambda: noted(emitting)[6:] == events_of("two"))


def test_all_parked_runs_are_tried_again_after_an_outage(emitting: Cli, serve: Callable[..., subprocess.Popen[str]]) -> None:
    # given a sink that has refused the events of several runs
    (emitting.folder / "refuse").touch()
    for run_id in ("one", "two", "three"):
        assert emitting("run", "emitting.py:graph", "--run-id", run_id).returncode == 0
    serve("relay", "--sink", "notes=emitting.py:notes")
    until(lambda: len(listed(emitting, "--parked")["waiting"]) == 3)
    # when it is well again, and somebody says so, then all of them go on
    (emitting.folder / "refuse").unlink()
    done = emitting("outbox", "--sink", "notes", "--retry-all")
    assert (done.returncode, done.stderr) == (0, "3 runs are tried again\n")
    until(lambda: sorted(noted(emitting)) == sorted(events_of("one") + events_of("two") + events_of("three")))
    assert emitting("outbox", "--sink", "notes", "--retry-all").stderr == "0 runs are tried again\n"


def test_a_new_sink_may_leave_out_what_is_stored(emitting: Cli, serve: Callable[..., subprocess.Popen[str]]) -> None:
    assert emitting("run", "emitting.py:graph", "--run-id", "old").returncode == 0
    serve("relay", "--sink", "emitting.py:notes", "--only-new")
    until(lambda: listed(emitting)["sinks"])
    assert emitting("run", "emitting.py:graph", "--run-id", "new").returncode == 0
    until(lambda: noted(emitting) == events_of("new"))


@pytest.mark.parametrize("wish", ["--retry", "--skip"])
def test_a_parked_run_waits_for_somebody(emitting: Cli, serve: Callable[..., subprocess.Popen[str]], wish: str) -> None:
    # given an event that its sink refuses for good
    (emitting.folder / "refuse").touch()
    assert emitting("run", "emitting.py:graph", "--run-id", "one").returncode == 0
    serve("relay", "--sink", "notes=emitting.py:notes")
    until(lambda: listed(emitting, "--parked")["waiting"])
    [parked] = listed(emitting, "--parked")["waiting"]
    assert (parked["run_id"], parked["sequence"], parked["position"]) == ("one", 2, 1)
    assert parked["error"] == "not this one"
    # then the list for people says so, too
    shown = emitting("outbox").stdout
    assert "notes" in shown and "not this one" in shown and "2/1" in shown
    # and when somebody sees to it, the run goes on, with the event or without it
    if wish == "--retry":
        (emitting.folder / "refuse").unlink()
    assert emitting("outbox", "--sink", "notes", wish, "one").returncode == 0
    until(lambda: noted(emitting) == (events_of("one") if wish == "--retry" else events_of("one", 0, 2)))


def test_dev_publishes_beside_its_work(emitting: Cli, serve: Callable[..., subprocess.Popen[str]]) -> None:
    serve("dev", "emitting.py:graph", "--sink", "emitting.py:notes")
    until(lambda: emitting("submit", "emitting", "--run-id", "one").returncode == 0)
    until(lambda: noted(emitting) == events_of("one"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("relay",), "--sink"),
        (("relay", "--sink", "nonsense"), "no sink 'nonsense'"),
        (("relay", "--sink", "emitting.py:nothing"), "has no 'nothing'"),
        (("relay", "--sink", "emitting.py:graph"), "observe"),
        (("relay", "--sink", "log", "--store", "memory://"), "memory://"),
        (("outbox", "--retry", "one"), "needs --sink"),
        (("outbox", "--sink", "log", "--retry", "one", "--skip", "one"), "one at a time"),
        (("outbox", "--sink", "log", "--retry", "one"), "not parked"),
        (("outbox", "--sink", "log", "--replay", "one"), "no events"),
        (("outbox", "--sink", "log", "--remove"), "not known"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(emitting: Cli, arguments: tuple[str, ...], why: str) -> None:
    done = emitting(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigurationError: ") and why in done.stderr
    assert done.stderr.count("\n") == 1
