"""The bytes in which a node's outcome travels and is journalled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lockstep.core.canonical import MAX_DEPTH, canonical_bytes
from lockstep.core.records import Finished, Route, Write

EmittedEvent = tuple[str, Any]
"""The type and the JSON data of an event."""


def encode_outcome(writes: Sequence[Write], routes: Sequence[Route], events: Sequence[EmittedEvent]) -> bytes:
    """A node's outcome as canonical JSON; empty parts are left out.

    {"events": [[type, data]], "routes": [[node, payload?]], "writes": [[field, value, true if Overwrite]]}
    """
    record: dict[str, Any] = {}
    if events:
        record["events"] = [list(event) for event in events]
    if routes:
        record["routes"] = [
            [route.node_id] if route.payload is None else [route.node_id, json.loads(route.payload)] for route in routes
        ]
    if writes:
        record["writes"] = [[w.field, w.value, True] if w.overwrite else [w.field, w.value] for w in writes]
    return canonical_bytes(record, depth=MAX_DEPTH + 3)


def decode_outcome(data: bytes) -> tuple[Finished, list[EmittedEvent]]:
    """The inverse of `encode_outcome`."""
    record = json.loads(data)
    writes = tuple([Write(*write) for write in record.get("writes", ())])
    routes = tuple(
        [Route(node_id, canonical_bytes(payload[0]) if payload else None) for node_id, *payload in record.get("routes", ())]
    )
    return Finished(writes, routes), [(kind, value) for kind, value in record.get("events", ())]
