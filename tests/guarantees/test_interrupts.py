"""People in the loop: nodes ask, runs wait, answers come whenever they come, whoever is alive then, and nothing runs twice."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import (
    START,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    Interrupt,
    NodeFailedError,
    Options,
    RetryPolicy,
    RunCancelledError,
    RunInterruptedError,
    Send,
    StateError,
    interrupt,
)
from lockstep.archive import export_run, import_run
from lockstep.core.ordering import ROOT_PATH, path_of
from lockstep.explain import explain
from lockstep.fsck import check_store
from lockstep.store.memory import MemoryStore

Wait = Callable[[threading.Event], None]
ASKS, OTHER = path_of(ROOT_PATH, "asks", 0), path_of(ROOT_PATH, "other", 1)


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


class Asking:
    """asks and other side by side, then end; `asks` puts so many questions."""

    def __init__(self, questions: int = 1) -> None:
        self.calls: Counter[str] = Counter()
        self._questions = questions
        self.graph = Graph(State)
        for node in (self.asks, self.other, self.end):
            self.graph.add_node(node)
        self.graph.add_edge(START, "asks").add_edge(START, "other").add_edge(["asks", "other"], "end")

    def asks(self, state: State, ctx: Context) -> State:
        self.calls["asks"] += 1
        answers = [interrupt({"question": number}) for number in range(self._questions)]
        return {"log": [answers, ctx.attempt, ctx.rng.random()]}

    def other(self, state: State) -> State:
        self.calls["other"] += 1
        return {"log": ["other"]}

    def end(self, state: State) -> State:
        self.calls["end"] += 1
        return {"log": ["end"]}


@pytest.fixture
def asking() -> Iterator[Asking]:
    yield Asking()


def asked(run: Any) -> list[Interrupt]:
    """What the run asks, once nothing else is left to do."""
    with pytest.raises(RunInterruptedError) as caught:
        run.result()
    pending: list[Interrupt] = run.interrupts()
    assert caught.value.interrupts == [dataclasses.asdict(one) for one in pending]
    assert run.status == "interrupted"
    return pending


@pytest.mark.parametrize("answer", ["yes", None, {"a": 1}, [], False])
def test_a_node_asks_and_goes_on_with_the_answer(store_url: str, asking: Asking, answer: Any) -> None:
    with Engine(asking.graph, store_url) as engine:
        # given a run that waits for nothing but an answer
        run = engine.submit({}, run_id="run")
        [question] = asked(run)
        assert question == Interrupt(f"{ASKS.hex()[:16]}-0", "asks", {"question": 0}, "run")
        assert run.row().step_id == 0
        assert asking.calls == {"asks": 1, "other": 1}
        events = [(event.type, json.loads(event.data)) for event in run.backend.reader.events("run")]
        assert events == [("lockstep.interrupted", {"ids": [question.id]})]
        # when it comes
        run.resume(answer)
        # then the node runs again with it, as the same attempt, and its sibling does not
        given, attempt, _ = run.result()["log"][:3]
        assert (given, attempt, run.result()["log"][3:]) == ([answer], 1, ["other", "end"])
        assert asking.calls == {"asks": 2, "other": 1, "end": 1}
        assert [task.status for task in run.history()[1].tasks] == ["done", "done"]
        assert list(check_store(run.backend.reader)) == []
        # and nothing is asked any more
        assert run.interrupts() == []
        with pytest.raises(ConfigurationError, match="asks nothing"):
            run.resume("again")


def test_whatever_dies_meanwhile_the_answer_reaches_the_node(one_store: str, asking: Asking, abandon: Any) -> None:
    # given a run that asks twice, one after the other, each time in another process
    asking._questions = 2
    with Engine(asking.graph, one_store) as engine:
        run = engine.submit({}, run_id="run")
        asked(run)
        abandon(engine)
    with Engine(asking.graph, one_store) as engine:
        [run] = engine.recover()
        [first] = asked(run)
        run.resume("one")
        [second] = asked(run)
        assert (first.id[-2:], second.id[-2:], second.value) == ("-0", "-1", {"question": 1})
        abandon(engine)
    # when it has both answers, then it ends as one that nobody has disturbed
    with Engine(asking.graph, one_store) as engine:
        [run] = engine.recover()
        run.resume("two")
        result = run.result()
        assert result["log"][0] == ["one", "two"]
        assert asking.calls == {"asks": 3, "other": 1, "end": 1}
        assert list(check_store(run.backend.reader)) == []
        other = MemoryStore()
        import_run(other, BytesIO(b"".join(export_run(run.backend.reader, "run"))))
        assert list(check_store(other)) == []
        undisturbed = engine.submit({}, options=Options(seed=0))
        asked(undisturbed)
        undisturbed.resume("one")
        asked(undisturbed)
        undisturbed.resume("two")
        assert undisturbed.result()["log"][3:] == result["log"][3:]


def test_several_questions_are_answered_by_id_in_any_order(store_url: str) -> None:
    calls: Counter[int] = Counter()

    def ask(number: int) -> State:
        calls[number] += 1
        return {"log": [interrupt(number) if number != 1 else "nobody"]}

    graph = Graph(State).add_node("ask", ask)
    graph.add_conditional_edges(START, lambda state: [Send("ask", number) for number in range(4)], ["ask"])
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        pending = asked(run)
        assert [one.value for one in pending] == [0, 2, 3]
        for wrong in ("bare", None, {"unknown": 1}, {pending[0].id: 1, "unknown": 2}):
            with pytest.raises(ConfigurationError, match=r"give the answers as a dict by id; what is asked: .* \(ask\)"):
                run.resume(wrong)
        with pytest.raises(StateError):
            run.resume({pending[0].id: object()})
        # when some are answered, then those nodes run, and the others are still asked
        run.resume({pending[2].id: "three"})
        assert [one.value for one in asked(run)] == [0, 2]
        run.resume({pending[1].id: "two", pending[0].id: "zero"})
        # and the answers merge in the order of the items
        assert run.result()["log"] == ["zero", "nobody", "two", "three"]
    assert calls == {0: 2, 1: 1, 2: 2, 3: 2}


def test_an_answer_may_come_while_others_still_run(store_url: str, wait: Wait, commits_of: Any) -> None:
    held = threading.Event()

    def asks(state: State) -> State:
        return {"log": [interrupt()]}

    def slow(state: State) -> State:
        wait(held)
        return {"log": ["slow"]}

    graph = Graph(State).add_node(asks).add_node(slow).add_edge(START, "asks").add_edge(START, "slow")
    with Engine(graph, store_url) as engine:
        commits = commits_of(engine)
        run = engine.submit({})
        commits.until_journalled("interrupted", ASKS.hex())
        assert run.status == "running"
        [row] = run.backend.reader.find_runs(run_ids=[run.run_id])
        states = {item.node_id: item.state for item in explain(run.backend.reader, row, None).items}
        assert states == {"asks": "answer", "slow": "owner"}
        run.resume("early")
        commits.until_journalled("done", ASKS.hex())
        held.set()
        assert run.result()["log"] == ["early", "slow"]


def test_questions_cost_no_attempt_and_failures_do(store_url: str) -> None:
    attempts: list[int] = []

    def asks(state: State, ctx: Context) -> State:
        attempts.append(ctx.attempt)
        answer = interrupt("well?")
        if ctx.attempt == 1:
            raise OSError("down")
        return {"log": [answer, interrupt("sure?")]}

    graph = Graph(State).add_node(asks, retry=RetryPolicy(max_attempts=2, initial_seconds=0)).add_edge(START, "asks")
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        asked(run)
        run.resume("well")
        asked(run)
        run.resume("sure")
        assert run.result()["log"] == ["well", "sure"]
    assert attempts == [1, 1, 2, 2]


def test_a_run_that_asks_can_be_cancelled(store_url: str, asking: Asking) -> None:
    with Engine(asking.graph, store_url) as engine:
        run = engine.submit({})
        asked(run)
        run.cancel("nobody answers")
        with pytest.raises(RunCancelledError, match="nobody answers"):
            run.result()
        assert run.interrupts() == []


def test_a_node_that_catches_everything_asks_all_the_same(store_url: str) -> None:
    def asks(state: State) -> State:
        try:
            return {"log": [interrupt("?")]}
        except Exception:  # What is meant: users do it.
            return {"log": ["caught"]}

    async def too(state: State) -> State:
        await asyncio.sleep(0)
        return {"log": [interrupt("too?")]}

    graph = Graph(State).add_node(asks).add_node(too).add_edge(START, "asks").add_edge(START, "too")
    with Engine(graph, store_url) as engine:
        run = engine.submit({})
        one, other = asked(run)
        run.resume({one.id: 1, other.id: 2})
        assert run.result()["log"] == [1, 2]


def test_what_cannot_be_asked(store_url: str) -> None:
    with pytest.raises(ConfigurationError, match="inside of a node"):
        interrupt("outside")
    graph = Graph(State).add_node("asks", lambda state: interrupt(object())).add_edge(START, "asks")
    with Engine(graph, store_url) as engine, pytest.raises(StateError):
        engine.invoke({})
    large = Graph(State).add_node("asks", lambda state: interrupt("x" * 100)).add_edge(START, "asks")
    small = Options(max_payload_bytes=50)
    with Engine(large, store_url, options=small) as engine, pytest.raises(StateError, match="what interrupt"):
        engine.invoke({})


def test_a_failure_beside_a_question_ends_the_run_and_a_retry_asks_again(one_store: str, asking: Asking) -> None:
    works = threading.Event()

    def fragile(state: State) -> State:
        if not works.is_set():
            raise OSError("down")
        return {"log": ["fragile"]}

    asking.graph.add_node("fragile", fragile).add_edge(START, "fragile")
    with Engine(asking.graph, one_store, options=Options(fail_fast=False)) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError):
            run.result()
        works.set()
        run.retry()
        [question] = asked(run)
        run.resume({question.id: "now"})
        assert run.result()["log"][0] == ["now"]


def test_async_twins(store_url: str, asking: Asking) -> None:
    async def main() -> list[Any]:
        with Engine(asking.graph, store_url) as engine:
            run = engine.submit({})
            with pytest.raises(RunInterruptedError):
                await run.aresult()
            [question] = await run.ainterrupts()
            await run.aresume({question.id: "yes"})
            log: list[Any] = (await run.aresult())["log"]
            return log

    assert asyncio.run(main())[0] == ["yes"]


def test_closing_forgets_nothing(sqlite_file: str, asking: Asking) -> None:
    with closing(Engine(asking.graph, sqlite_file)) as engine:
        asked(engine.submit({}, run_id="run"))
    with closing(Engine(asking.graph, sqlite_file)) as engine:
        run = engine.run("run")
        run.resume("later")
        assert run.result()["log"][0] == ["later"]


@pytest.fixture
def sqlite_file(tmp_path: Any) -> str:
    return f"sqlite:///{tmp_path}/runs.db"
