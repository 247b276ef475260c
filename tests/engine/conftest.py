"""What the engine's tests share: a store of each kind, gates that hold nodes, and a record of what goes through the queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from lockstep import Engine, Options, Run
from lockstep.broker.inprocess import InProcessBroker
from lockstep.core.frontier import decode_frontier
from lockstep.embedded import Embedded
from lockstep.history import journal_of, task_record
from lockstep.records import Task

WAIT_SECONDS = 20.0
"""Bounds every wait. Only a test that fails waits so long: nothing here says how fast anything is."""


@pytest.fixture(params=["memory", "sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A store that outlives its engine."""
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture(autouse=True)
def no_thread_outlives_its_engine() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    ours = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("lockstep")]
    for thread in ours:
        thread.join(WAIT_SECONDS)
    assert not [thread.name for thread in ours if thread.is_alive()]


class Gate:
    """A door inside a node: it tells who stands before it, and lets nobody through until the test opens it."""

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._opened = threading.Event()

    def enter(self) -> None:
        """Of a node: say so, and wait."""
        self._arrivals.release()
        assert self._opened.wait(WAIT_SECONDS), "nobody has opened the gate"

    def await_arrivals(self, count: int = 1) -> None:
        """Of the test: wait until so many more nodes have come."""
        for arrived in range(count):
            assert self._arrivals.acquire(timeout=WAIT_SECONDS), f"{arrived} of {count} nodes have come"

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def new_gate() -> Iterator[Callable[[], Gate]]:
    gates: list[Gate] = []

    def new() -> Gate:
        gates.append(Gate())
        return gates[-1]

    yield new
    for gate in gates:
        gate.open()


@pytest.fixture
def gate(new_gate: Callable[[], Gate]) -> Gate:
    return new_gate()


class Queues:
    """What was offered to in-process queues, in order, and whether there was room.

    `refused` has the first task of each run and queue that an offer found no room for; the others only wait behind it.
    """

    def __init__(self) -> None:
        self.enqueued: list[Task] = []
        self.refused: list[Task] = []
        self._changed = threading.Condition()

    def note(self, tasks: Sequence[Task], taken: list[bool]) -> None:
        with self._changed:
            self.enqueued += [task for task, has_room in zip(tasks, taken, strict=True) if has_room]
            without_room = [task for task, has_room in zip(tasks, taken, strict=True) if not has_room]
            self.refused += {(task.run_id, task.queue): task for task in reversed(without_room)}.values()
            self._changed.notify_all()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for an offer after which the condition holds."""
        with self._changed:
            assert self._changed.wait_for(holds, WAIT_SECONDS), "the condition did not come to hold"

    def count(self, run: Run, node_id: str | None = None) -> int:
        """How many tasks of this run, or of this node of it, were put into a queue."""
        return sum(task.run_id == run.run_id and node_id in (None, task.node_id) for task in self.enqueued)


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> Queues:
    queues, offer = Queues(), InProcessBroker.offer

    def watched(self: InProcessBroker, tasks: Sequence[Task]) -> list[bool]:
        taken = offer(self, tasks)
        queues.note(tasks, taken)
        return taken

    monkeypatch.setattr(InProcessBroker, "offer", watched)
    return queues


@pytest.fixture
def parts() -> Callable[[Engine], Embedded]:
    """The running parts of an engine, for what it counts."""
    return lambda engine: engine._running()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits for what nobody announces: a row that another thread writes."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not holds():
            assert time.monotonic() < deadline, "the condition did not come to hold"
            threading.Event().wait(0.002)

    return wait


@pytest.fixture
def journalled() -> Callable[[Run], dict[str, str]]:
    """What the journal says of each node in the step that a run has not committed: done, failed or pending."""

    def read(run: Run) -> dict[str, str]:
        reader, row = run.backend.reader, run.row()
        [step] = reader.steps(row.run_id, row.step_id, row.step_id)
        items = list(decode_frontier(step.frontier, row.step_id).items)
        rows = journal_of(reader, row.run_id, items)
        return {item.node_id: task_record(item, rows).status for item in items}

    return read


class RetryRun(Protocol):
    """Retries a failed run, and waits until it has been taken up again."""

    def __call__(self, run: Run, options: Options | None = None) -> None: ...


@pytest.fixture
def retry(eventually: Callable[[Callable[[], bool]], None]) -> RetryRun:
    def retry(run: Run, options: Options | None = None) -> None:
        before = run.row().retries
        run.retry(options)
        eventually(lambda: run.row().retries > before)

    return retry
