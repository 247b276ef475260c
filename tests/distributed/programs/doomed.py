"""The command line, with one accident waiting in it.

    doomed.py POINT ACCIDENT NUMBER FILE ARGUMENTS...

When the process comes by the point for the time of that number, it meets with the accident, having said so in the file. Where
the product asks for something outside (Redis, the database, a sink), `lost` means that this was done and nothing was heard of
it, and `twice` that it was done twice.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from lockstep.errors import BrokerUnavailableError, StoreUnavailableError
from lockstep_coordinator import relay

Call = Callable[..., Any]
STRIKES = ("kill", "exception")


class Accident:
    """Happens once."""

    def __init__(self, kind: str, number: int, file: str) -> None:
        self.kind = kind
        self._left = number
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def is_due(self, counts: bool = True) -> bool:
        self._left -= counts
        if self._left or not counts:
            return False
        os.write(self._file, self.kind.encode() + b"\n")
        return True

    def strike(self) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("planted")

    def before(self, call: Call, counts: Callable[..., bool] = lambda *_: True) -> Call:
        """The call, with the accident before it."""

        def called(*args: Any, **options: Any) -> Any:
            if self.is_due(counts(*args)):
                self.strike()
            return call(*args, **options)

        return called

    def after(self, call: Call, lost: Exception, counts: Callable[[Any], bool] = lambda answer: True) -> Call:
        """The call, with the accident after it was made: it counts by its answer."""

        def called(*args: Any, **options: Any) -> Any:
            answer = call(*args, **options)
            if self.is_due(counts(answer)):
                if self.kind == "lost":
                    raise lost
                if self.kind == "twice":
                    call(*args, **options)
                    return answer
                self.strike()
            return answer

        return called


def plant_behind_begin(accident: Accident) -> None:
    """The transaction is open, and nothing is written in it: the fence comes first, on each database."""
    from lockstep.store.mysql import MysqlCommit
    from lockstep.store.postgres import PostgresCommit
    from lockstep.store.sqlite import Fence, Prepared

    unprepared = PostgresCommit._unprepared
    begins = lambda commit, statement: statement == "BEGIN"  # noqa: E731

    def begun(commit: Any, statement: str) -> None:
        unprepared(commit, statement)
        if accident.is_due(begins(commit, statement)):
            accident.strike()

    PostgresCommit._unprepared = begun  # type: ignore[method-assign]
    MysqlCommit._renew = accident.before(MysqlCommit._renew)  # type: ignore[method-assign]
    is_fence = lambda prepared, cursor, rows: bool(rows) and isinstance(rows[0], Fence)  # noqa: E731
    Prepared.execute = accident.before(Prepared.execute, is_fence)  # type: ignore[method-assign]


def committing(accident: Accident, attempt: Call) -> Call:
    """The transaction, with the accident right after its COMMIT. If the answer is lost, so is the connection."""

    def attempted(commit: Any, *args: Any) -> Any:
        done = attempt(commit, *args)
        if not accident.is_due():
            return done
        if accident.kind == "twice":
            attempt(commit, *args)
        if accident.kind == "lost":
            commit._driver.close()
            raise commit.operational_error("planted: the answer was lost")
        if accident.kind in STRIKES:
            accident.strike()
        return done

    return attempted


def plant(point: str, accident: Accident) -> None:
    """Put the accident where it belongs. Imports what it needs: a coordinator needs no worker, and the other way round."""
    broker_lost = BrokerUnavailableError("planted: the answer was lost")
    redis_lost = RedisConnectionError("planted: the answer was lost")
    store_lost = StoreUnavailableError("planted: the answer was lost")
    if point in ("reserve", "enqueue"):
        from lockstep.broker.redis import RedisBroker

        offer = accident.before(RedisBroker.offer) if point == "reserve" else accident.after(RedisBroker.offer, broker_lost)
        RedisBroker.offer = offer  # type: ignore[method-assign]
    elif point == "claim":
        from redis import Redis

        from lockstep.broker.scripts import CLAIM

        evaluate = Redis.eval
        claim = accident.after(evaluate, redis_lost, bool)
        Redis.eval = lambda *args: (claim if args[1] == CLAIM else evaluate)(*args)  # type: ignore[assignment, method-assign]
    elif point == "start":
        from lockstep_worker import executor

        executor.execute = accident.before(executor.execute)
    elif point == "result sent":
        from lockstep.broker.worker import WorkerLink

        WorkerLink.send = accident.after(WorkerLink.send, redis_lost)  # type: ignore[method-assign]
    elif point == "journal":
        from lockstep.store.sql import SqlStore

        has_results = lambda store, lease, transitions: any(t.journal for t in transitions)  # noqa: E731
        SqlStore.commit = accident.before(SqlStore.commit, has_results)  # type: ignore[method-assign]
    elif point == "BEGIN":
        plant_behind_begin(accident)
    elif point == "COMMIT":
        from lockstep.store.mysql import MysqlCommit
        from lockstep.store.postgres import PostgresCommit
        from lockstep.store.sqlite import SqliteCommit

        for kind in (MysqlCommit, PostgresCommit, SqliteCommit):
            kind._attempt = committing(accident, kind._attempt)  # type: ignore[attr-defined, method-assign]
    elif point == "dispatch":
        from lockstep_coordinator.dispatch import Dispatcher

        Dispatcher.dispatch = accident.before(Dispatcher.dispatch, lambda one: bool(one._waiting))  # type: ignore[method-assign]
    elif point == "relay send":
        from lockstep.broker.stream import RedisStreamSink

        relay.CLAIM_SECONDS = 1.0  # What a dead relay has claimed is free again soon.
        publish = RedisStreamSink.publish
        unheard = accident.after(publish, OSError("planted: the answer was lost"))
        RedisStreamSink.publish = accident.before(publish) if accident.kind in STRIKES else unheard  # type: ignore[method-assign]
    elif point == "relay mark":
        from lockstep.store.outbox import SqlOutbox

        relay.CLAIM_SECONDS = 1.0
        mark = SqlOutbox.mark
        SqlOutbox.mark = accident.before(mark) if accident.kind in STRIKES else accident.after(mark, store_lost)  # type: ignore[method-assign]
    else:
        raise ValueError(point)


def main() -> None:
    point, kind, number, file, *arguments = sys.argv[1:]
    from lockstep.cli import main as command_line
    from lockstep.config import set_rq_prefix

    if arguments[0] == "worker":
        set_rq_prefix(f"{os.environ['LOCKSTEP_NAMESPACE']}:rq")
    plant(point, Accident(kind, int(number), file))
    command_line(arguments, prog_name="lockstep")


if __name__ == "__main__":
    main()
