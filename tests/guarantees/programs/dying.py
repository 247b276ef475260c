"""Executes a graph again and again, each time in a child that kills itself one statement later in its commits than the one before.

    dying.py MODULE:GRAPH INPUT RUN_ID DIRECTORY

Child N finds its store in DIRECTORY/N.db, made from DIRECTORY/empty.db, and its ledger in DIRECTORY/N.ledger. What it had executed
when it died is in DIRECTORY/N.trace, a statement in each line. The first child that comes to the end of its run is the last.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from lockstep import Engine
from lockstep.cli.load import load_graph
from lockstep.store.commit import GroupCommit


class Doomed:
    """Counts the statements of all group commits, and kills the process right after one of them."""

    def __init__(self, last: int, trace: Path) -> None:
        self._left = last
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def executed(self, sql: str) -> None:
        os.write(self._trace, " ".join(sql.split()).encode() + b"\n")
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


class Cursor:
    def __init__(self, cursor: Any, doomed: Doomed) -> None:
        self._cursor = cursor
        self._doomed = doomed

    def execute(self, sql: str, *parameters: Any) -> None:
        self._cursor.execute(sql, *parameters)
        self._doomed.executed(sql)

    def executemany(self, sql: str, rows: Any) -> None:
        self._cursor.executemany(sql, rows)
        self._doomed.executed(sql)

    @property
    def rowcount(self) -> int:
        return int(self._cursor.rowcount)


class Connection:
    def __init__(self, connection: Any, doomed: Doomed) -> None:
        self._connection = connection
        self._doomed = doomed

    def cursor(self) -> Cursor:
        return Cursor(self._connection.cursor(), self._doomed)

    @property
    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction)


def child(reference: str, input: str, run_id: str, directory: Path, number: int) -> None:
    doomed = Doomed(number, directory / f"{number}.trace")
    make = GroupCommit.__init__

    def made(self: GroupCommit, *arguments: Any) -> None:
        make(self, *arguments)
        self._driver = Connection(self._driver, doomed)

    GroupCommit.__init__ = made  # type: ignore[method-assign]
    os.environ["LEDGER"] = str(directory / f"{number}.ledger")
    shutil.copy(directory / "empty.db", directory / f"{number}.db")
    with Engine(load_graph(reference), f"sqlite:///{directory}/{number}.db") as engine:
        engine.invoke(json.loads(input), run_id=run_id)


def main(reference: str, input: str, run_id: str, directory: str) -> None:
    load_graph(reference)
    for number in itertools.count(1):
        pid = os.fork()
        if not pid:
            try:
                child(reference, input, run_id, Path(directory), number)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != -signal.SIGKILL:
            sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
