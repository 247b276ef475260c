"""Sinks in the relay's own process: a log, and your code."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from lockstep.errors import PublishError, text_of
from lockstep.ports import Observer
from lockstep.records import PublishedEvent
from lockstep.sinks.body import record_of

PUBLISH_SECONDS = 3.0
"""After this long, `publish` gives an observer no further event."""

log = structlog.get_logger()


class LogSink:
    """Writes a line for each event."""

    def __init__(self, name: str) -> None:
        self.name = name

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        """See `Sink`."""
        for event in events:
            log.info("event", **record_of(event))
        return len(events)

    def close(self) -> None:
        """Nothing is open."""


class ObserverSink:
    """Calls an observer for each event. One that raises gets the event again; it bounds its own time."""

    def __init__(self, name: str, observer: Observer) -> None:
        self.name = name
        self._observer = observer

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        """See `Sink`."""
        until = time.monotonic() + PUBLISH_SECONDS
        for arrived, event in enumerate(events):
            if arrived and time.monotonic() >= until:
                return arrived
            try:
                self._observer.observe(event)
            except PublishError as error:
                raise PublishError(str(error), arrived=arrived, permanent=error.permanent) from error
            except Exception as error:
                raise PublishError(
                    f"{type(self._observer).__name__}.observe raised {type(error).__name__}: {text_of(error)}", arrived=arrived
                ) from error
        return len(events)

    def close(self) -> None:
        """The observer is its owner's."""
