"""Streams: what nodes say while they run is seen at once; what is committed is seen once and whole, though streams break."""

from __future__ import annotations

import asyncio
import itertools
import operator
import threading
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

from lockstep import (
    END,
    START,
    Client,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    RetryPolicy,
    Send,
    StateError,
    StreamEvent,
)
from lockstep.broker import live
from lockstep.streaming import Follower
from lockstep_worker.context import MAX_CHUNK_BYTES

Wait = Callable[[threading.Event], None]
ALL: list[Any] = ["values", "updates", "custom", "events"]


class State(TypedDict, total=False):
    text: str
    parts: Annotated[list[int], operator.add]


def one_node(function: Any, **options: Any) -> Graph:
    return Graph(State).add_node("node", function, **options).add_edge(START, "node")


def says(number: int, ctx: Context) -> dict[str, Any]:
    for word in ("a", "b", "c"):
        ctx.stream({"part": number, "word": word})
    ctx.emit("said", number)
    return {"parts": [number]}


def speaking(parts: int = 3) -> Graph:
    graph = Graph(State, name="speaking").add_node(says)
    graph.add_node("ends", lambda state: {"text": "end"}).add_edge("says", "ends")
    return graph.add_conditional_edges(START, lambda state: [Send("says", n) for n in range(parts)], ["says"])


def brief(event: StreamEvent) -> tuple[Any, ...]:
    return event.mode, event.step_id, event.node_id, event.data, event.reset


def test_what_a_node_streams_is_seen_while_it_runs(store_url: str, wait: Wait) -> None:
    seen = threading.Event()

    def node(state: State, ctx: Context) -> State:
        ctx.stream({"token": "first"})
        wait(seen)
        ctx.stream({"token": "second"})
        return {"text": "both"}

    with Engine(one_node(node), store_url) as engine:
        stream = engine.submit({}).stream(["custom", "values"])
        first = [next(stream), next(stream)]
        seen.set()
        assert [brief(event) for event in [*first, *stream]] == [
            ("values", 0, None, {"parts": []}, None),
            ("custom", 1, "node", {"token": "first"}, None),
            ("custom", 1, "node", {"token": "second"}, None),
            ("values", 1, None, {"text": "both", "parts": []}, None),
        ]


def test_the_modes_of_a_step_come_in_their_order(store_url: str) -> None:
    with Engine(speaking(1), store_url) as engine:
        run = engine.submit({})
        run.result()
        found = [brief(event)[:4] for event in run.stream(ALL)]
    said = [("custom", 1, "says", {"part": 0, "word": word}) for word in ("a", "b", "c")]
    event_id = f"{run.run_id}/"
    assert [entry for entry in found if entry[0] != "events"] == [
        ("values", 0, None, {"parts": []}),
        # START has a router: step 1 is its own.
        *[(mode, step, node, data) for mode, step, node, data in found if step == 1 and mode == "updates"],
        ("values", 1, None, {"parts": []}),
        *[(mode, step + 1, node, data) for mode, step, node, data in said],
        ("updates", 2, "says", {"parts": [0]}),
        ("values", 2, None, {"parts": [0]}),
        ("updates", 3, "ends", {"text": "end"}),
        ("values", 3, None, {"parts": [0], "text": "end"}),
    ]
    [published] = [entry for entry in found if entry[0] == "events"]
    assert published[1:3] == (2, "says")
    assert published[3]["type"] == "said" and published[3]["data"] == 0 and published[3]["event_id"].startswith(event_id)
    assert found.index(published) == found.index(("values", 2, None, {"parts": [0]})) - 1


def test_a_broken_stream_goes_on_behind_any_of_its_events(store_url: str) -> None:
    with Engine(speaking(), store_url) as engine:
        run = engine.submit({}, run_id="run")
        whole = list(run.stream(ALL))
        assert len(whole) == 4 + 5 + 9 + 3
        for number, event in enumerate(whole):
            # when it breaks after this event, then the rest comes, each once
            assert list(run.stream(ALL, after=event.offset)) == whole[number + 1 :]
            again = asyncio.run(collected(run.astream(ALL, after=event.offset)))
            assert [brief(one) for one in again] == [brief(one) for one in whole[number + 1 :]]


async def collected(events: Any) -> list[StreamEvent]:
    return [event async for event in events]


def test_an_offset_is_checked() -> None:
    with Engine(speaking()) as engine:
        run = engine.submit({})
        run.result()
        for wrong in ("", "1", "a:b:c:d:e", 7):
            with pytest.raises(ConfigurationError, match="after="):
                next(iter(run.stream(after=wrong)))  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="custom"):
            run.stream(["tokens"])  # type: ignore[list-item]


def test_what_an_attempt_that_failed_has_streamed_is_void() -> None:
    def node(state: State, ctx: Context) -> State:
        ctx.stream(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            raise ConnectionError("in the middle of an answer")
        return {}

    with Engine(one_node(node, retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))) as engine:
        run = engine.submit({})
        found = list(run.stream(["custom"]))
        assert [(event.data, event.attempt, event.reset) for event in found] == [
            ("attempt 1", 1, None),
            (None, 2, "again"),
            ("attempt 2", 2, None),
        ]
        assert len({event.path for event in found}) == 1
        # and who has seen the first one before the stream broke is told, too
        rest = list(run.stream(["custom"], after=found[0].offset))
        assert [(event.data, event.reset) for event in rest] == [(None, "again"), ("attempt 2", None)]


