"""The relay: publishes stored events to sinks, those of a run in order, each at least once.

What is published and not marked when a relay dies is published again, with the same event ids. Any number of relays share the
work: each claims whole runs. A run whose event a sink refuses holds back its own later events there, and nobody else's.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from lockstep.errors import PublishError, StoreUnavailableError, text_of
from lockstep.ports import Outbox, Sink
from lockstep.records import PendingEvents, Progress, PublishedEvent
from lockstep.telemetry.pulse import Pulse, Pulses

RUNS_PER_CLAIM = 64
"""Runs that a relay claims at a time."""

CLAIM_SECONDS = 30.0
"""How long a claim holds; then another relay may publish these runs' events."""

PUBLISH_SECONDS = 10.0
"""After this long, a relay publishes no more of what it has claimed, and marks it: well before the claim ends, since what is
being published may take its time, too."""

IDLE_SECONDS = 0.5
"""How often a relay looks for events that nobody announced."""

OUTAGE_SECONDS = 2.0
"""The pause after the database did not answer."""

MAX_ATTEMPTS = 20
"""How often an event is tried before its run is parked; with the pauses below, for more than an hour."""

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 300.0
"""The pause after a failed attempt doubles from the first to the second of these, less up to half of it by chance."""

ERROR_CHARACTERS = 2000
"""Of a failure's text, what is stored."""

log = structlog.get_logger()


class RelayCounts(msgspec.Struct):
    """What a relay has counted for a sink since it started."""

    published: int = 0
    """Events that arrived, those that arrived again among them."""
    failures: int = 0
    """Attempts that failed."""
    parked: int = 0
    """Runs that were parked."""


class Relay:
    """Publishes to each of the sinks from a thread of its own, so that a slow one holds back no other; `run` blocks."""

    def __init__(self, outbox: Outbox, sinks: Sequence[Sink], *, max_attempts: int = MAX_ATTEMPTS) -> None:
        self._relays = [SinkRelay(outbox, sink, max_attempts) for sink in sinks]
        self._failure: BaseException | None = None
        self.pulse = Pulses([relay.pulse for relay in self._relays])

    @property
    def trouble(self) -> str | None:
        """Why nothing can be published at the moment; None: it can."""
        return next((relay.trouble for relay in self._relays if relay.trouble is not None), None)

    def reading(self) -> Mapping[str, int]:
        """What is to be said to Prometheus beside the outbox."""
        return {"lockstep_store_errors_total": sum(relay.store_errors for relay in self._relays)}

    @property
    def counts(self) -> dict[str, RelayCounts]:
        """What was counted, by sink."""
        return {relay.name: relay.counts for relay in self._relays}

    def run(self) -> None:
        """Publish until `stop`. An error of our own making ends all of it, and is raised."""
        threads = [
            threading.Thread(target=self._guarded, args=[relay], name=f"lockstep-relay-{relay.name}", daemon=True)
            for relay in self._relays
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, relay: SinkRelay) -> None:
        try:
            relay.run()
        except BaseException as error:
            self._failure = error
            self.stop()

    def wake(self) -> None:
        """There may be new events."""
        for relay in self._relays:
            relay.wake()

    def stop(self) -> None:
        """Make `run` return after what is being published."""
        for relay in self._relays:
            relay.stop()


class SinkRelay:
    """Publishes to one sink."""

    def __init__(self, outbox: Outbox, sink: Sink, max_attempts: int = MAX_ATTEMPTS) -> None:
        self._outbox = outbox
        self._sink = sink
        self._max_attempts = max_attempts
        self._relay_id = uuid.uuid4().hex
        self._woken = threading.Event()
        self._stopping = False
        self.name = sink.name
        self.counts = RelayCounts()
        self.pulse = Pulse(patience_seconds=PUBLISH_SECONDS)
        self.store_errors = 0
        self.trouble: str | None = None

    def run(self) -> None:
        """Turn after turn, until `stop`."""
        while not self._stopping:
            self._woken.clear()
            self.pulse.beat()
            pause = IDLE_SECONDS
            try:
                busy = self.turn()
                self.trouble = None
                if busy:
                    continue
            except StoreUnavailableError as error:
                self.store_errors += 1
                self.trouble = str(error)
                log.warning("the relay holds, and tries again", sink=self.name, error=str(error))
                pause = OUTAGE_SECONDS
            self._woken.wait(pause)

    def wake(self) -> None:
        """There may be new events."""
        self._woken.set()

    def stop(self) -> None:
        """Make `run` return after what is being published."""
        self._stopping = True
        self._woken.set()

    def turn(self) -> bool:
        """Claim some runs, publish their events, and mark how far they got; False: nothing waits. Raises
        StoreUnavailableError."""
        claimed = self._outbox.claim(self._relay_id, self.name, RUNS_PER_CLAIM, CLAIM_SECONDS)
        if not claimed:
            return False
        until = time.monotonic() + PUBLISH_SECONDS
        self._outbox.mark(self._relay_id, self.name, [self._publish(pending, until) for pending in claimed])
        return True

    def _publish(self, pending: PendingEvents, until: float) -> Progress:
        last: PublishedEvent | None = None
        rest = pending.events
        while rest and time.monotonic() < until and not self._stopping:
            try:
                arrived, failure = self._sink.publish(rest), None
                if not 0 < arrived <= len(rest):
                    raise PublishError(f"the sink says that {arrived} of {len(rest)} events arrived; mend it")
            except PublishError as error:
                arrived, failure = error.arrived or 0, error
            except Exception as error:  # of somebody else's code: an event that it cannot take is not lost
                arrived, failure = 0, PublishError(f"{type(error).__name__}: {text_of(error)}")
            if arrived:
                last, rest = rest[arrived - 1], rest[arrived:]
                self.counts.published += arrived
            if failure is not None and rest:
                return self._failed(pending, last, rest[0], failure)
        return Progress(run_id=pending.run_id, last=last)

    def _failed(
        self, pending: PendingEvents, last: PublishedEvent | None, event: PublishedEvent, error: PublishError
    ) -> Progress:
        attempts = 1 + (pending.attempts if last is None else 0)
        self.counts.failures += 1
        pause = None
        if not error.permanent and attempts < self._max_attempts:
            pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 30)) * random.uniform(0.5, 1)
            pause = max(pause, error.retry_after_seconds or 0.0)
        else:
            self.counts.parked += 1
        log.warning(
            "an event could not be published" if pause is not None else "a run is parked: see `lockstep outbox`",
            sink=self.name,
            event_id=event.event_id,
            attempts=attempts,
            error=str(error),
        )
        return Progress(run_id=pending.run_id, last=last, error=str(error)[:ERROR_CHARACTERS], pause_seconds=pause)
