"""What a stretch of a measurement costs beside time: CPU of this process and all that it started, and commands of Redis."""

import os
import time
from pathlib import Path
from typing import Any


class Meter:
    """Counts while it is entered. `redis` is a URL, or nothing. Both figures are there after the end.

    Redis counts for the whole server: commands of others are counted too, and those that scripts call.
    """

    cpu_seconds: float
    redis_calls: dict[str, int] | None = None

    def __init__(self, redis: str) -> None:
        self._redis: Any = None
        if redis:
            from redis import Redis

            self._redis = Redis.from_url(redis)

    def __enter__(self) -> "Meter":
        self._calls = self._calls_so_far()
        self._cpu = _cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds = _cpu_seconds() - self._cpu
        if self._redis is not None:
            calls = {name: calls - self._calls.get(name, 0) for name, calls in self._calls_so_far().items()}
            self.redis_calls = {name: number for name, number in calls.items() if number and name != "info"}
            self._redis.close()

    def _calls_so_far(self) -> dict[str, int]:
        if self._redis is None:
            return {}
        stats: dict[str, dict[str, int]] = self._redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}


def _cpu_seconds() -> float:
    """Of this process and of its descendants that are alive; where there is no /proc, of this process alone."""
    parents, ticks = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()  # Behind the name, which may hold anything.
        except OSError:
            continue  # It has just ended.
        number = int(file.parent.name)
        parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
    descendants, added = set(), {os.getpid()}
    while added:
        added = {number for number, parent in parents.items() if parent in added}
        descendants |= added
    return time.process_time() + sum(ticks[number] for number in descendants) / os.sysconf("SC_CLK_TCK")
