"""`relay`: publish events, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import click

from lockstep.cli.load import load_object
from lockstep.cli.options import redis_option, sinks_option, store_option
from lockstep.cli.serving import Service, run_until_signalled
from lockstep.config import Settings, read_settings
from lockstep.errors import ConfigurationError
from lockstep.ports import Store
from lockstep.sinks import open_sinks
from lockstep.store import open_store
from lockstep.telemetry.metrics import Reading, Readings, reading_of_outbox
from lockstep.telemetry.server import Server
from lockstep_coordinator.process import CoordinatorProcess
from lockstep_coordinator.relay import MAX_ATTEMPTS, Relay

METRICS_PORT = 9466


@contextmanager
def open_relay(
    settings: Settings, store: Store, *, max_attempts: int = MAX_ATTEMPTS, only_new: bool = False
) -> Iterator[Relay]:
    """A relay to the sinks of the settings, which the store knows from now on; the sinks are closed at the end."""
    with ExitStack() as opened:
        sinks = open_sinks(settings.sinks, settings, load_object)
        for sink in sinks:
            opened.callback(sink.close)
        for sink in sinks:
            store.outbox.add_sink(sink.name, from_now=only_new)
        yield Relay(store.outbox, sinks, max_attempts=max_attempts)


@contextmanager
def relay_beside(
    process: CoordinatorProcess, settings: Settings, store: Store
) -> Iterator[tuple[list[Service], list[Callable[[], Reading]]]]:
    """What a process of a coordinator serves, and reads for metrics: itself, and a relay if there are sinks, which each commit
    of events wakes."""
    if not settings.sinks:
        yield [process], []
        return
    with open_relay(settings, store) as relay:
        process.on_events = relay.wake
        yield [process, relay], [lambda: reading_of_outbox(store.outbox, relay.counts)]


@click.command()
@sinks_option
@store_option
@redis_option
@click.option(
    "--max-attempts",
    default=MAX_ATTEMPTS,
    show_default=True,
    type=click.IntRange(min=1),
    help="How often an event is tried before its run is parked.",
)
@click.option("--only-new", is_flag=True, help="To sinks that are new, send no events that are stored already.")
def relay(sinks: tuple[str, ...], store: str | None, redis: str | None, max_attempts: int, only_new: bool) -> None:
    """Publish the events that runs emit, each at least once, those of a run in order. Start as many as you like."""
    settings = read_settings(store=store, redis=redis, sinks=sinks)
    if not settings.sinks:
        raise ConfigurationError("no sink is named; use --sink redis, log, webhook:URL or MODULE:OBJECT", option="sinks")
    if settings.store_url == "memory://":
        raise ConfigurationError("memory:// is one process's own; a relay needs a database", option="store")
    port = METRICS_PORT if settings.metrics_port is None else settings.metrics_port
    with (
        closing(open_store(settings.store_url, create=False)) as opened,
        open_relay(settings, opened, max_attempts=max_attempts, only_new=only_new) as running,
        Server(
            port,
            Readings("relay", lambda: reading_of_outbox(opened.outbox, running.counts), running.reading),
            livez=running.pulse.trouble,
            readyz=lambda: running.trouble,
        ),
    ):
        run_until_signalled(running)
