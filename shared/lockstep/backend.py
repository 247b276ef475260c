"""What a `Run` needs of whoever made it: an engine, a client, or a command that only reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lockstep.core.merge import Schema
from lockstep.ports import LiveReader, Reader
from lockstep.records import Command, NewRun, RunRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay has found to be as it was: so many steps, node executions, and recorded calls.

    Steps before the run's last migration belong to another version of its graph; `first_step` is the first that was replayed.
    """

    run_id: str
    graph: str
    first_step: int
    steps: int
    nodes: int
    calls: int


class Backend(Protocol):
    """What a Run needs of whoever made it."""

    @property
    def reader(self) -> Reader:
        """The store."""

    @property
    def announces(self) -> bool:
        """Whether `subscribe` is of any use; otherwise who waits has to look often."""

    def subscribe(self, run_id: str, wake: Callable[[], None], *, each_step: bool) -> Callable[[], None]:
        """Call `wake` when the run has come to rest, or after each step too; returns what ends this."""

    def check(self, run_id: str) -> None:
        """Raise the error that keeps the run from moving, if there is one."""

    def send(self, command: Command) -> None:
        """Put a command into the inbox and wake the owner if it is known."""

    def schema_of(self, row: RunRow) -> Schema | None:
        """The schema of the run's graph, where it is loaded."""

    def cause_of(self, run_id: str) -> BaseException | None:
        """The exception that failed the run, if it was raised in this process."""

    def replay(self, row: RunRow) -> ReplayReport:
        """See `Run.replay`."""

    def begin(self, run: NewRun) -> RunRow:
        """Store a run of a graph that another run is of, and let it begin. `partition_id` is chosen here."""

    def live(self, run_id: str) -> LiveReader:
        """What nodes of the run stream. Raises ConfigurationError where that cannot be seen."""
