"""Messages that cannot be used, kept aside for people to look at: bounded in number, in size, and in time."""

from __future__ import annotations

from typing import Any

import msgspec
import redis
import structlog
from redis.exceptions import OutOfMemoryError

from lockstep.broker.names import Names

MAX_ENTRIES = 1_000
"""Of more, the oldest go."""

MAX_DATA_BYTES = 256 * 1024
"""Of a larger message, the beginning is kept."""

MAX_SIGNATURE_BYTES = 200

KEPT_SECONDS = 7 * 24 * 3600
"""How long after the last one all go."""

log = structlog.get_logger()


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A message kept aside: `kind` is "task" or "result", `place` its queue or partition, `size` that of the whole message.

    `at` is in milliseconds since 1970, by the clock of Redis.
    """

    entry_id: str
    kind: str
    place: str
    reason: str
    size: int
    at: int
    data: bytes
    signed: bytes

    @property
    def is_whole(self) -> bool:
        """Whether all of the message was kept."""
        return self.size == len(self.data)


class Quarantine:
    """The messages of a namespace that were kept aside. Raises redis-py's errors."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._redis = client
        self._names = names

    def add(self, kind: str, place: str, reason: str, data: bytes, signed: bytes = b"") -> None:
        """Keep a message aside, with the signature that came beside it.

        Where Redis has no memory left, what the log says of it is all that remains.
        """
        log.error("a message cannot be used; see `lockstep quarantine`", kind=kind, place=place, reason=reason)
        fields: Any = {"kind": kind, "place": place, "reason": reason, "size": len(data), "data": data[:MAX_DATA_BYTES]}
        fields["signed"] = signed[:MAX_SIGNATURE_BYTES]
        pipe = self._redis.pipeline(transaction=True)
        pipe.xadd(self._names.quarantine, fields, maxlen=MAX_ENTRIES, approximate=False)
        pipe.expire(self._names.quarantine, KEPT_SECONDS)
        try:
            pipe.execute()
        except OutOfMemoryError as error:
            log.error("Redis has no memory left to keep it", error=str(error))

    def entries(self, limit: int) -> list[Quarantined]:
        """What is kept aside, oldest first, at most so many."""
        found: Any = self._redis.xrange(self._names.quarantine, count=limit)
        return [_entry(entry_id.decode(), fields) for entry_id, fields in found]

    def entry(self, entry_id: str) -> Quarantined | None:
        """One message; None: it is not there."""
        found: Any = self._redis.xrange(self._names.quarantine, entry_id, entry_id)
        return next((_entry(entry_id, fields) for _, fields in found), None)

    def drop(self, entry_id: str) -> bool:
        """Forget a message; False: it is not there."""
        return bool(self._redis.xdel(self._names.quarantine, entry_id))

    def retry(self, result: Quarantined) -> None:
        """Send a result to its partition's owner once more, and forget it here."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.xadd(self._names.results(result.place), {"results": result.data, "signed": result.signed})
        pipe.xdel(self._names.quarantine, result.entry_id)
        pipe.execute()


def _entry(entry_id: str, fields: dict[bytes, bytes]) -> Quarantined:
    return Quarantined(
        entry_id=entry_id,
        kind=fields[b"kind"].decode(),
        place=fields[b"place"].decode(),
        reason=fields[b"reason"].decode(),
        size=int(fields[b"size"]),
        at=int(entry_id.partition("-")[0]),
        data=fields[b"data"],
        signed=fields[b"signed"],
    )
