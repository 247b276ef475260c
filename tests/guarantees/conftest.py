"""What the tests of the promises share: stores, other processes, and ways to wait that need no clock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.servers import MYSQL, POSTGRES, empty_database_on

from lockstep import Engine
from lockstep.cli.load import load_graph
from lockstep.graph import Graph
from lockstep.records import CommitOutcome, Transition
from lockstep.store.memory import MemoryStore

PATIENCE_SECONDS = 30.0
"""After this long a wait has failed. What passes never waits for it."""
COMMAND = [sys.executable, "-c", "from lockstep.cli import main; main(prog_name='lockstep')"]
PROGRAMS = Path(__file__).parent / "programs"

Seen = tuple[str, Transition, CommitOutcome]


@pytest.fixture(params=["memory", "sqlite", "postgres", "mysql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store of each kind."""
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{tmp_path}/runs.db"
        case server:
            return empty_database_on({"postgres": POSTGRES, "mysql": MYSQL}[server])


@pytest.fixture
def one_store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`store_url`, but memory:// too means one and the same store for all engines of the test, so that they can take over."""
    if store_url == "memory://":
        store = MemoryStore()
        monkeypatch.setattr("lockstep.embedded.open_store", lambda url: store)
    return store_url


@pytest.fixture
def wait() -> Callable[[threading.Event], None]:
    """Wait for a signal; fails instead of hanging."""

    def wait(event: threading.Event) -> None:
        assert event.wait(PATIENCE_SECONDS), "the signal never came"

    return wait


@pytest.fixture
def abandon() -> Callable[[Engine], None]:
    """End an engine as if its process had died, but for the lease that it gives back: what its nodes return later is lost."""

    def abandon(engine: Engine) -> None:
        engine._running().close(drain_seconds=0.0)
        engine.close()

    return abandon


class Commits:
    """Follows an engine's commits, so that a test can wait for one."""

    def __init__(self, engine: Engine) -> None:
        self.parts = engine._running()
        self.store = self.parts.store
        self.seen: list[Seen] = []
        self._commit = self.store.commit
        self._changed = threading.Condition()
        self.store.commit = self._followed  # type: ignore[method-assign]

    def _followed(self, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        outcomes = self._commit(lease_id, transitions)
        with self._changed:
            self.seen += [(lease_id, *both) for both in zip(transitions, outcomes, strict=True)]
            self._changed.notify_all()
        return outcomes

    def until(self, wanted: Callable[[Seen], bool]) -> None:
        """Wait for a commit of one run that is `wanted`."""
        with self._changed:
            found = self._changed.wait_for(lambda: any(map(wanted, self.seen)), PATIENCE_SECONDS)
        assert found, f"the commit never came; there were {self.seen}"

    def until_journalled(self, kind: str, path: str) -> None:
        """Wait until an item, by its path in hex, has a journal row of this kind."""
        self.until(lambda seen: any((row.kind, row.path.hex()) == (kind, path) for row in seen[1].journal))


@pytest.fixture
def commits_of() -> Callable[[Engine], Commits]:
    """Follow an engine's commits from now on."""
    return Commits


class CommandLine:
    """Starts `lockstep` in processes of its own, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, pass_fds: Sequence[int] = (), **environment: str) -> subprocess.Popen[str]:
        """`lockstep ARGUMENTS` with these variables beside those of this process."""
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.directory,
            env={**os.environ, **environment},
            pass_fds=pass_fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, patience_seconds: float = PATIENCE_SECONDS, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `lockstep ARGUMENTS`."""
        process = self.start(*arguments, pass_fds=(), **environment)
        out, err = process.communicate(timeout=patience_seconds)
        return process.returncode, out, err

    def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                process.communicate()


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    """Starts `lockstep` in processes that end with the test."""
    started = CommandLine(tmp_path)
    yield started
    started.close()


class Pulse:
    """A pipe on which other processes say that they have come somewhere, one byte each time."""

    def __init__(self) -> None:
        self.read_fd, self.fd = os.pipe()

    def close_writer(self) -> None:
        """Leave the writing end to the processes that were started: when they have ended, nothing is waited for."""
        os.close(self.fd)

    def wait(self, count: int) -> int:
        """Wait for so many pulses; how many came before all writers ended."""
        return next((number for number in range(count) if not os.read(self.read_fd, 1)), count)

    def close(self) -> None:
        """Give the reading end back."""
        os.close(self.read_fd)


@pytest.fixture
def pulse() -> type[Pulse]:
    """Pipes on which other processes give signals."""
    return Pulse


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """The file of a program of the tests that is run by other processes too."""
    return PROGRAMS.joinpath


@pytest.fixture
def ledger_graph() -> Graph:
    """The graph of programs/ledger_flow.py."""
    return load_graph(f"{PROGRAMS}/ledger_flow.py:graph")
