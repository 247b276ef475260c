"""All metrics: name, kind, what it says, in which roles. The page on observability, dashboard and alerts are held to this."""

from __future__ import annotations

from typing import Literal

import msgspec

from lockstep.telemetry.counts import MILLISECONDS, RUNS, SECONDS

Role = Literal["coordinator", "worker", "relay", "engine"]
Kind = Literal["counter", "gauge", "histogram"]

ALL: frozenset[Role] = frozenset({"coordinator", "worker", "relay", "engine"})
MOVES: frozenset[Role] = frozenset({"coordinator", "engine"})
EXECUTES: frozenset[Role] = frozenset({"worker", "engine"})
PUBLISHES: frozenset[Role] = frozenset({"relay", "coordinator"})


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. `name` is as Prometheus shows it, `bounds` are a histogram's. Labels have few values, never a run's id."""

    name: str
    kind: Kind
    help: str
    roles: frozenset[Role]
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def _gauge(name: str, help: str, roles: frozenset[Role], *labels: str) -> Metric:
    return Metric(name=name, kind="gauge", help=help, roles=roles, labels=labels)


def _counter(name: str, help: str, roles: frozenset[Role], *labels: str) -> Metric:
    return Metric(name=name, kind="counter", help=help, roles=roles, labels=labels)


def _histogram(name: str, help: str, roles: frozenset[Role], bounds: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind="histogram", help=help, roles=roles, bounds=bounds)


CATALOGUE = (
    _gauge("langgraph_inflight_nodes", "Tasks handed out (coordinator, engine) or in a slot (worker).", ALL),
    _gauge("langgraph_queue_depth", "Tasks that wait in a queue.", ALL, "queue"),
    _histogram(
        "langgraph_step_latency_ms",
        "From the commit that made a step due to its own commit, in milliseconds; coordinators measure it.",
        ALL,
        MILLISECONDS,
    ),
    _counter("langgraph_retries_total", "Attempts of nodes that were followed by another one; coordinators count them.", ALL),
    _counter(
        "langgraph_merge_conflicts_total",
        "Steps that failed because several items wrote one field without a reducer; coordinators count them.",
        ALL,
    ),
    _counter(
        "langgraph_backpressure_events_total", "Items that found their queue full, once each; coordinators count them.", ALL
    ),
    _counter("lockstep_ended_runs_total", "Runs that ended, and the type of the error.", MOVES, "status", "error"),
    _gauge("lockstep_active_runs", "Runs that have not ended, in this process's memory.", MOVES),
    _gauge("lockstep_oldest_run_seconds", "The longest that a running run of this process has been without a commit.", MOVES),
    _histogram("lockstep_commit_seconds", "A transaction with its round trips.", MOVES, SECONDS),
    _histogram("lockstep_commit_runs", "Runs that one transaction moved.", MOVES, RUNS),
    _histogram("lockstep_merge_seconds", "Merging the results of one step, reducers included.", MOVES, SECONDS),
    _gauge("lockstep_partitions", "Partitions that this coordinator owns, of 16.", MOVES),
    _counter("lockstep_takeovers_total", "Partitions that came from another owner, or from none.", MOVES),
    _counter("lockstep_lost_leases_total", "Leases that were taken away, since this process had been suspended.", MOVES),
    _counter("lockstep_refused_commits_total", "Commits that were refused because somebody else moved the run.", MOVES),
    _counter("lockstep_redeliveries_total", "Tasks handed out again, since their worker or Redis had lost them.", MOVES),
    _counter("lockstep_dropped_results_total", "Results that came too late to be needed.", MOVES),
    _counter("lockstep_tokens_total", "Tokens that calls to models used.", MOVES, "model", "direction"),
    _counter("lockstep_cost_usd_total", "What calls to models cost, in US dollars.", MOVES, "model"),
    _counter("lockstep_unpriced_calls_total", "Calls to models that have no price.", MOVES, "model"),
    _gauge("lockstep_oldest_task_seconds", "How long the first task of a queue has waited in it.", MOVES, "queue"),
    _gauge("lockstep_slots", "Tasks that this worker executes at a time.", EXECUTES),
    _counter(
        "lockstep_abandoned_nodes_total",
        "Nodes past their time that could not be stopped, since they run in a thread or hold up their event loop.",
        EXECUTES,
    ),
    _counter("lockstep_dropped_chunks_total", "What nodes streamed and could not be sent, see ctx.stream.", EXECUTES),
    _counter("lockstep_dropped_spans_total", "Spans that no collector took, see Traces.", MOVES | EXECUTES),
    _counter("lockstep_quarantined_messages_total", "Messages that could not be used, see `lockstep quarantine`.", ALL),
    _counter("lockstep_store_errors_total", "Times that the database did not answer, or refused.", MOVES | {"relay"}),
    _counter("lockstep_redis_errors_total", "Times that Redis did not answer, or refused.", MOVES | EXECUTES),
    _gauge("lockstep_outbox_lag_seconds", "Age of the oldest event that waits for a sink.", PUBLISHES, "sink"),
    _gauge("lockstep_outbox_waiting_runs", "Runs with events that a sink has not got.", PUBLISHES, "sink"),
    _gauge("lockstep_outbox_parked_runs", "Runs held up by an event that a sink refuses.", PUBLISHES, "sink"),
    _counter("lockstep_outbox_published_events_total", "Events that arrived.", PUBLISHES, "sink"),
    _counter("lockstep_outbox_failed_attempts_total", "Attempts to publish that failed.", PUBLISHES, "sink"),
)
