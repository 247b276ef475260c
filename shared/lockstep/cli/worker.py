"""`worker`: execute nodes. Needs Redis and the graphs' code, no database."""

from __future__ import annotations

import click

from lockstep.cli.load import load_graphs, load_prices
from lockstep.cli.options import graphs_option, redis_option
from lockstep.cli.serving import settle_garbage_collector
from lockstep.cli.tracing import open_spans
from lockstep.compiled import by_hash, queues_of
from lockstep.config import DEFAULT_REDIS_URL, read_settings, set_rq_prefix
from lockstep.telemetry.metrics import Readings
from lockstep.telemetry.server import Server

METRICS_PORT = 9465
DEFAULT_SLOTS = 32
DRAIN_SECONDS = 30.0


@click.command()
@graphs_option
@redis_option
@click.option("--queue", "queues", multiple=True, help="A queue to serve; may be repeated. Default: all that the graphs name.")
@click.option("--concurrency", default=DEFAULT_SLOTS, show_default=True, type=click.IntRange(min=1), help="Tasks at a time.")
@click.option(
    "--drain-seconds",
    default=DRAIN_SECONDS,
    show_default=True,
    type=click.FloatRange(min=0),
    help="How long running nodes may take after SIGTERM; then their tasks are handed back.",
)
def worker(graphs: tuple[str, ...], redis: str | None, queues: tuple[str, ...], concurrency: int, drain_seconds: float) -> None:
    """Execute the nodes of these graphs. Start as many as you like, on any machine; SIGTERM ends one when it has finished."""
    settings = read_settings(redis=redis, graphs=graphs)
    loaded = by_hash(load_graphs(settings.graphs))
    names = queues or queues_of(loaded)
    set_rq_prefix(f"{settings.namespace}:rq")
    from lockstep_worker.process import WorkerProcess

    with open_spans(settings, "worker") as spans:
        settle_garbage_collector()
        process = WorkerProcess(
            settings.redis_url or DEFAULT_REDIS_URL,
            settings.namespace,
            loaded,
            queues=names,
            slots=concurrency,
            drain_seconds=drain_seconds,
            signing_keys=settings.signing_keys,
            pricing=load_prices(settings.prices),
            spans=spans,
        )

        port = METRICS_PORT if settings.metrics_port is None else settings.metrics_port
        with Server(port, Readings("worker", process.reading), livez=process.pulse.trouble, readyz=process.not_ready):
            process.run()
