"""What a process says of itself to Prometheus: all metrics of its role, from the start, as they are at each scrape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from lockstep.errors import StoreUnavailableError
from lockstep.ports import Outbox
from lockstep.telemetry.catalogue import CATALOGUE, Metric, Role
from lockstep.telemetry.counts import Counts, Distribution

Reading = Mapping[str, Any]
"""By metric: a number, a Distribution, or, with labels, numbers by the labels' values. What is missing is 0, or not known."""


class Readings(Collector):
    """Asks for readings at each scrape, so that nothing is counted twice."""

    def __init__(self, role: Role, *reads: Callable[[], Reading]) -> None:
        self._metrics = [metric for metric in CATALOGUE if role in metric.roles]
        self._reads = reads

    def describe(self) -> list[Family]:
        """Nothing: nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Family]:
        """The metrics of this moment."""
        reading: dict[str, Any] = {}
        for read in self._reads:
            reading.update(read())
        for metric in self._metrics:
            yield _family(metric, reading.get(metric.name))


def _family(metric: Metric, value: Any) -> Family:
    if metric.kind == "histogram":
        return _histogram(metric, value or Distribution(metric.bounds))
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    name = metric.name.removesuffix("_total")
    if not metric.labels:
        return kind(name, metric.help, value=float(value or 0))
    family = kind(name, metric.help, labels=metric.labels)
    # A copy: other threads count on.
    for labels, number in dict(value or {}).items():
        family.add_metric([labels] if isinstance(labels, str) else list(labels), float(number))
    return family


def _histogram(metric: Metric, value: Distribution) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help)
    bounds = [*map(str, value.bounds), "+Inf"]
    family.add_metric([], list(zip(bounds, itertools.accumulate(value.counts), strict=True)), value.sum)
    return family


def reading_of(counts: Counts) -> Reading:
    """What a coordinator has counted, by metric."""
    return {
        "langgraph_step_latency_ms": counts.step_ms,
        "langgraph_retries_total": counts.retries,
        "langgraph_merge_conflicts_total": counts.conflicts,
        "langgraph_backpressure_events_total": counts.backpressure_events,
        "lockstep_ended_runs_total": counts.ended,
        "lockstep_commit_seconds": counts.commit_seconds,
        "lockstep_commit_runs": counts.commit_runs,
        "lockstep_merge_seconds": counts.merge_seconds,
        "lockstep_takeovers_total": counts.takeovers,
        "lockstep_lost_leases_total": counts.lost_leases,
        "lockstep_refused_commits_total": counts.refused_commits,
        "lockstep_redeliveries_total": counts.redeliveries,
        "lockstep_dropped_results_total": counts.dropped_results,
        "lockstep_tokens_total": counts.tokens,
        "lockstep_cost_usd_total": counts.cost_usd,
        "lockstep_unpriced_calls_total": counts.unpriced,
        "lockstep_quarantined_messages_total": counts.quarantined,
        "lockstep_store_errors_total": counts.store_errors,
        "lockstep_redis_errors_total": counts.redis_errors,
    }


class PublishCounts(Protocol):
    """What was counted for a sink."""

    published: int
    failures: int


def reading_of_outbox(outbox: Outbox, counts: Mapping[str, PublishCounts]) -> Reading:
    """What waits for each sink, as the store knows it, and what this process has published. Sinks are few."""
    try:
        backlogs = outbox.backlogs()
    except StoreUnavailableError:
        backlogs = []  # What waits cannot be known now.
    return {
        "lockstep_outbox_lag_seconds": {backlog.sink: backlog.lag_seconds for backlog in backlogs},
        "lockstep_outbox_waiting_runs": {backlog.sink: backlog.runs for backlog in backlogs},
        "lockstep_outbox_parked_runs": {backlog.sink: backlog.parked for backlog in backlogs},
        "lockstep_outbox_published_events_total": {sink: one.published for sink, one in counts.items()},
        "lockstep_outbox_failed_attempts_total": {sink: one.failures for sink, one in counts.items()},
    }
