"""Coordinators that all hold a run for theirs race for its steps: each step is stored once, and losers adopt the winner."""

from __future__ import annotations

import operator
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Annotated, Any, TypedDict, cast

import pytest
import sqlalchemy as sa

from lockstep import END, START, Context, Engine, Graph, Send
from lockstep.fsck import check_store
from lockstep.records import AlreadyCommitted, CommitOutcome, Committed, NewRun, Superseded, Transition
from lockstep.store import open_store
from lockstep.store.sql import SqlStore

EXECUTIONS = 1_000
COORDINATORS = 3
INPUTS = 7
GROUP = 3
"""Runs in one transaction. Of a large group, who is late has to find each culprit, and the winner is through meanwhile."""
AT_ONCE = 100
"""Runs that are raced for at a time: of a thousand, the first winner would be through with all before others come to theirs."""
OWNER = "owner"
PATIENCE_SECONDS = 100.0
"""After this long, the runs have not ended. What passes never waits for it."""


class State(TypedDict, total=False):
    number: int
    turn: int
    drawn: Annotated[list[str], operator.add]


def turn(state: State, ctx: Context) -> dict[str, Any]:
    ctx.emit("turned", state["number"])
    return {"turn": state.get("turn", 0) + 1}


def work(number: int, ctx: Context) -> dict[str, Any]:
    ctx.emit("worked", number)
    return {"drawn": [f"{number} {ctx.path}"]}


def route(state: State) -> list[Send] | str:
    return [Send("work", number) for number in range(2)] if state["turn"] < 2 else END


graph = Graph(State, name="raced").add_node(turn).add_node(work).add_edge(START, "turn").add_edge("work", "turn")
graph.add_conditional_edges("turn", route, ["work", END])
STEPS = 1 + 3
ITEMS = 2 + 2


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple[bytes | None, list[str]]]:
    """The hash of the end, and the keys of all steps but for the run's name, for each input."""
    with Engine(graph, "memory://") as engine:
        runs = [engine.submit({"number": number}) for number in range(INPUTS)]
        return [(run.result() and run.row().state_hash, [step.state_hash for step in run.history()]) for run in runs]


class Racers:
    """Engines on one store, whose coordinators all hold the runs of one partition for their own."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.outcomes: list[Counter[type]] = []
        self._coordinators = []
        for _ in range(COORDINATORS):
            parts = stack.enter_context(Engine(graph, url))._running()
            parts.coordinator._owned = {OWNER: 1}
            self.outcomes.append(Counter())
            parts.store.commit = self._counting(parts.store.commit, self.outcomes[-1])  # type: ignore[method-assign]
            self._coordinators.append(parts.coordinator)

    @staticmethod
    def _counting(commit: Any, counted: Counter[type]) -> Any:
        def counting(lease_id: str, transitions: Sequence[Transition]) -> list[CommitOutcome]:
            outcomes: list[CommitOutcome] = []
            for first in range(0, len(transitions), GROUP):
                outcomes += commit(lease_id, transitions[first : first + GROUP])
                time.sleep(0.001)  # SQLite does not see to it that each has its turn.
            counted.update(map(type, outcomes))
            return outcomes

        return counting

    def race(self, rows: Sequence[Any]) -> None:
        for number, coordinator in enumerate(self._coordinators):
            first = number * len(rows) // COORDINATORS  # Each begins elsewhere, and meets the others on their ground.
            coordinator.take([*rows[first:], *rows[:first]])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("store_url", ["sqlite", "postgres", "mysql"], indirect=True)
def test_a_thousand_executions_that_coordinators_race_for_commit_each_step_once(
    store_url: str, stack: ExitStack, undisturbed: list[tuple[bytes | None, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep_coordinator.loop.SWEEP_SECONDS", 0.04)  # Losers race again before the winner is through.
    # given a thousand runs, and coordinators that all go on with each of them
    store = cast("SqlStore", stack.enter_context(closing(open_store(store_url))))
    racers, compiled = Racers(store_url, stack), graph.compile()
    names = [f"run-{number:04}" for number in range(EXECUTIONS)]
    new = [
        NewRun(
            run_id=name,
            graph=compiled.name,
            graph_hash=compiled.hash,
            input=b'{"number":%d}' % (number % INPUTS),
            options=b"{}",
            partition_id=OWNER,
            shard=0,
        )
        for number, name in enumerate(names)
    ]
    deadline = time.monotonic() + PATIENCE_SECONDS
    for first in range(0, EXECUTIONS, AT_ONCE):
        racers.race([submitted.row for submitted in store.submit(new[first : first + AT_ONCE])])
        while store.unfinished([OWNER]):
            assert time.monotonic() < deadline, f"the runs do not end: {racers.outcomes}"
            time.sleep(0.005)

    # then all of them have won and lost
    for counted in racers.outcomes:
        assert counted[Committed] and counted[Superseded] + counted[AlreadyCommitted], racers.outcomes
    # and by the database's own count nothing is there twice, and nothing is missing
    with store._access.reading() as connection:
        count = lambda query: connection.execute(sa.text(query)).scalar_one()  # noqa: E731
        steps = EXECUTIONS * STEPS
        assert count("SELECT count(*) FROM runs WHERE status = 'succeeded'") == EXECUTIONS
        assert count("SELECT count(*) FROM steps") == steps
        assert count("SELECT count(*) FROM (SELECT DISTINCT run_id, step_id FROM steps) AS s") == steps
        assert count("SELECT count(DISTINCT idempotency_key) FROM steps") == steps
        assert count("SELECT count(*) FROM journal WHERE kind = 'done'") == EXECUTIONS * ITEMS
        assert count("SELECT count(*) FROM outbox") == EXECUTIONS * ITEMS
        assert count("SELECT sum(version) FROM runs") == steps
    assert list(check_store(store)) == []
    # and each run is the undisturbed one, step by step
    for number, row in enumerate(store.find_runs(limit=EXECUTIONS)):
        state_hash, step_hashes = undisturbed[number % INPUTS]
        assert row.state_hash == state_hash
        assert [step.state_hash.hex() for step in store.steps(row.run_id, 0, STEPS)] == step_hashes
        places = [(event.sequence, event.position) for event in store.events(row.run_id)]
        assert places == sorted(set(places))
