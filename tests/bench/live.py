"""How long a chunk takes from `ctx.stream` on a worker to a client elsewhere: `python -m tests.bench.live [--runs 200]`.

One coordinator and one worker as processes of their own, on PostgreSQL and Redis, one run after the other, followed by a thread
or by a coroutine. Both clocks are this machine's.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.distributed.conftest import Cluster
from tests.servers import POSTGRES, Database, RedisServer

from lockstep import Run
from lockstep.store import open_store


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.live", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=20)
    options = parser.parse_args()
    redis_server, database = RedisServer(), Database(POSTGRES, f"lockstep_bench_{uuid.uuid4().hex[:12]}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            open_store(database.url).close()
            cluster = Cluster(database.url, redis_server.url, Path(folder))
            cluster.coordinator()
            cluster.worker()
            for name, follow in (("thread", in_thread), ("coroutine", lambda run: asyncio.run(in_coroutine(run)))):
                first, later = [], []
                for number in range(options.runs):
                    value = {"width": options.chunks, "delay_ms": 5}
                    run = cluster.client.submit("speaks", value, run_id=f"{name}-{number}")
                    one, *others = follow(run)
                    first.append(one)
                    later += others
                for which, delays in (("first", first), ("later", later)):
                    print(f"{name:10} {which} chunks: {described(delays)}")
            cluster.close()
    finally:
        redis_server.stop()
        database.drop()


def in_thread(run: Run) -> list[float]:
    return [time.time() - event.data["at"] for event in run.stream(["custom"])]


async def in_coroutine(run: Run) -> list[float]:
    return [time.time() - event.data["at"] async for event in run.astream(["custom"])]


def described(delays: list[float]) -> str:
    parts: Any = statistics.quantiles(delays, n=100)
    figures = {"p50": parts[49], "p95": parts[94], "p99": parts[98], "max": max(delays)}
    return f"{len(delays)}, ms " + ", ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in figures.items())


if __name__ == "__main__":
    main()
