"""Executes a graph again and again, each time in a child that kills itself at another moment of its writing.

    dying.py MODULE:GRAPH INPUT RUN_ID

Each line on stdin asks for a child: CRASH_AT URL LEDGER TRACE. It executes the graph on the store at URL, and dies at the
moment of that number: when a statement that writes is about to begin, when a COMMIT was carried out and nothing was heard of
it, or right after a group commit, before anything is done with it. A line on stdout says how it ended; the last line of the
file TRACE is the moment of its death. Where a COMMIT of results was carried out, it also says how many rows the journal must
have then: "COMMIT done, journal N". Each result is committed alone, so that there are many moments.
"""

import json
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pymysql.connections
import sqlalchemy as sa

from lockstep import Engine
from lockstep.broker.inprocess import InProcessBroker
from lockstep.cli.load import load_graph
from lockstep.records import CommitOutcome, Message, Transition
from lockstep.store.sql import SqlStore

LEASE_THREAD = "lockstep-lease"
WRITING = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM) \w+|BEGIN|START TRANSACTION|COMMIT\b|ROLLBACK")
"""Not READ COMMITTED: connections are set up by whichever thread comes first, which is no moment of the run."""


class Doom:
    """Kills the process at the moment of the number in the environment variable CRASH_AT."""

    def __init__(self, trace: str) -> None:
        self._left = int(os.environ["CRASH_AT"])
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._journalled = 0
        self._committing: int | None = None  # The thread that commits results; others keep leases.

    def moment(self, what: str, let_arrive: Callable[[], None] = lambda: None) -> None:
        if threading.current_thread().name == LEASE_THREAD:
            return  # It comes when it comes, and would move all later moments.
        os.write(self._trace, what.encode() + b"\n")
        self._left -= 1
        if not self._left:
            let_arrive()
            os.kill(os.getpid(), signal.SIGKILL)

    def carried_out(self, let_arrive: Callable[[], None] = lambda: None) -> None:
        """A COMMIT was done."""
        journal = f", journal {self._journalled}" if self._committing == threading.get_ident() else ""
        self.moment(f"COMMIT done{journal}", let_arrive)

    def statement(self, sql: object, let_arrive: Callable[[], None] = lambda: None) -> None:
        """A statement is about to begin."""
        text = sql.decode() if isinstance(sql, bytes) else str(sql)
        if found := WRITING.findall(text):
            self.moment(", ".join(found), let_arrive)

    def follow_sqlite(self, connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(self.statement)

    def follow_postgres(self) -> None:
        execute = psycopg.Cursor.execute

        def executing(cursor: psycopg.Cursor[Any], query: Any, *arguments: Any, **options: Any) -> Any:
            self.statement(query, lambda: _let_arrive(cursor.connection))
            result = execute(cursor, query, *arguments, **options)
            if query == "COMMIT":
                self.carried_out(lambda: _let_arrive(cursor.connection))
            return result

        psycopg.Cursor.execute = executing  # type: ignore[assignment, method-assign]

    def follow_mysql(self) -> None:
        query = pymysql.connections.Connection.query

        def querying(connection: Any, sql: Any, unbuffered: bool = False) -> int:
            self.statement(sql)
            rows: int = query(connection, sql, unbuffered)
            if sql == "COMMIT":
                self.carried_out()
            return rows

        pymysql.connections.Connection.query = querying  # type: ignore[method-assign, assignment]

    def follow_commits(self) -> None:
        commit = SqlStore.commit

        def committing(store: SqlStore, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
            self._journalled += sum(len(transition.journal) for transition in transitions)
            self._committing = threading.get_ident()
            outcomes = commit(store, lease_id, transitions)
            self._committing = None
            self.moment("committed")
            return outcomes

        SqlStore.commit = committing  # type: ignore[method-assign]


def _let_arrive(connection: psycopg.Connection[Any]) -> None:
    """Send the server what lies in a pipeline, and wait until it has done that: it does not wait for the pipeline's end."""
    if connection.info.pipeline_status is not psycopg.pq.PipelineStatus.OFF:
        connection.pgconn.send_flush_request()
        while connection.pgconn.flush():
            pass
    waits = "SELECT wait_event = 'ClientRead' FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:
        ask = psycopg.ClientCursor(other)
        while not psycopg.ClientCursor.execute(ask, waits, [connection.info.backend_pid]).fetchone()[0]:  # type: ignore[index]
            pass


def child(reference: str, input: str, run_id: str, url: str, ledger: str, trace: str) -> None:
    doom = Doom(trace)
    sa.event.listen(sa.Engine, "connect", doom.follow_sqlite)
    doom.follow_postgres()
    doom.follow_mysql()
    doom.follow_commits()
    arrived: list[Message] = []
    receive = InProcessBroker.receive

    def receive_one(self: InProcessBroker, timeout_seconds: float) -> list[Message]:
        if not arrived:
            arrived.extend(receive(self, timeout_seconds))
        return [arrived.pop(0)] if arrived else []

    InProcessBroker.receive = receive_one  # type: ignore[method-assign]
    os.environ["LEDGER"] = ledger
    with Engine(load_graph(reference), url) as engine:
        engine.invoke(json.loads(input), run_id=run_id)


def main(reference: str, input: str, run_id: str) -> None:
    load_graph(reference)
    for line in sys.stdin:
        crash_at, *place = line.split()
        pid = os.fork()  # The parent has no threads and no connections; a new interpreter would take longer.
        if not pid:
            os.environ["CRASH_AT"] = crash_at
            try:
                child(reference, input, run_id, *place)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)  # noqa: T201 # The answer.


if __name__ == "__main__":
    main(*sys.argv[1:])
