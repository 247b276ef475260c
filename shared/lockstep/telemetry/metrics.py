"""Prometheus metrics of a process, under /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

import msgspec
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lockstep.errors import ConfigurationError


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has to say at this moment. Depths are by queue; None: they can't be known now."""

    queue_depths: Mapping[str, int] | None
    inflight_nodes: int
    backpressure_events: int


class _Readings(Collector):
    """Asks for a reading at each scrape, so that nothing is counted twice."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        return []  # Nothing is read before the first scrape.

    def collect(self) -> Iterator[Metric]:
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


class MetricsServer:
    """Serves a process's metrics until the end of `with`; on port 0, nothing. Raises ConfigurationError for a taken port."""

    def __init__(self, port: int, read: Callable[[], Reading]) -> None:
        self._server = None
        if port == 0:
            return
        registry = CollectorRegistry()
        registry.register(_Readings(read))
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
