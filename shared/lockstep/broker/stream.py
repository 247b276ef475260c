"""`RedisStreamSink`: events in Redis Streams, one for each run and one for all."""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import OutOfMemoryError

from lockstep.broker.connection import connect, translated
from lockstep.broker.names import Names
from lockstep.broker.scripts import PUBLISH
from lockstep.errors import PublishError
from lockstep.records import PublishedEvent

RUN_STREAM_ENTRIES = 10_000
"""Entries that the stream of a run keeps."""

RUN_STREAM_SECONDS = 7 * 24 * 3600
"""How long the stream of a run is kept after its last event."""

ALL_STREAM_ENTRIES = 100_000
"""Entries that the stream of all runs keeps; up to a node of the stream more, which costs less than to be exact."""

EVENTS_PER_CALL = 100
BYTES_PER_CALL = 1_000_000
"""What one script writes at most, so that it keeps nobody waiting; an event that is larger goes alone."""


class RedisStreamSink:
    """Publishes to `<namespace>:events:<run_id>`, under the ids `<sequence>-<position>`, and to `<namespace>:events`.

    Both get an event in one step. What is in the run's stream already, or was trimmed from it, is not written again.
    """

    def __init__(self, name: str, url: str, namespace: str) -> None:
        self.name = name
        self._url = url
        self._names = Names(namespace)
        self._client = connect(url)
        self._script = self._client.register_script(PUBLISH)

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        chosen = _few(events)
        stream = self._names.events_of(chosen[0].event.run_id)
        arguments: list[str | bytes | int] = [RUN_STREAM_ENTRIES, RUN_STREAM_SECONDS, ALL_STREAM_ENTRIES]
        for each in chosen:
            fields = fields_of(each)
            arguments += [f"{each.event.sequence}-{each.event.position}", len(fields) * 2]
            arguments += [part for field in fields.items() for part in field]
        with translated(self._url):
            try:
                arrived, refused = self._script(keys=[stream, self._names.events], args=arguments)
            except OutOfMemoryError as error:
                raise PublishError(
                    "Redis has no memory left for events; raise its maxmemory, or delete streams that nobody reads", arrived=0
                ) from error
        if refused:
            raise PublishError(
                f"stream {stream} has a newer entry than {chosen[arrived].event_id}, or another one in its place ("
                f"{refused.decode(errors='replace')}): it is not, or no longer, of this run; delete the stream, then "
                "`lockstep outbox --replay` the run",
                arrived=arrived,
                permanent=True,
            )
        return len(chosen)

    def close(self) -> None:
        self._client.close()


def fields_of(published: PublishedEvent) -> dict[str, str | bytes | int]:
    """The fields of an event's entry; `data` is JSON."""
    event = published.event
    return {
        "event_id": published.event_id,
        "graph": published.graph,
        "run_id": event.run_id,
        "sequence": event.sequence,
        "position": event.position,
        "step_id": event.step_id,
        "node_id": event.node_id,
        "type": event.type,
        "committed_at": published.committed_at,
        "data": event.data,
    }


def _few(events: Sequence[PublishedEvent]) -> Sequence[PublishedEvent]:
    """As many of the first events as one call may carry."""
    size = 0
    for number, each in enumerate(events[:EVENTS_PER_CALL]):
        size += len(each.event.data)
        if number and size > BYTES_PER_CALL:
            return events[:number]
    return events[:EVENTS_PER_CALL]
