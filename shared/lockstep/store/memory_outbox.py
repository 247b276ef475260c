"""The reference model of the `Outbox` contract, for the memory store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec

from lockstep.records import Backlog, Event, PendingEvents, Progress, PublishedEvent, WaitingRun

Place = tuple[int, int]
"""The sequence and the position of an event in its run."""


class Undelivered(msgspec.Struct):
    """A run of which a sink has not got all: what it gets next, and who may send that when."""

    since: int
    next: Place
    relay_id: str | None = None
    free_at: int = 0
    attempts: int = 0
    parked: bool = False
    error: str | None = None


class MemoryOutbox:
    """An `Outbox` in this process's memory. `stored` are the events of each run, in order; `clock` gives milliseconds."""

    def __init__(
        self, lock: threading.RLock, clock: Callable[[], int], stored: Callable[[], Mapping[str, Sequence[PublishedEvent]]]
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._stored = stored
        self._sinks: dict[str, dict[str, Undelivered]] = {}

    def note(self, first: Event) -> None:
        """A commit has stored events of a run, this one first."""
        for waiting in self._sinks.values():
            waiting.setdefault(first.run_id, Undelivered(self._clock(), (first.sequence, 0)))

    def forget(self, run_id: str) -> None:
        """A run is deleted."""
        for waiting in self._sinks.values():
            waiting.pop(run_id, None)

    def holds(self, run_id: str) -> bool:
        """Whether events of a run wait for some sink."""
        return any(run_id in waiting for waiting in self._sinks.values())

    def add_sink(self, sink: str, *, from_now: bool = False) -> None:
        with self._lock:
            if sink in self._sinks:
                return
            self._sinks[sink] = {}
            if not from_now:
                for run_id in self._stored():
                    self.replay(sink, run_id)

    def remove_sink(self, sink: str) -> bool:
        with self._lock:
            return self._sinks.pop(sink, None) is not None

    def claim(self, relay_id: str, sink: str, runs: int, seconds: float) -> list[PendingEvents]:
        with self._lock:
            now = self._clock()
            claimed: list[PendingEvents] = []
            for run_id, row in sorted(self._sinks.get(sink, {}).items(), key=lambda item: (item[1].since, item[0])):
                if len(claimed) < runs and not row.parked and row.free_at <= now:
                    row.relay_id, row.free_at = relay_id, now + int(seconds * 1000)
                    claimed.append(PendingEvents(run_id=run_id, attempts=row.attempts, events=self._rest(run_id, row.next)))
            return claimed

    def _rest(self, run_id: str, first: Place) -> list[PublishedEvent]:
        return [event for event in self._stored().get(run_id, ()) if _place(event) >= first]

    def mark(self, relay_id: str, sink: str, progress: Sequence[Progress]) -> None:
        with self._lock:
            waiting = self._sinks.get(sink, {})
            for each in progress:
                row = waiting.get(each.run_id)
                if row is None or row.relay_id != relay_id:
                    continue
                if each.last is not None:
                    sequence, position = _place(each.last)
                    row.next, row.since, row.attempts = (sequence, position + 1), each.last.committed_at, 0
                    if not self._rest(each.run_id, row.next):
                        del waiting[each.run_id]
                        continue
                row.relay_id, row.error = None, each.error
                row.free_at = self._clock() + int((each.pause_seconds or 0) * 1000)
                row.attempts += each.error is not None
                row.parked = each.error is not None and each.pause_seconds is None

    def replay(self, sink: str, run_id: str, sequence: int = 0) -> bool:
        with self._lock:
            rest = self._rest(run_id, (sequence, 0))
            if sink not in self._sinks or not rest:
                return False
            known = self._sinks[sink].get(run_id)
            since = known.since if known is not None else self._clock()
            self._sinks[sink][run_id] = Undelivered(since, (_place(rest[0])[0], 0))
            return True

    def unpark(self, sink: str, run_id: str, *, skip: bool = False) -> bool:
        with self._lock:
            waiting = self._sinks.get(sink, {})
            row = waiting.get(run_id)
            if row is None or not row.parked:
                return False
            rest = self._rest(run_id, row.next)[int(skip) :]
            if rest:
                waiting[run_id] = Undelivered(row.since, _place(rest[0]) if skip else row.next)
            else:
                del waiting[run_id]
            return True

    def backlogs(self) -> list[Backlog]:
        with self._lock:
            now = self._clock()
            return [
                Backlog(
                    sink=sink,
                    runs=len(waiting),
                    parked=sum(row.parked for row in waiting.values()),
                    lag_seconds=max((max(0, now - row.since) for row in waiting.values() if not row.parked), default=0) / 1000,
                )
                for sink, waiting in sorted(self._sinks.items())
            ]

    def waiting(self, sink: str | None = None, *, parked: bool = False, limit: int = 100) -> list[WaitingRun]:
        with self._lock:
            now = self._clock()
            rows = [
                (row.since, run_id, name, row)
                for name, waiting in self._sinks.items()
                for run_id, row in waiting.items()
                if sink in (None, name) and (row.parked or not parked)
            ]
            return [
                WaitingRun(
                    sink=name,
                    run_id=run_id,
                    sequence=row.next[0],
                    position=row.next[1],
                    attempts=row.attempts,
                    parked=row.parked,
                    error=row.error,
                    age_seconds=max(0, now - since) / 1000,
                )
                for since, run_id, name, row in sorted(rows, key=lambda row: row[:3])[:limit]
            ]


def _place(event: PublishedEvent) -> Place:
    return event.event.sequence, event.event.position
