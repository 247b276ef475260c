"""Prometheus metrics of a process, under /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lockstep.errors import ConfigurationError, StoreUnavailableError
from lockstep.ports import Outbox


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has to say at this moment. Depths are by queue; None: they can't be known now."""

    queue_depths: Mapping[str, int] | None
    inflight_nodes: int
    quarantined: int
    backpressure_events: int = 0
    retries: int = 0
    abandoned: int = 0
    dropped_chunks: int = 0
    ended: Mapping[tuple[str, str], int] = {}


class Readings(Collector):
    """Asks for a reading at each scrape, so that nothing is counted twice."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing: nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        reading = self._read()
        depth = GaugeMetricFamily("langgraph_queue_depth", "Tasks that wait in a queue.", labels=["queue"])
        for queue, tasks in (reading.queue_depths or {}).items():
            depth.add_metric([queue], tasks)
        yield depth
        yield GaugeMetricFamily(
            "langgraph_inflight_nodes", "Tasks handed out (coordinator) or in a slot (worker).", reading.inflight_nodes
        )
        yield CounterMetricFamily(
            "langgraph_backpressure_events", "Items that found their queue full.", reading.backpressure_events
        )
        yield CounterMetricFamily("langgraph_retries", "Attempts of nodes that were followed by another one.", reading.retries)
        yield CounterMetricFamily(
            "lockstep_abandoned_nodes",
            "Nodes past their time that could not be stopped, since they run in a thread or hold up their event loop.",
            reading.abandoned,
        )
        yield CounterMetricFamily(
            "lockstep_dropped_chunks", "What nodes streamed and could not be sent, see `ctx.stream`.", reading.dropped_chunks
        )
        ended = CounterMetricFamily("lockstep_ended_runs", "Runs that ended, and with what error.", labels=["status", "error"])
        for labels, runs in list(reading.ended.items()):
            ended.add_metric(labels, runs)
        yield ended
        yield CounterMetricFamily(
            "lockstep_quarantined_messages", "Messages that could not be used, see `lockstep quarantine`.", reading.quarantined
        )


class PublishCounts(Protocol):
    """What was counted for a sink."""

    published: int
    failures: int


class OutboxReadings(Collector):
    """What waits for each sink, asked of the store at each scrape, and what this process has published. Sinks are few."""

    def __init__(self, outbox: Outbox, counts: Callable[[], Mapping[str, PublishCounts]]) -> None:
        self._outbox = outbox
        self._counts = counts

    def describe(self) -> list[Metric]:
        """Nothing: nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment; without those of the store where that does not answer."""
        try:
            backlogs = self._outbox.backlogs()
        except StoreUnavailableError:
            backlogs = []
        lag = GaugeMetricFamily(
            "lockstep_outbox_lag_seconds", "Age of the oldest event that waits for a sink.", labels=["sink"]
        )
        waiting = GaugeMetricFamily(
            "lockstep_outbox_waiting_runs", "Runs with events that a sink has not got.", labels=["sink"]
        )
        parked = GaugeMetricFamily(
            "lockstep_outbox_parked_runs", "Runs held up by an event that a sink refuses.", labels=["sink"]
        )
        for backlog in backlogs:
            lag.add_metric([backlog.sink], backlog.lag_seconds)
            waiting.add_metric([backlog.sink], backlog.runs)
            parked.add_metric([backlog.sink], backlog.parked)
        yield from (lag, waiting, parked)
        published = CounterMetricFamily("lockstep_outbox_published_events", "Events that arrived.", labels=["sink"])
        failures = CounterMetricFamily("lockstep_outbox_failed_attempts", "Attempts to publish that failed.", labels=["sink"])
        for sink, counts in self._counts().items():
            published.add_metric([sink], counts.published)
            failures.add_metric([sink], counts.failures)
        yield from (published, failures)


class MetricsServer:
    """Serves a process's metrics until the end of `with`; on port 0, nothing. Raises ConfigurationError for a taken port."""

    def __init__(self, port: int, *collectors: Collector) -> None:
        self._server = None
        if port == 0:
            return
        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise ConfigurationError(
                f"LOCKSTEP_METRICS_PORT: port {port} cannot be opened ({error.strerror}); choose another, or 0 for none",
                option="metrics_port",
            ) from None

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
