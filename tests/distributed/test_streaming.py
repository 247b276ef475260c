"""What nodes stream on workers elsewhere reaches clients while they run, also when workers and Redis end in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.distributed.conftest import PATIENCE_SECONDS, Cluster

from lockstep import StreamEvent
from lockstep.broker.live import CHUNKS_SECONDS


def test_chunks_reach_a_client_while_the_node_runs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.coordinator()
    cluster.worker()
    gate = tmp_path / "gate"
    run = cluster.client.submit("speaks", {"width": 5, "gate": str(gate)}, run_id="run")
    # given a node that goes on only when its chunks have been seen
    stream = run.stream(["custom", "values"])
    first = [next(stream) for _ in range(6)]
    assert [event.mode for event in first] == ["values"] + ["custom"] * 5
    assert [event.data["number"] for event in first[1:]] == [0, 1, 2, 3, 4]
    gate.touch()
    assert [(event.mode, event.step_id) for event in stream] == [("values", 1)]

    # then they are still there for who comes later, and go by themselves
    async def later() -> list[StreamEvent]:
        return [event async for event in run.astream(["custom", "values"])]

    assert [(event.mode, event.data, event.offset) for event in asyncio.run(later())][:6] == [
        (event.mode, event.data, event.offset) for event in first
    ]
    ttl: Any = cluster.redis.ttl(cluster.names.live("run"))
    assert 0 < ttl <= CHUNKS_SECONDS


def test_a_coroutine_sees_chunks_while_the_node_runs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.coordinator()
    cluster.worker()
    gate = tmp_path / "gate"
    run = cluster.client.submit("speaks", {"width": 5, "gate": str(gate)}, run_id="run")

    async def follow() -> list[StreamEvent]:
        seen = []
        async for event in run.astream(["custom", "values"]):
            seen.append(event)
            if len(seen) == 6:
                gate.touch()
        return seen

    assert [event.mode for event in asyncio.run(follow())] == ["values"] + ["custom"] * 5 + ["values"]


def test_after_the_death_of_a_worker_readers_are_told_to_begin_anew(cluster: Cluster, tmp_path: Path) -> None:
    cluster.coordinator()
    worker = cluster.worker()
    gate = tmp_path / "gate"
    run = cluster.client.submit("speaks", {"width": 2, "gate": str(gate)}, run_id="run")
    stream = run.stream(["custom"])
    first = [next(stream), next(stream)]
    # when its worker dies in the middle of its answer
    cluster.kill(worker)
    gate.touch()
    cluster.worker()
    rest = list(stream)
    # then what was seen is void, and the answer comes again, as the same attempt
    assert [(event.reset, event.attempt) for event in [*first, *rest]] == [
        (None, 1),
        (None, 1),
        ("again", 1),
        (None, 1),
        (None, 1),
    ]
    assert rest[1].data["pid"] != first[0].data["pid"]


def test_without_redis_chunks_are_lost_and_runs_are_not(cluster: Cluster, tmp_path: Path) -> None:
    cluster.coordinator()
    cluster.worker()
    gate = tmp_path / "gate"
    run = cluster.client.submit("speaks", {"width": 3, "gate": str(gate)}, run_id="run")
    stream = run.stream(["custom", "values"])
    assert [next(stream).mode for _ in range(4)] == ["values"] + ["custom"] * 3
    # when Redis forgets everything
    cluster.redis.flushall()
    gate.touch()
    # then the run goes on, and its stream ends with it
    assert [event.data.get("n") for event in stream if event.mode == "values"] == [3]
    assert run.result(PATIENCE_SECONDS)["n"] == 3
