"""`dev`: a coordinator and workers in one process, without Redis, for submitting to from other terminals."""

from __future__ import annotations

from contextlib import ExitStack, closing

import click

from lockstep.broker.inprocess import InProcessBroker
from lockstep.cli.load import load_graphs, load_prices
from lockstep.cli.options import sinks_option, store_option
from lockstep.cli.reading import coordinates, read_coordinator, read_queues
from lockstep.cli.relay import relay_beside
from lockstep.cli.serving import run_until_signalled
from lockstep.cli.tracing import open_spans
from lockstep.compiled import by_hash, queues_of
from lockstep.config import masked, read_settings
from lockstep.errors import ConfigurationError
from lockstep.options import DEFAULTS
from lockstep.store import open_store
from lockstep.telemetry.metrics import Readings
from lockstep.telemetry.server import Server
from lockstep_coordinator.process import CoordinatorProcess
from lockstep_worker.executor import Executor


@click.command()
@click.argument("graphs", nargs=-1, metavar="MODULE:GRAPH...")
@click.option(
    "--concurrency", default=DEFAULTS.slots, show_default=True, type=click.IntRange(min=1), help="Nodes that run at a time."
)
@store_option
@sinks_option
def dev(graphs: tuple[str, ...], concurrency: int, store: str | None, sinks: tuple[str, ...]) -> None:
    """Serve graphs from this one process: coordinator, workers and SQLite, no Redis. Submit from another terminal."""
    settings = read_settings(store=store, graphs=graphs, sinks=sinks)
    if settings.store_url == "memory://":
        raise ConfigurationError("memory:// is one process's own; use sqlite:///path", option="store")
    loaded = by_hash(load_graphs(settings.graphs))
    broker = InProcessBroker(DEFAULTS.queue_depth)
    with open_spans(settings, "dev") as spans, ExitStack() as stack:
        executor = Executor(
            loaded,
            concurrency,
            "dev",
            broker.take,
            broker.deliver,
            lambda chunk: None,
            load_prices(settings.prices),
            spans=spans,
        )
        stack.enter_context(closing(executor))
        broker.connect(executor.pump, executor.cancel)
        opened = stack.enter_context(closing(open_store(settings.store_url)))
        process = CoordinatorProcess(opened, lambda: broker, loaded, spans)

        names = ", ".join(sorted(graph.name for graph in loaded.values()))
        url = masked(settings.store_url)
        click.echo(f"serving {names} from {url}; in another terminal: lockstep submit NAME --wait --store {url}", err=True)
        with (
            relay_beside(process, settings, opened) as (services, reads),
            Server(
                settings.metrics_port or 0,
                Readings(
                    "engine",
                    lambda: read_coordinator(process),
                    lambda: read_queues(queues_of(loaded), broker.depth),
                    executor.reading,
                    *reads,
                ),
                livez=process.pulse.trouble,
                readyz=lambda: coordinates(process),
            ),
        ):
            run_until_signalled(*services)
