"""`coordinator`: move runs; any number of them share the work."""

from __future__ import annotations

from contextlib import closing

import click

from lockstep.broker.redis import RedisBroker
from lockstep.broker.signing import Signer
from lockstep.cli.load import load_graphs
from lockstep.cli.options import graphs_option, redis_option, sinks_option, store_option
from lockstep.cli.reading import coordinates, read_coordinator, read_queues
from lockstep.cli.relay import relay_beside
from lockstep.cli.serving import run_until_signalled, settle_garbage_collector
from lockstep.cli.tracing import open_spans
from lockstep.compiled import by_hash, queues_of
from lockstep.config import DEFAULT_REDIS_URL, read_settings
from lockstep.errors import ConfigurationError
from lockstep.options import DEFAULTS
from lockstep.store import open_store
from lockstep.telemetry.metrics import Readings
from lockstep.telemetry.server import Server
from lockstep_coordinator.process import CoordinatorProcess
from lockstep_coordinator.pruner import Pruner

METRICS_PORT = 9464


@click.command()
@graphs_option
@store_option
@redis_option
@click.option(
    "--queue-depth",
    default=DEFAULTS.queue_depth,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tasks that a queue holds at most. The same for all coordinators.",
)
@sinks_option
@click.option(
    "--retention",
    metavar="AGE[/COUNT],...",
    help="How long finished runs are kept, and how many of a graph at most: 30d/100000,audit=7d; off for ever. "
    "Default: $LOCKSTEP_RETENTION, or 30d.",
)
def coordinator(
    graphs: tuple[str, ...],
    store: str | None,
    redis: str | None,
    queue_depth: int,
    sinks: tuple[str, ...],
    retention: str | None,
) -> None:
    """Move the runs of these graphs: dispatch to workers, merge, commit. Start as many as you like; SIGTERM ends one."""
    settings = read_settings(store=store, redis=redis, graphs=graphs, sinks=sinks, retention=retention)
    if settings.store_url == "memory://":
        raise ConfigurationError("memory:// is one process's own; a coordinator needs a database", option="store")
    loaded = by_hash(load_graphs(settings.graphs))

    def open_broker() -> RedisBroker:
        signer = Signer(settings.namespace, settings.signing_keys) if settings.signing_keys else None
        return RedisBroker(settings.redis_url or DEFAULT_REDIS_URL, settings.namespace, queue_depth, signer)

    with (
        open_spans(settings, "coordinator") as spans,
        closing(open_store(settings.store_url)) as opened,
        closing(open_broker()) as watched,
    ):
        settle_garbage_collector()
        process = CoordinatorProcess(opened, open_broker, loaded, spans)
        port = METRICS_PORT if settings.metrics_port is None else settings.metrics_port
        queues = queues_of(loaded)
        with relay_beside(process, settings, opened) as (services, reads):
            readings = Readings(
                "coordinator",
                lambda: read_coordinator(process),
                lambda: read_queues(queues, watched.depth, watched.oldest),
                *reads,
            )
            with Server(port, readings, livez=process.pulse.trouble, readyz=lambda: coordinates(process)):
                run_until_signalled(*services, Pruner(opened, settings.retention))
