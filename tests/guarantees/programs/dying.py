"""Executes a graph again and again, each time in a child that kills itself one step of its writing later than the one before.

    dying.py MODULE:GRAPH INPUT RUN_ID DIRECTORY

A child dies as a statement that writes is about to begin, or right after a group commit, before anything is done with it.
Child N finds its store in DIRECTORY/N.db, made from DIRECTORY/empty.db, and its ledger in DIRECTORY/N.ledger. The last line of
DIRECTORY/N.trace is the moment of its death; a statement named there did not begin. Each result is committed alone, so all
children would come through the same moments; the last ENDINGS come to the end of their run.
"""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lockstep import Engine
from lockstep.broker.inprocess import InProcessBroker
from lockstep.cli.load import load_graph
from lockstep.records import CommitOutcome, Message, Transition
from lockstep.store.sql import SqlStore

READING = ("SELECT", "PRAGMA")
ENDINGS = 2
AT_ONCE = 2


class Doom:
    """Kills the process at the moment of the given number."""

    def __init__(self, number: int, trace: Path) -> None:
        self._left = number
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def moment(self, what: str) -> None:
        os.write(self._trace, what.encode() + b"\n")
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def follow(self, connection: sqlite3.Connection, _: Any) -> None:
        def begins(sql: str) -> None:
            if not sql.startswith(READING):
                self.moment(" ".join(sql.split()[:3]))

        connection.set_trace_callback(begins)


def child(reference: str, input: str, run_id: str, directory: Path, number: int) -> None:
    doom = Doom(number, directory / f"{number}.trace")
    sa.event.listen(sa.Engine, "connect", doom.follow)
    commit = SqlStore.commit

    def committing(self: SqlStore, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        outcomes = commit(self, lease_id, transitions)
        doom.moment("committed")
        return outcomes

    SqlStore.commit = committing  # type: ignore[method-assign]
    arrived: list[Message] = []
    receive = InProcessBroker.receive

    def receive_one(self: InProcessBroker, timeout_seconds: float) -> list[Message]:
        if not arrived:
            arrived.extend(receive(self, timeout_seconds))
        return [arrived.pop(0)] if arrived else []

    InProcessBroker.receive = receive_one  # type: ignore[method-assign]
    os.environ["LEDGER"] = str(directory / f"{number}.ledger")
    shutil.copy(directory / "empty.db", directory / f"{number}.db")
    with Engine(load_graph(reference), f"sqlite:///{directory}/{number}.db") as engine:
        engine.invoke(json.loads(input), run_id=run_id)


def main(reference: str, input: str, run_id: str, directory: str) -> None:
    load_graph(reference)
    endings = 0
    for number in itertools.count(1, AT_ONCE):
        pids = [start(reference, input, run_id, Path(directory), number + more) for more in range(AT_ONCE)]
        for pid in pids:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            endings += status == 0
            if status not in (0, -signal.SIGKILL):
                sys.exit(status)
        if endings >= ENDINGS:
            return


def start(reference: str, input: str, run_id: str, directory: Path, number: int) -> int:
    """The process id of a child. The parent has no threads, so forking is safe; a new interpreter would take longer."""
    pid = os.fork()
    if pid:
        return pid
    try:
        child(reference, input, run_id, directory, number)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
