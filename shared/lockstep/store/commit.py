"""The group commit: one transaction for all runs that moved, on a connection of its own."""

from __future__ import annotations

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from lockstep.errors import StateError
from lockstep.records import AlreadyCommitted, CommitOutcome, Committed, Refused, Superseded, Transition
from lockstep.store import schema

ATTEMPTS = 5
"""How often a transaction is tried that a deadlock or the loss of its connection has ended."""

RECONNECT_PAUSE_SECONDS = 0.5
"""How long to wait after a connection that was lost could not be replaced."""


class Conflict(Exception):
    """Some row was not as expected: one of the group's runs has moved."""


class RefusedValue(Exception):
    """A value of one of the group's runs cannot be stored."""


class GroupCommit(ABC):
    """Commits groups of transitions for one coordinator, one group at a time.

    A database's own module says how a transaction is done; `integrity_error`, `operational_error` and `error` are its driver's.
    Each transaction stores its number in the lease's row, so that one whose answer was lost can be looked up.
    """

    integrity_error: type[Exception]
    operational_error: type[Exception]
    error: type[Exception]

    def __init__(self, engine: sa.Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._lease_ms = int(lease_seconds * 1000)
        # Anywhere: with equal numbers, one's lost transaction could be taken for another's, of the lease's handle before.
        self._number = secrets.randbits(62)
        self._lost = False
        self._connect()

    def _connect(self) -> None:
        self._connection = self._engine.raw_connection()
        self._driver: Any = self._connection.driver_connection
        # Out of the pool: it is held as long as the lease, and a pool's bound is for what comes and goes.
        self._connection.detach()

    @abstractmethod
    def _attempt(self, lease_id: str, number: int, transitions: Sequence[Transition]) -> bool:
        """The transaction; False: the lease is lost. Raises Conflict, RefusedValue or a driver's error: then nothing is stored,
        unless the connection was lost, which tells nothing."""

    def _is_lost(self, error: Exception) -> bool:
        """Whether the connection has ended."""
        return False

    def _is_deadlock(self, error: Exception) -> bool:
        """Whether the database has ended the transaction in favour of another one."""
        return False

    def commit(self, lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        """See `Store.commit`. A group that fails is halved, until the culprit stands alone."""
        try:
            if self._is_stored(lease_id, transitions):
                return [Committed()] * len(transitions)
            return [Superseded()] * len(transitions)
        except (Conflict, self.integrity_error):
            if len(transitions) == 1:
                return [self._outcome_of_conflict(transitions[0])]
        except (self.operational_error, DBAPIError):
            raise  # The database as a whole; the caller knows what to say of it.
        except (RefusedValue, self.error, OverflowError, UnicodeError) as error:
            if len(transitions) == 1:
                run_id = transitions[0].run_id
                return [Refused(StateError(f"the database refuses the run's data: {error}", run_id=run_id))]
        middle = len(transitions) // 2
        halves = transitions[:middle], transitions[middle:]
        return [outcome for half in halves for outcome in self.commit(lease_id, half)]

    def _is_stored(self, lease_id: str, transitions: Sequence[Transition]) -> bool:
        """Whether the transaction was done, tried again where that can help; False: the lease is lost."""
        self._number += 1
        for left in reversed(range(ATTEMPTS)):
            try:
                if self._lost:
                    self._reconnect()
                    stored = self._last_number(lease_id)
                    if stored is None or stored == self._number:
                        return stored is not None
                return self._attempt(lease_id, self._number, transitions)
            except (self.operational_error, DBAPIError) as error:
                if self._lost:
                    time.sleep(RECONNECT_PAUSE_SECONDS)  # The server is away, or has only just come back.
                self._lost = self._lost or self._is_lost(error)
                if not left or not (self._lost or self._is_deadlock(error)):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _reconnect(self) -> None:
        self.close()
        self._engine.dispose()  # Those that lie in the pool have most likely ended, too.
        self._connect()
        self._lost = False

    def _last_number(self, lease_id: str) -> int | None:
        """The number of the lease's last transaction that was committed; None: the lease is lost.

        Waits for one that is still open: the server may not have noticed yet that its connection has ended.
        """
        held = schema.leases.c
        query = sa.select(held.last_commit_id).where(held.lease_id == lease_id).with_for_update()
        with self._engine.connect() as connection:
            number: int | None = connection.execute(query).scalar()
            return number

    def _outcome_of_conflict(self, transition: Transition) -> CommitOutcome:
        """Whether a transition that conflicts alone was stored before, or lost to another."""
        if transition.step is not None:
            key = sa.select(schema.steps.c.idempotency_key).where(
                schema.steps.c.run_id == transition.run_id, schema.steps.c.step_id == transition.step.step_id
            )
            with self._engine.connect() as connection:
                if connection.execute(key).scalar() == transition.step.idempotency_key:
                    return AlreadyCommitted()
        return Superseded()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Snapshot:
    """The row of a snapshot."""

    __slots__ = ("run_id", "state", "step_id")

    def __init__(self, transition: Transition) -> None:
        assert transition.step is not None
        self.run_id = transition.run_id
        self.step_id = transition.step.step_id
        self.state = transition.snapshot


class Consumed:
    """The row of a consumed command."""

    __slots__ = ("command_id",)

    def __init__(self, command_id: str) -> None:
        self.command_id = command_id


class GroupCommits:
    """The group commits of a store's leases. Each has a connection, made when its lease first commits."""

    def __init__(self, make: Callable[[float], GroupCommit]) -> None:
        self._make = make
        self._lease_seconds: dict[str, float] = {}
        self._groups: dict[str, GroupCommit] = {}
        self._lock = threading.Lock()

    def open(self, lease_id: str, seconds: float) -> None:
        """A lease has begun; each commit renews it for so long."""
        self._lease_seconds[lease_id] = seconds

    def of(self, lease_id: str) -> GroupCommit:
        """The group commit of a lease."""
        with self._lock:
            if lease_id not in self._groups:
                self._groups[lease_id] = self._make(self._lease_seconds.get(lease_id, 0))
            return self._groups[lease_id]

    def close(self, lease_id: str) -> None:
        """A lease has ended."""
        with self._lock:
            group = self._groups.pop(lease_id, None)
            self._lease_seconds.pop(lease_id, None)
        if group is not None:
            group.close()

    def close_all(self) -> None:
        """Close all connections."""
        with self._lock:
            groups, self._groups = list(self._groups.values()), {}
        for group in groups:
            group.close()
