"""Messages over Redis that only who has the key can have sent: each carries a MAC, and the time until which it counts.

The key of a MAC is derived for a namespace, a direction (task or result) and a queue or partition, so a message that was
recorded in one place counts in no other. HMAC-SHA256 throughout (RFC 2104).
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Sequence

TASK_SECONDS = 25 * 3600
"""How long a task counts: somewhat longer than it may wait in its queue."""

RESULT_SECONDS = 7 * 24 * 3600
"""How long a result counts: a worker keeps it until it is stored, and the database may be away."""

_SIGNED = re.compile(rb',"signed":"(\d{10})\.([0-9a-f]{64})"\}')
_SIGNATURE = re.compile(rb"(\d{10})\.([0-9a-f]{64})")


class Signer:
    """Signs with the first of its keys, and accepts what any of them has signed."""

    def __init__(self, namespace: str, keys: Sequence[str]) -> None:
        self._namespace = namespace
        self._keys = [key.encode() for key in keys]
        self._derived: dict[tuple[str, str], list[bytes]] = {}

    def sign_task(self, queue: str, task: bytes) -> bytes:
        """A task's JSON with its signature in it."""
        return b'%b,"signed":"%b"}' % (task[:-1], self._signature("task", queue, task, TASK_SECONDS))

    def check_task(self, queue: str, signed: bytes) -> None:
        """Raise ValueError unless this is a task that was signed for the queue."""
        found = _SIGNED.search(signed, max(0, len(signed) - 100))
        if found is None or found.end() != len(signed):
            raise ValueError("it is not signed")
        self._check("task", queue, signed[: found.start()] + b"}", found[1], found[2])

    def sign_results(self, partition_id: str, results: bytes) -> bytes:
        """The signature of results for a partition's owner."""
        return self._signature("result", partition_id, results, RESULT_SECONDS)

    def check_results(self, partition_id: str, results: bytes, signature: bytes | None) -> None:
        """Raise ValueError unless these are results that were signed for the partition."""
        found = _SIGNATURE.fullmatch(signature or b"")
        if found is None:
            raise ValueError("it is not signed")
        self._check("result", partition_id, results, found[1], found[2])

    def _signature(self, direction: str, place: str, body: bytes, seconds: int) -> bytes:
        until = b"%d" % int(time.time() + seconds)
        return b"%b.%b" % (until, _mac(self._keys_of(direction, place)[0], until, body))

    def _check(self, direction: str, place: str, body: bytes, until: bytes, mac: bytes) -> None:
        if not any(hmac.compare_digest(_mac(key, until, body), mac) for key in self._keys_of(direction, place)):
            raise ValueError("its signature is not that of a key that is known here")
        if int(until) < time.time():
            raise ValueError("its signature has expired")

    def _keys_of(self, direction: str, place: str) -> list[bytes]:
        if (direction, place) not in self._derived:
            name = "\0".join(["lockstep", self._namespace, direction, place]).encode()
            self._derived[direction, place] = [hmac.digest(key, name, "sha256") for key in self._keys]
        return self._derived[direction, place]


def _mac(key: bytes, until: bytes, body: bytes) -> bytes:
    return hmac.digest(key, until + b"." + body, "sha256").hex().encode()
