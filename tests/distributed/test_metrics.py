"""What operators see: every metric from the start, true figures, and probes that tell a process of use from one that is not."""

from __future__ import annotations

import operator
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Figure, Ledger
from tests.servers import RedisServer, free_port

from lockstep import START, ConfigurationError, ConflictError, Context, Engine, Graph, RetryPolicy, Usage
from lockstep.telemetry.catalogue import CATALOGUE, Role
from lockstep.telemetry.counts import MAX_MODELS, OTHER, Counts, Distribution
from lockstep.telemetry.metrics import Readings
from lockstep.telemetry.pulse import ALIVE_SECONDS, Pulse, Pulses
from lockstep.telemetry.server import Server

CONTRACT = {
    "langgraph_inflight_nodes",
    "langgraph_queue_depth",
    "langgraph_step_latency_ms",
    "langgraph_retries_total",
    "langgraph_merge_conflicts_total",
    "langgraph_backpressure_events_total",
}


def page(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
        text: str = reply.read().decode()
        return text


def values(port: int) -> dict[str, float]:
    lines = [line for line in page(port).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def names(port: int) -> set[str]:
    """The metrics that have a type on a page, as they are called there."""
    found = re.findall(r"^# TYPE (\S+) (\S+)", page(port), re.MULTILINE)
    return {name for name, _ in found}


def verdict(port: int, path: str) -> tuple[int, str]:
    try:
        return 200, page(port, path)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def of(role: Role) -> set[str]:
    return {metric.name for metric in CATALOGUE if role in metric.roles}


def test_the_contract_is_in_every_role() -> None:
    assert all(of(role) >= CONTRACT for role in ("coordinator", "worker", "relay", "engine"))


def test_every_role_shows_all_of_its_metrics_from_the_start(cluster: Cluster, figure: Figure) -> None:
    ports = {"coordinator": free_port(), "worker": free_port(), "relay": free_port()}
    cluster.coordinator(LOCKSTEP_METRICS_PORT=str(ports["coordinator"]))
    cluster.worker(LOCKSTEP_METRICS_PORT=str(ports["worker"]))
    began = time.monotonic()
    relay = cluster.spawn("relay", "--store", cluster.store_url, "--sink", "log", LOCKSTEP_METRICS_PORT=str(ports["relay"]))
    cluster.workers.append(relay)

    def shown() -> bool:
        try:
            return all(names(port) == of(role) for role, port in ports.items())
        except OSError:
            return False

    cluster.until(shown, "all metrics are there")
    figure("seconds from the relay's start until all are shown", time.monotonic() - began)
    for port in ports.values():
        cluster.until(lambda port=port: verdict(port, "/readyz") == (200, "ok\n"), "it is ready")
        assert verdict(port, "/livez") == (200, "ok\n")
        assert verdict(port, "/other")[0] == 404


def test_an_engine_that_is_asked_shows_what_happens_in_it() -> None:
    class State(TypedDict, total=False):
        n: int
        seen: Annotated[list[int], operator.add]

    def fails_once(state: State, ctx: Context) -> State:
        ctx.llm_usage("model", 100, 10, cost_usd="0.25")
        if ctx.attempt == 1:
            raise ConnectionError
        return {"seen": [1]}

    def conflicts(state: State) -> State:
        return {"n": 1}

    good = Graph(State, name="good").add_node("n", fails_once, retry=RetryPolicy(initial_seconds=0.01)).add_edge(START, "n")
    bad = Graph(State, name="bad").add_node("one", conflicts).add_node("two", conflicts)
    bad.add_edge(START, "one").add_edge(START, "two")
    port = free_port()
    with Engine([good, bad], metrics_port=port) as engine:
        assert names(port) == of("engine")
        before = values(port)
        assert before["langgraph_retries_total"] == before["langgraph_step_latency_ms_count"] == 0
        engine.invoke({}, graph="good")
        with pytest.raises(ConflictError):
            engine.invoke({}, graph="bad")
        after = values(port)
        assert after["langgraph_retries_total"] == 1
        assert after["langgraph_merge_conflicts_total"] == 1
        assert after["langgraph_step_latency_ms_count"] == 3  # Two inputs, and the step of the good one.
        assert after["langgraph_step_latency_ms_sum"] >= 10  # The pause before the second attempt.
        assert after["lockstep_commit_runs_sum"] >= after["lockstep_commit_seconds_count"] > 0
        assert after['lockstep_tokens_total{direction="in",model="model"}'] == 200
        assert after['lockstep_cost_usd_total{model="model"}'] == 0.5
        assert after['lockstep_ended_runs_total{error="ConflictError",status="failed"}'] == 1
        assert after["lockstep_active_runs"] == after["lockstep_oldest_run_seconds"] == 0
        assert verdict(port, "/livez")[0] == verdict(port, "/readyz")[0] == 200
        assert "run_id" not in page(port)
        with pytest.raises(ConfigurationError, match=f"port {port} cannot be opened"):
            Engine(good, metrics_port=port).invoke({})
    with pytest.raises(OSError, match="refused"):
        page(port)


def test_a_coordinator_tells_what_it_takes_over_and_hands_out_again(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    port = free_port()
    first = cluster.coordinator()
    cluster.until(lambda: len(cluster.leases()) == 1, "it owns all")
    worker = cluster.worker()
    run = cluster.client.submit("chain", {"steps": 3, "gate": str(gate), "ledger": str(ledger)})
    cluster.until(lambda: len(ledger) == 1, "it is under way")
    cluster.kill(first)
    cluster.coordinator(LOCKSTEP_METRICS_PORT=str(port))
    cluster.until(lambda: values(port)["lockstep_takeovers_total"] == 16, "it has taken over")
    assert values(port)["lockstep_partitions"] == 16
    cluster.kill(worker)
    cluster.until(lambda: values(port)["lockstep_redeliveries_total"] == 1, "the task is handed out again")
    assert values(port)["lockstep_oldest_run_seconds"] > 1
    cluster.worker()
    gate.touch()
    assert run.result(PATIENCE_SECONDS)["n"] == 3


def test_who_cannot_reach_redis_is_not_ready_and_says_so(cluster: Cluster) -> None:
    server = RedisServer()
    try:
        cluster.redis_url, mine = server.url, cluster.redis_url
        ports = free_port(), free_port()
        coordinator = cluster.spawn("coordinator", "--store", cluster.store_url, LOCKSTEP_METRICS_PORT=str(ports[0]))
        worker = cluster.spawn("worker", LOCKSTEP_METRICS_PORT=str(ports[1]))
        cluster.coordinators.append(coordinator)
        cluster.workers.append(worker)
        cluster.redis_url = mine

        def answers(port: int, path: str, status: int) -> bool:
            try:
                return verdict(port, path)[0] == status
            except OSError:
                return False

        for port in ports:
            cluster.until(lambda port=port: answers(port, "/readyz", 200), "it is ready")
        server.stop()
        for port in ports:
            cluster.until(lambda port=port: answers(port, "/readyz", 503), "it is not ready")
            # It is alive: to start it anew would not help.
            assert answers(port, "/livez", 200)
            cluster.until(lambda port=port: values(port)["lockstep_redis_errors_total"] > 0, "errors are counted")
        server.start()
        for port in ports:
            cluster.until(lambda port=port: answers(port, "/readyz", 200), "it is ready again")
        cluster.terminate(worker)
        cluster.terminate(coordinator)
    finally:
        server.stop()


# --- parts


def test_a_loop_that_does_not_turn_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pulse, patient = Pulse(), Pulse(patience_seconds=20)
    both = Pulses([patient, pulse])
    now[0] += ALIVE_SECONDS - 1
    assert both.trouble() is None
    now[0] += 2
    assert both.trouble() == pulse.trouble() == "its loop has not turned for 31 s"
    assert patient.trouble() is None
    pulse.beat()
    assert both.trouble() is None


entered, let = threading.Event(), threading.Event()


def stuck(one: int, other: int) -> int:
    """A reducer that holds up whoever merges."""
    entered.set()
    let.wait(PATIENCE_SECONDS)
    return one + other


class Stuck(TypedDict, total=False):
    n: Annotated[int, stuck]


def test_a_wedged_reducer_is_seen_from_outside() -> None:
    port, pulse = free_port(), Pulse()
    with Server(port, Readings("engine"), livez=pulse.trouble, readyz=lambda: "not now"):
        assert verdict(port, "/livez") == (200, "ok\n")
        assert verdict(port, "/readyz") == (503, "not now\n")
        pulse._last -= ALIVE_SECONDS + 1
        assert verdict(port, "/livez")[0] == 503
    graph = Graph(Stuck).add_node("n", lambda state: {"n": 1}).add_edge(START, "n")
    with Engine(graph, metrics_port=port) as engine:
        run = engine.submit({})
        assert entered.wait(PATIENCE_SECONDS)
        assert values(port)["lockstep_active_runs"] == 1  # It still answers.
        let.set()
        run.result(PATIENCE_SECONDS)


def test_a_histogram_counts_each_value_in_all_bounds_above_it() -> None:
    distribution = Distribution((1, 10))
    for value in (0.5, 1, 5, 100):
        distribution.add(value)
    [family] = [one for one in _collected(distribution) if one.name == "lockstep_commit_seconds"]
    samples = {tuple(sample.labels.values()): sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert samples == {("1",): 2, ("10",): 3, ("+Inf",): 4}
    assert [sample.value for sample in family.samples if sample.name.endswith("_sum")] == [106.5]


def _collected(distribution: Distribution) -> list[Any]:
    return list(Readings("engine", lambda: {"lockstep_commit_seconds": distribution}).collect())


def test_models_that_are_too_many_count_as_others() -> None:
    counts = Counts()
    counts.use(Usage(f"model {number}", 1, 1, cost_usd="1") for number in range(MAX_MODELS + 5))
    assert len(counts.cost_usd) == MAX_MODELS + 1
    assert counts.cost_usd[OTHER] == counts.tokens[OTHER, "in"] == 5
