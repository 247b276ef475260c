"""What it costs to be watched: `python -m tests.bench.watched [--pairs 10] [--scraped]`.

Chains of small nodes over a coordinator and a worker of their own, on PostgreSQL and Redis, in pairs of rounds that take turns:
one round without traces and metrics, and one that exports spans to a collector that is away and has metrics that nobody reads,
or, if `--scraped`, somebody reads each second. The figure is the ratio of the two throughputs, its mean
over the pairs with the 95 % bounds of Student's t.
"""

import argparse
import contextlib
import math
import statistics
import tempfile
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.distributed.conftest import Cluster
from tests.servers import POSTGRES, Database, RedisServer, free_port

from lockstep.store import open_store

STEPS, THREADS = 20, 8
T95 = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262, 15: 2.145, 20: 2.093}
"""Student's t for 95 %, two-sided, by the number of pairs."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watched", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, choices=T95)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--scraped", action="store_true")
    options = parser.parse_args()
    ratios = []
    for pair in range(options.pairs):
        modes = [False, True] if pair % 2 else [True, False]
        rates = {watched: rate(options.runs, watched=watched, scraped=options.scraped) for watched in modes}
        ratios.append(rates[True] / rates[False])
        print(f"pair {pair + 1}: {rates[False]:,.0f} steps/s, watched {rates[True]:,.0f}: {ratios[-1]:.3f}", flush=True)
    bound = T95[options.pairs] * statistics.stdev(ratios) / math.sqrt(len(ratios))
    print(f"watched / unwatched: {statistics.mean(ratios):.3f} +- {bound:.3f} (95 %), median {statistics.median(ratios):.3f}")


def rate(runs: int, *, watched: bool, scraped: bool) -> float:
    """Steps a second."""
    redis_server, database = RedisServer(), Database(POSTGRES, f"lockstep_bench_{uuid.uuid4().hex[:12]}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            open_store(database.url).close()
            cluster = Cluster(database.url, redis_server.url, Path(folder))
            ports = free_port(), free_port()
            otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"} if watched else {}
            cluster.coordinator(LOCKSTEP_METRICS_PORT=str(ports[0] if watched else 0), **otel)
            cluster.worker(LOCKSTEP_METRICS_PORT=str(ports[1] if watched else 0), **otel)
            ended = threading.Event()
            scraper = threading.Thread(target=scrape, args=[ports, ended])
            if watched and scraped:
                scraper.start()
            measure(cluster, runs // 4)
            seconds = measure(cluster, runs)
            ended.set()
            if watched and scraped:
                scraper.join()
            cluster.close()
            return runs * STEPS / seconds
    finally:
        redis_server.stop()
        database.drop()


def measure(cluster: Cluster, runs: int) -> float:
    began = time.perf_counter()

    def one(_: int) -> None:
        submitted = [cluster.client.submit("chain", {"steps": STEPS}) for _ in range(runs // THREADS)]
        for run in submitted:
            run.result()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(THREADS)))
    return time.perf_counter() - began


def scrape(ports: tuple[int, int], ended: threading.Event) -> None:
    while not ended.wait(1.0):
        for port in ports:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                page.read()


if __name__ == "__main__":
    main()