def test_a_slow_reader_misses_what_is_not_kept_and_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CHUNKS_PER_RUN", 10)

    def node(state: State, ctx: Context) -> State:
        for number in range(100):
            ctx.stream(number)
        return {}

    with Engine(one_node(node)) as engine:
        run = engine.submit({})
        run.result()
        found = [(event.data, event.reset) for event in run.stream(["custom"])]
    assert found == [(None, "lost"), *((number, None) for number in range(90, 100))]


def test_an_engine_keeps_the_chunks_of_some_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RUNS_KEPT", 2)
    with Engine(one_node(lambda state, ctx: ctx.stream(1))) as engine:
        runs = [engine.submit({}) for _ in range(3)]
        for run in runs:
            run.result()
        assert sum(bool(list(run.stream(["custom"]))) for run in runs) == 2


def apart(state: State, ctx: Context) -> State:
    for number in range(3):
        ctx.stream(number)
    return {}


def test_an_isolated_node_streams_while_it_runs() -> None:
    with Engine(one_node(apart, isolation="process")) as engine:
        run = engine.submit({})
        assert [event.data for event in run.stream(["custom"])] == [0, 1, 2]
        run.replay()
        assert [event.data for event in run.stream(["custom"])] == [0, 1, 2]


@pytest.mark.parametrize(("chunk", "what"), [(object(), "stream()"), ("x" * MAX_CHUNK_BYTES, "stream it in parts")])
def test_a_chunk_is_json_and_bounded(chunk: Any, what: str) -> None:
    with Engine(one_node(lambda state, ctx: ctx.stream(chunk))) as engine:
        with pytest.raises(StateError) as caught:
            engine.invoke({})
        assert what in str(caught.value)


def test_why_a_run_has_ended_is_its_last_event() -> None:
    def node(state: State) -> State:
        raise ValueError("no")

    with Engine(one_node(node)) as engine:
        found = []
        with pytest.raises(NodeFailedError):
            for event in engine.submit({}).stream(["events"]):
                found.append(event)
        assert [(event.data["type"], event.step_id) for event in found] == [("lockstep.failed", 0)]


def test_many_follow_one_run(store_url: str) -> None:
    with Engine(speaking(20), store_url) as engine:
        run = engine.submit({}, run_id="run")

        async def follow() -> list[list[StreamEvent]]:
            return await asyncio.gather(*(collected(engine.run("run").astream(ALL)) for _ in range(5)))

        streams = asyncio.run(follow())
        whole = list(run.stream(ALL))
    for one in streams:
        # Chunks of several nodes mix as they come; all else is the same.
        stored = [[brief(event) for event in events if event.mode != "custom"] for events in (one, whole)]
        assert stored[0] == stored[1]
        assert sum(event.mode == "custom" for event in one) == 60
        for _, events in itertools.groupby(
            sorted((e for e in one if e.mode == "custom"), key=lambda e: e.path or ""), lambda e: e.path
        ):
            assert [event.data["word"] for event in events] == ["a", "b", "c"]


def test_a_client_without_redis_sees_no_chunks(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCKSTEP_REDIS_URL", raising=False)
    url = f"sqlite:///{tmp_path}/runs.db"
    with Engine(speaking(), url) as engine:
        engine.invoke({}, run_id="run")
    with Client(url) as client:
        with pytest.raises(ConfigurationError, match="redis_url"):
            list(client.run("run").stream(["custom"]))
        assert [event.mode for event in client.run("run").stream(["values"])] == ["values"] * 4


def test_chunks_of_a_step_never_come_before_what_was_committed_before_it() -> None:
    # given a reader that has looked at the run before its first node's step was committed
    with Engine(speaking(1)) as engine:
        run = engine.submit({})
        run.result()
        row = run.row()
        follower = Follower(run.backend, run.run_id, ALL, None)
        early = follower.read(msgspec.structs.replace(row, step_id=0), False)
        # then what has come of the node's chunks by now waits
        assert [event.mode for event in early] == ["values"]
        assert follower.is_behind
        rest = follower.read(row, True)
        assert [brief(event) for event in [*early, *rest]] == [brief(event) for event in run.stream(ALL)]
        assert not follower.is_behind


def test_events_come_with_their_steps_also_of_a_run_that_goes_on_while_it_is_read() -> None:
    # given a run of more steps than are read at a time, and a reader that sees it grow
    def turn(state: State, ctx: Context) -> State:
        ctx.emit("turn", ctx.step_id)
        return {"parts": [ctx.step_id]}

    graph = Graph(State).add_node(turn).add_edge(START, "turn")
    graph.add_conditional_edges("turn", lambda state: "turn" if len(state["parts"]) < 260 else END, ["turn", END])
    with Engine(graph) as engine:
        run = engine.submit({})
        run.result()
        row = run.row()
        modes: list[Any] = ["events", "values"]
        follower = Follower(run.backend, run.run_id, modes, None)
        found: list[StreamEvent] = []
        for known in (150, 170, 170, row.step_id, row.step_id, row.step_id):
            found += follower.read(msgspec.structs.replace(row, step_id=known), known == row.step_id)
        whole = list(run.stream(modes))
    assert [brief(event) for event in found] == [brief(event) for event in whole]
    assert [event.step_id for event in whole] == [0, *(step for step in range(1, 261) for _ in range(2))]
