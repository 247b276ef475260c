"""The JSON of an event, as webhooks post it."""

from __future__ import annotations

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.records import PublishedEvent


def body_of(published: PublishedEvent) -> bytes:
    """The event as canonical JSON: the same bytes whenever it is published."""
    return canonical_bytes(record_of(published))


def record_of(published: PublishedEvent) -> dict[str, object]:
    """The event as an object of JSON."""
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
        "data": msgspec.json.decode(event.data),
    }
