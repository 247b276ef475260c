"""`SqlOutbox`: the `Outbox` contract over SQLAlchemy Core.

The row that says "this run has events for this sink" is written by the transaction that stores the events, and moved on by the
relay. Both write it under its lock, so neither can miss what the other has done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from lockstep.records import Backlog, Event, PendingEvents, Progress, PublishedEvent, WaitingRun
from lockstep.store import schema
from lockstep.store.access import Access, repeatable
from lockstep.store.clock import now_ms

EVENTS_PER_CLAIM = 1000
"""Events that one claim brings at most; the runs beyond them are given back."""

BACKFILL_RUNS = 500
"""Runs whose stored events a new sink notes in one transaction."""

u, o, s = schema.undelivered.c, schema.outbox.c, schema.sinks.c

FREE = {"relay_id": None, "free_at": 0, "attempts": 0, "parked": 0, "error": None}
"""The columns of a row that any relay may claim now."""


class SqlOutbox:
    """An `Outbox` in a SQL database."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def add_sink(self, sink: str, *, from_now: bool = False) -> None:
        if not self._is_known(sink) and self._add(sink) and not from_now:
            self._note_stored(sink)

    @repeatable
    def _is_known(self, sink: str) -> bool:
        with self._access.reading() as connection:
            return connection.execute(sa.select(s.name).where(s.name == sink)).first() is not None

    @repeatable
    def _add(self, sink: str) -> bool:
        with self._access.writing() as connection:
            self._access.database.take_turns(connection)
            if connection.execute(sa.select(s.name).where(s.name == sink)).first() is not None:
                return False
            connection.execute(sa.insert(schema.sinks).values(name=sink, added_at=now_ms()))
            return True

    def _note_stored(self, sink: str) -> None:
        """Note the events that were committed before the sink was known.

        A commit that began before has not seen the sink. Each begins by writing its lease's row, so once the locks of all
        leases could be had, none of those is open any more, and all later ones see the sink.
        """
        leases = schema.leases.c
        with self._access.writing() as connection:
            connection.execute(sa.select(leases.lease_id).order_by(leases.lease_id).with_for_update()).all()
        after: str | None = ""
        while after is not None:
            after = self._note_some(sink, after)

    @repeatable
    def _note_some(self, sink: str, after: str) -> str | None:
        """Note the events of the next runs behind `after`; the last of them, None: there are no more."""
        runs = sa.select(o.run_id).where(o.run_id > after).group_by(o.run_id).order_by(o.run_id).limit(BACKFILL_RUNS)
        with self._access.writing() as connection:
            found = list(connection.execute(runs).scalars())
            if found:
                self._set_back(connection, sink, o.run_id.between(found[0], found[-1]))
        return found[-1] if len(found) == BACKFILL_RUNS else None

    def _set_back(self, connection: sa.Connection, sink: str, which: sa.ColumnElement[bool]) -> None:
        """Send these events, and all later ones of their runs."""
        rows = sa.select(
            sa.literal(sink, schema.sinks.c.name.type).label("sink"),
            o.run_id,
            now_ms().label("since"),
            sa.func.min(o.sequence).label("next_sequence"),
            sa.literal_column("0").label("next_position"),
            sa.func.max(o.sequence).label("last_sequence"),
            *[sa.literal_column("0").label(name) for name in ("free_at", "attempts", "parked")],
        )
        statement = self._access.database.insert_or_update(
            schema.undelivered, rows.where(which).group_by(o.run_id), ["next_sequence", "next_position"], FREE
        )
        connection.execute(statement)

    @repeatable
    def remove_sink(self, sink: str) -> bool:
        with self._access.writing() as connection:
            removed = connection.execute(sa.delete(schema.sinks).where(s.name == sink)).rowcount == 1
            connection.execute(sa.delete(schema.undelivered).where(u.sink == sink))
            return removed

    @repeatable
    def claim(self, relay_id: str, sink: str, runs: int, seconds: float) -> list[PendingEvents]:
        free = sa.select(u.run_id, u.attempts).where(u.sink == sink, u.parked == 0, u.free_at <= now_ms())
        free = free.order_by(u.since, u.run_id).limit(runs)
        with self._access.reading() as connection:
            # Most of the time there is nothing, and nobody has to be kept from writing to find that out.
            if connection.execute(free).first() is None:
                return []
        with self._access.writing() as connection:
            attempts = dict(connection.execute(free.with_for_update(skip_locked=True)).all())
            claim = sa.update(schema.undelivered).where(u.sink == sink, u.run_id.in_(list(attempts)))
            connection.execute(claim.values(relay_id=relay_id, free_at=now_ms() + int(seconds * 1000)))
            found = self._next_events(connection, sink, list(attempts))
            events: dict[str, list[PublishedEvent]] = {}
            for event in found:
                events.setdefault(event.event.run_id, []).append(event)
            without = [u.sink == sink, u.run_id.in_([run_id for run_id in attempts if run_id not in events])]
            if len(found) < EVENTS_PER_CLAIM:
                # Of a run that was deleted while somebody noted its events once more.
                connection.execute(sa.delete(schema.undelivered).where(*without))
            else:
                connection.execute(sa.update(schema.undelivered).where(*without).values(relay_id=None, free_at=0))
        return [
            PendingEvents(run_id=run_id, attempts=count, events=events[run_id])
            for run_id, count in attempts.items()
            if run_id in events
        ]

    @staticmethod
    def _next_events(connection: sa.Connection, sink: str, run_ids: Sequence[str]) -> list[PublishedEvent]:
        r, t = schema.runs.c, schema.steps.c
        is_next = sa.or_(o.sequence > u.next_sequence, sa.and_(o.sequence == u.next_sequence, o.position >= u.next_position))
        query = (
            # A run may end before its first step.
            sa.select(schema.outbox, r.graph, sa.func.coalesce(t.committed_at, r.created_at).label("committed_at"))
            .join(schema.undelivered, sa.and_(u.run_id == o.run_id, is_next))
            .join(schema.runs, r.run_id == o.run_id)
            .outerjoin(schema.steps, sa.and_(t.run_id == o.run_id, t.step_id == o.step_id))
            .where(u.sink == sink, u.run_id.in_(run_ids))
            .order_by(u.since, u.run_id, o.sequence, o.position)
            .limit(EVENTS_PER_CLAIM)
        )
        return [
            PublishedEvent(
                graph=row.graph,
                committed_at=row.committed_at,
                event=Event(**{name: getattr(row, name) for name in Event.__struct_fields__}),
            )
            for row in connection.execute(query)
        ]

    @repeatable
    def mark(self, relay_id: str, sink: str, progress: Sequence[Progress]) -> None:
        if not progress:
            return
        mine = [u.sink == sink, u.run_id == sa.bindparam("of_run"), u.relay_id == relay_id]
        advanced = [
            {
                "of_run": each.run_id,
                "sequence": each.last.event.sequence,
                "position": each.last.event.position,
                "committed_at": each.last.committed_at,
            }
            for each in progress
            if each.last is not None
        ]
        settled = [
            {
                "of_run": each.run_id,
                "failures": int(each.error is not None),
                "pause_ms": int((each.pause_seconds or 0) * 1000),
                "is_parked": int(each.error is not None and each.pause_seconds is None),
                "said": None if each.error is None else each.error.encode(errors="replace"),
            }
            for each in progress
        ]
        sequence, position = sa.bindparam("sequence", type_=sa.BigInteger), sa.bindparam("position", type_=sa.Integer)
        # The rest of a commit's events: they are all there, since they came with the row's last_sequence.
        more = sa.exists().where(o.run_id == u.run_id, o.sequence == sequence, o.position > position)
        with self._access.writing() as connection:
            if advanced:
                connection.execute(sa.delete(schema.undelivered).where(*mine, u.last_sequence == sequence, ~more), advanced)
                advance = sa.update(schema.undelivered).where(*mine)
                connection.execute(
                    advance.values(
                        next_sequence=sequence,
                        next_position=position + 1,
                        # What waits now was committed after that.
                        since=sa.bindparam("committed_at", type_=sa.BigInteger),
                        attempts=0,
                    ),
                    advanced,
                )
            settle = sa.update(schema.undelivered).where(*mine)
            connection.execute(
                settle.values(
                    relay_id=None,
                    free_at=now_ms() + sa.bindparam("pause_ms", type_=sa.BigInteger),
                    attempts=u.attempts + sa.bindparam("failures", type_=sa.Integer),
                    parked=sa.bindparam("is_parked", type_=sa.Integer),
                    error=sa.bindparam("said", type_=schema.undelivered.c.error.type),
                ),
                settled,
            )

    @repeatable
    def replay(self, sink: str, run_id: str, sequence: int = 0) -> bool:
        wanted = sa.and_(o.run_id == run_id, o.sequence >= sequence)
        with self._access.writing() as connection:
            known = connection.execute(sa.select(s.name).where(s.name == sink)).first()
            if known is None or connection.execute(sa.select(o.run_id).where(wanted).limit(1)).first() is None:
                return False
            self._set_back(connection, sink, wanted)
            return True

    @repeatable
    def unpark(self, sink: str, run_id: str, *, skip: bool = False) -> bool:
        parked = [u.sink == sink, u.run_id == run_id, u.parked == 1]
        row = sa.select(u.next_sequence, u.next_position, u.last_sequence).where(*parked)
        with self._access.writing() as connection:
            found = connection.execute(row.with_for_update()).first()
            if found is None:
                return False
            # No longer parked, and claimed by nobody whom `mark` would mistake for its caller.
            connection.execute(sa.update(schema.undelivered).where(*parked).values(FREE))
            if skip:
                self._skip(connection, sink, run_id, found.next_sequence, found.next_position)
            return True

    @staticmethod
    def _skip(connection: sa.Connection, sink: str, run_id: str, sequence: int, position: int) -> None:
        """Go on behind the run's next event."""
        here = sa.or_(o.sequence > sequence, sa.and_(o.sequence == sequence, o.position >= position))
        events = sa.select(o.sequence, o.position).where(o.run_id == run_id, here).order_by(o.sequence, o.position).limit(2)
        _, *following = connection.execute(events).all()
        row = [u.sink == sink, u.run_id == run_id]
        if following:
            after: Any = {"next_sequence": following[0].sequence, "next_position": following[0].position}
            connection.execute(sa.update(schema.undelivered).where(*row).values(after))
        else:
            connection.execute(sa.delete(schema.undelivered).where(*row))

    @repeatable
    def backlogs(self) -> list[Backlog]:
        oldest = sa.func.min(sa.case((u.parked == 0, u.since)))
        query = (
            sa.select(s.name, sa.func.count(u.run_id), sa.func.coalesce(sa.func.sum(u.parked), 0), now_ms() - oldest)
            .outerjoin(schema.undelivered, u.sink == s.name)
            .group_by(s.name)
            .order_by(s.name)
        )
        with self._access.reading() as connection:
            return [
                Backlog(sink=name, runs=runs, parked=int(parked), lag_seconds=max(0, lag_ms or 0) / 1000)
                for name, runs, parked, lag_ms in connection.execute(query)
            ]

    @repeatable
    def waiting(self, sink: str | None = None, *, parked: bool = False, limit: int = 100) -> list[WaitingRun]:
        query = sa.select(schema.undelivered, (now_ms() - u.since).label("age_ms")).order_by(u.since, u.run_id, u.sink)
        if sink is not None:
            query = query.where(u.sink == sink)
        if parked:
            query = query.where(u.parked == 1)
        with self._access.reading() as connection:
            return [
                WaitingRun(
                    sink=row.sink,
                    run_id=row.run_id,
                    sequence=row.next_sequence,
                    position=row.next_position,
                    attempts=row.attempts,
                    parked=bool(row.parked),
                    error=None if row.error is None else row.error.decode(),
                    age_seconds=max(0, row.age_ms) / 1000,
                )
                for row in connection.execute(query.limit(limit))
            ]


def row_for_each_sink() -> sa.Select[Any]:
    """The rows that a commit of events makes, with its first event as parameters: the sinks have had all before."""
    sequence = sa.bindparam("sequence", type_=sa.BigInteger)
    return sa.select(
        s.name.label("sink"),
        sa.bindparam("run_id", type_=o.run_id.type).label("run_id"),
        now_ms().label("since"),
        sequence.label("next_sequence"),
        sa.literal_column("0").label("next_position"),
        sequence.label("last_sequence"),
        *[sa.literal_column("0").label(name) for name in ("free_at", "attempts", "parked")],
    ).where(sa.true())
