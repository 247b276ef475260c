"""What a client says to coordinators: look into the store."""

from __future__ import annotations

import structlog
from redis.exceptions import RedisError

from lockstep.broker.connection import connect
from lockstep.broker.names import Names
from lockstep.broker.scripts import ANNOUNCE

MAX_WAITING = 100
"""Entries in a partition's stream above which its owner needs no more waking."""

log = structlog.get_logger()


class Announcer:
    """Wakes the owners of partitions. Without it they look every second, so a Redis that does not answer costs time only."""

    def __init__(self, url: str, namespace: str) -> None:
        self._names = Names(namespace)
        self._redis = connect(url)

    def announce(self, partition_id: str) -> None:
        """There is something new in the store for this partition's owner."""
        try:
            self._redis.eval(ANNOUNCE, 1, self._names.results(partition_id), MAX_WAITING)
        except (RedisError, OSError) as error:
            log.warning("Redis does not answer; the coordinator looks by itself", error=str(error))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._redis.close()
