"""The group commit: one transaction for all runs that moved, on a connection of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from lockstep.errors import StateError
from lockstep.records import AlreadyCommitted, CommitOutcome, Committed, Refused, Superseded, Transition
from lockstep.store import schema


class Conflict(Exception):
    """Some row was not as expected: one of the group's runs has moved."""


class GroupCommit(ABC):
    """Commits groups of transitions for one coordinator, one group at a time.

    A database's own module says how a transaction is done; `integrity_error`, `operational_error` and `error` are its driver's.
    """

    integrity_error: type[Exception]
    operational_error: type[Exception]
    error: type[Exception]

    def __init__(self, engine: sa.Engine, lease_seconds: float) -> None:
        self._connection = engine.connect()
        self._driver: Any = self._connection.connection.driver_connection
        # Out of the pool: it is held as long as the lease, and a pool's bound is for what comes and goes.
        self._connection.detach()
        self._lease_ms = int(lease_seconds * 1000)

    @abstractmethod
    def _attempt(self, lease_id: str, commit_id: int, transitions: Sequence[Transition]) -> bool:
        """The transaction; False: the lease is lost. Raises Conflict or a driver's error: then nothing is stored."""

    def commit(self, lease_id: str, commit_id: int, transitions: Sequence[Transition]) -> list[CommitOutcome]:
        """See `Store.commit`. A group that fails is halved, until the culprit stands alone."""
        try:
            if self._attempt(lease_id, commit_id, transitions):
                return [Committed()] * len(transitions)
            return [Superseded()] * len(transitions)
        except (Conflict, self.integrity_error):
            if len(transitions) == 1:
                return [self._outcome_of_conflict(transitions[0])]
        except self.operational_error:
            raise  # The database as a whole; the caller knows what to say of it.
        except (self.error, OverflowError, UnicodeError) as error:
            if len(transitions) == 1:
                run_id = transitions[0].run_id
                return [Refused(StateError(f"the database refuses the run's data: {error}", run_id=run_id))]
        middle = len(transitions) // 2
        halves = transitions[:middle], transitions[middle:]
        return [outcome for half in halves for outcome in self.commit(lease_id, commit_id, half)]

    def _outcome_of_conflict(self, transition: Transition) -> CommitOutcome:
        """Whether a transition that conflicts alone was stored before, or lost to another."""
        if transition.step is not None:
            key = sa.select(schema.steps.c.idempotency_key).where(
                schema.steps.c.run_id == transition.run_id, schema.steps.c.step_id == transition.step.step_id
            )
            if self._connection.execute(key).scalar() == transition.step.idempotency_key:
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
