"""Equal graph and input give equal bytes, whatever finishes first: merges, orders, keys, random numbers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

from lockstep import (
    END,
    START,
    Command,
    Context,
    Engine,
    Graph,
    LockstepError,
    Options,
    RetryPolicy,
    Send,
    with_max_concurrent,
)
from lockstep.cli.load import load_graph
from lockstep.core.superstep import advance

AUDIT = Path(__file__).parents[2] / "docs" / "examples" / "audit.py"
RUNS = int(os.environ.get("LOCKSTEP_TEST_RUNS", "100"))
LONGEST_PAUSE_SECONDS = 0.001
SLOTS = [1, 2, 4, 8]
WITHOUT_SERVERS = pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)
"""For what a merge does by itself, in many variations. Of each server, the mixed graph and the audit ask 100 equal hashes."""
ROOT = bytes(32)
NOW = RetryPolicy(max_attempts=3, initial_seconds=0.0)


# The formulas once more, from the text of docs/determinism.md, with nothing of the library.


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def state_hash(state: Mapping[str, object]) -> str:
    fields = [(name.encode(), canonical(state[name])) for name in sorted(state)]
    return sha256(*(u32(len(name)) + name + sha256(value) for name, value in fields)).hex()


def path(parent: bytes, node_id: str, edge_index: int) -> bytes:
    return sha256(parent, node_id.encode(), u32(edge_index))


def idempotency_key(run_id: str, step_id: int, paths: Iterable[bytes], hash_: str) -> str:
    run, ascending = run_id.encode(), sorted(paths)
    return sha256(u32(len(run)), run, u64(step_id), u32(len(ascending)), *ascending, bytes.fromhex(hash_)).hex()


def item_rng(run_seed: int, path: bytes, step_before: int) -> Random:
    return Random(int.from_bytes(sha256(b"rng", str(run_seed).encode(), path, u64(step_before)), "big"))


def run_seed(run_id: str) -> int:
    return int.from_bytes(sha256(b"seed", run_id.encode())[:8], "big")


# Merges


class Gathered(TypedDict, total=False):
    order: Annotated[list[int], operator.add]
    text: Annotated[str, operator.add]
    count: int


class Completions:
    """Notes, run by run, in which order branches came to their end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.of_run: dict[str, list[int]] = {}

    def add(self, run_id: str, branch: int) -> None:
        with self._lock:
            self.of_run.setdefault(run_id, []).append(branch)

    def in_order(self) -> int:
        """How many runs completed in edge order."""
        return sum(order == sorted(order) for order in self.of_run.values())


def fan_out(width: int, kind: str, rng: Random, completions: Completions) -> Graph:
    """START leads to `width` branches, sync, async, or one like this and one like that; all lead to `count`."""

    def branch(number: int) -> Callable[..., Any]:
        def finish(ctx: Context) -> dict[str, Any]:
            completions.add(ctx.run_id, number)
            return {"order": [number], "text": f"{number},"}

        def sync_branch(state: Gathered, ctx: Context) -> dict[str, Any]:
            time.sleep(rng.random() * LONGEST_PAUSE_SECONDS)
            return finish(ctx)

        async def async_branch(state: Gathered, ctx: Context) -> dict[str, Any]:
            await asyncio.sleep(rng.random() * LONGEST_PAUSE_SECONDS)
            return finish(ctx)

        return async_branch if kind == "async" or (kind == "both" and number % 2) else sync_branch

    graph = Graph(Gathered, name=f"fan-out-{width}")
    for number in range(width):
        # Names whose alphabetical order is the reverse of their declaration.
        graph.add_node(f"branch-{width - number:02}", branch(number)).add_edge(START, f"branch-{width - number:02}")
    graph.add_node("count", lambda state: {"count": len(state["order"])})
    for number in range(width):
        graph.add_edge(f"branch-{width - number:02}", "count")
    return graph


def merged_in_edge_order(width: int) -> str:
    """The state_hash of a fan-out that merged as declared."""
    return state_hash({"order": list(range(width)), "text": "".join(f"{n}," for n in range(width)), "count": width})


def final_hashes(engine: Engine, input: Mapping[str, Any], runs: int, at_once: int = 1) -> list[str]:
    """The state_hash of so many runs, of which some are under way at the same time."""
    hashes = []
    for start in range(0, runs, at_once):
        submitted = [engine.submit(input) for _ in range(start, min(start + at_once, runs))]
        for run in submitted:
            run.result()
            hashes.append(run.history()[-1].state_hash)
    return hashes


def assert_merges_in_edge_order(
    store_url: str, width: int, slots: int, kind: str, runs: int, rng: Random, completions: Completions
) -> None:
    with Engine(fan_out(width, kind, rng, completions), store_url, with_max_concurrent(slots)) as engine:
        hashes = final_hashes(engine, {}, runs)
    wrong = runs - hashes.count(merged_in_edge_order(width))
    assert not wrong, f"{wrong} of {runs} runs did not merge in edge order"


@WITHOUT_SERVERS
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("slots", SLOTS)
def test_100_of_100_runs_merge_in_edge_order_whatever_finishes_first(
    store_url: str, slots: int, kind: str, rng: Random
) -> None:
    # given branches that take random times
    completions = Completions()

    # when 100 runs execute, then each ends in the very state that the declaration order gives
    assert_merges_in_edge_order(store_url, 10 if slots > 1 else 4, slots, kind, RUNS, rng, completions)

    # and the test could have failed: with more than one slot, branches did overtake each other
    assert len(completions.of_run) == RUNS
    assert completions.in_order() == RUNS if slots == 1 else completions.in_order() < RUNS


@WITHOUT_SERVERS
@pytest.mark.parametrize("width", range(2, 17))
def test_fan_outs_of_2_to_16_branches_merge_in_edge_order(store_url: str, width: int, rng: Random) -> None:
    completions = Completions()

    assert_merges_in_edge_order(store_url, width, 8, "both", 15, rng, completions)

    # Two or three branches may well end in their order 15 times.
    assert width < 4 or completions.in_order() < 15


def test_branches_that_finish_in_reverse_merge_in_edge_order(store_url: str, wait: Callable[[threading.Event], None]) -> None:
    # given branches of which each waits for the one behind it
    width, completions = 8, Completions()
    ended = [threading.Event() for _ in range(width + 1)]
    ended[width].set()

    def branch(number: int) -> Callable[..., Any]:
        def branch(state: Gathered, ctx: Context) -> dict[str, Any]:
            wait(ended[number + 1])
            completions.add(ctx.run_id, number)
            ended[number].set()
            return {"order": [number]}

        return branch

    graph = Graph(Gathered)
    for number in range(width):
        graph.add_node(f"branch-{number}", branch(number)).add_edge(START, f"branch-{number}")

    # when
    with Engine(graph, store_url, with_max_concurrent(width)) as engine:
        state = engine.invoke({}, run_id="reverse")

    # then
    assert completions.of_run["reverse"] == list(reversed(range(width)))
    assert state["order"] == list(range(width))


def test_a_merge_in_completion_order_is_caught(store_url: str, rng: Random, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a coordinator that folds what a step's items returned in the order in which it arrived
    right: Callable[..., Any] = advance

    def in_completion_order(*arguments: Any) -> Any:
        *others, frontier, finished = arguments
        items = {item.path: item for item in frontier.items}
        arrived = msgspec.structs.replace(frontier, items=tuple(items[path] for path in finished))
        return right(*others, arrived, finished)

    monkeypatch.setattr("lockstep_coordinator.run.advance", in_completion_order)

    # then what the tests above assert does not hold
    with pytest.raises(AssertionError, match="did not merge in edge order"):
        assert_merges_in_edge_order(store_url, 10, 8, "sync", 10, rng, Completions())


@WITHOUT_SERVERS
def test_map_reduce_returns_in_list_order(store_url: str, rng: Random) -> None:
    # given a Send for each number of a list in no order, and a node that takes a random time
    class State(TypedDict, total=False):
        numbers: list[int]
        squares: Annotated[list[int], operator.add]

    completed: list[int] = []

    async def square(number: int) -> dict[str, Any]:
        await asyncio.sleep(rng.random() * LONGEST_PAUSE_SECONDS)
        completed.append(number)
        return {"squares": [number * number]}

    graph = Graph(State).add_node(square)
    graph.add_conditional_edges(START, lambda state: [Send("square", n) for n in state["numbers"]], ["square"])
    numbers = rng.sample(range(-1000, 1000), 12)

    # when
    with Engine(graph, store_url, with_max_concurrent(8)) as engine:
        hashes = final_hashes(engine, {"numbers": numbers}, RUNS)

    # then the squares stand as the numbers do, though they were not computed so
    assert set(hashes) == {state_hash({"numbers": numbers, "squares": [n * n for n in numbers]})}
    assert completed[: len(numbers)] != numbers


# All at once


class Mixed(TypedDict, total=False):
    words: list[str]
    log: Annotated[list[str], operator.add]
    drawn: Annotated[list[float], operator.add]
    facts: Annotated[dict[str, Any], operator.or_]
    turns: int


WORDS = ["über", "naïve", "zèbre", "a"]
FACTS = {"é": 1e16, "small": 1e-7, "zero": -0.0, "large": 2**63 - 1, "nested": {"b": [1, 1.0, True, None], "a": "\n"}}
SEED = 20_240_229
MIXED_TASKS = [
    # step, node, edge_index, parent: START, or (step, rank) of the item that led here
    (1, "plan", 0, START),
    (1, "side", 1, START),
    (2, "left", 0, (1, 0)),
    (2, "word", 1, (1, 0)),
    (2, "word", 2, (1, 0)),
    (2, "word", 3, (1, 0)),
    (2, "word", 4, (1, 0)),
    (2, "right", 0, (1, 1)),
    (3, "later", 0, (2, 0)),
    (3, "collect", 0, (2, 1)),
    (4, "join", 0, (3, 0)),
    (4, "again", 0, (3, 1)),
    (5, "collect", 0, (4, 1)),
    (6, "again", 0, (5, 0)),
    (7, "collect", 0, (6, 0)),
    (8, "report", 0, (4, 0)),
]


def mixed(pause: Callable[[], None]) -> Graph:
    """Static edges, Sends, a barrier over two steps, a loop by Command, a deferred node, and random numbers.

    plan ─┬─> left ──> later ─┐
          ├─> word × 4 ─> collect <──> again      (3 turns)
    side ─┴─> right ──────────┴─> join ──> report (deferred)
    """
    graph = Graph(Mixed, name="mixed")

    @graph.node
    async def plan(state: Mixed) -> dict[str, Any]:
        await asyncio.to_thread(pause)
        return {"log": ["plan"], "facts": {"é": 1e16, "small": 1e-7}}

    @graph.node
    def side(state: Mixed) -> dict[str, Any]:
        pause()
        return {"log": ["side"], "facts": {"small": 1e-7, "zero": -0.0, "large": 2**63 - 1}}

    @graph.node
    def left(state: Mixed) -> list[dict[str, Any]]:
        pause()
        return [{"log": ["left"]}, {"facts": {"nested": FACTS["nested"]}}]

    @graph.node
    def right(state: Mixed) -> dict[str, Any]:
        pause()
        return {"log": ["right"]}

    @graph.node
    async def word(word: str, ctx: Context) -> dict[str, Any]:
        await asyncio.to_thread(pause)
        return {"log": [word], "drawn": [ctx.rng.random()]}

    @graph.node
    def later(state: Mixed) -> dict[str, Any]:
        pause()
        return {"log": ["later"]}

    @graph.node
    def collect(state: Mixed, ctx: Context) -> Command:
        pause()
        turns = state.get("turns", 0) + 1
        delta = {"turns": turns, "log": [f"collect {turns}"], "drawn": [ctx.rng.random()]}
        return Command(update=delta, goto="again" if turns < 3 else END)

    @graph.node
    async def again(state: Mixed) -> dict[str, Any]:
        return {"log": ["again"]}

    @graph.node
    def join(state: Mixed) -> dict[str, Any]:
        pause()
        return {"log": ["join"]}

    @graph.node(defer=True)
    def report(state: Mixed) -> dict[str, Any]:
        return {"log": [f"report on {len(state['log'])}"]}

    graph.add_edge(START, "plan").add_edge(START, "side")
    graph.add_edge("plan", "left").add_edge("side", "right").add_edge("left", "later")
    graph.add_edge(["later", "right"], "join").add_edge("join", "report")
    graph.add_edge("word", "collect").add_edge("again", "collect")
    graph.add_conditional_edges("plan", lambda state: [Send("word", one) for one in state["words"]], ["word"])
    return graph


def mixed_items() -> list[tuple[int, str, bytes, bytes, int]]:
    """Step, node, path, parent's path and edge index of each task, by the formula."""
    paths: dict[Any, bytes] = {START: ROOT}
    items, ranks = [], dict.fromkeys(range(1, 9), 0)
    for step, node_id, edge_index, parent in MIXED_TASKS:
        paths[step, ranks[step]] = path(paths[parent], node_id, edge_index)
        items.append((step, node_id, paths[step, ranks[step]], paths[parent], edge_index))
        ranks[step] += 1
    return items


def mixed_state() -> dict[str, Any]:
    """What the run must come to, written by hand but for the random numbers."""
    draws = [(node_path, step) for step, node_id, node_path, _, _ in mixed_items() if node_id in ("word", "collect")]
    log = ["plan", "side", "left", *WORDS, "right", "later", "collect 1", "join", "again", "collect 2", "again", "collect 3"]
    return {
        "words": WORDS,
        "log": [*log, f"report on {len(log)}"],
        "drawn": [item_rng(SEED, node_path, step - 1).random() for node_path, step in draws],
        "facts": FACTS,
        "turns": 3,
    }


@pytest.mark.parametrize("slots", SLOTS)
def test_100_of_100_runs_of_a_mixed_graph_have_one_state_hash(store_url: str, slots: int, rng: Random) -> None:
    graph = mixed(lambda: time.sleep(rng.random() * LONGEST_PAUSE_SECONDS / 2))

    with Engine(graph, store_url, options=Options(max_concurrent=slots, seed=SEED)) as engine:
        hashes = final_hashes(engine, {"words": WORDS}, RUNS, at_once=10)

    assert set(hashes) == {state_hash(mixed_state())}


def test_every_step_and_task_of_a_run_is_what_the_formulas_say(store_url: str) -> None:
    # given a run
    with Engine(mixed(lambda: None), store_url, options=Options(seed=SEED)) as engine:
        run = engine.submit({"words": WORDS}, run_id="run-1")
        assert canonical(run.result()) == canonical(mixed_state())
        history, states = run.history(), [run.state(step) for step in range(9)]

    # then its tasks have the paths and parents of the formula, and order keys of rank and path
    found = [
        (step.step_id, t.node_id, bytes.fromhex(t.path), bytes.fromhex(t.parent_path), t.edge_index)
        for step in history
        for t in step.tasks
    ]
    assert found == mixed_items()
    for step in history:
        assert [t.order_key for t in step.tasks] == [
            (u32(n) + bytes.fromhex(t.path)[:4]).hex() for n, t in enumerate(step.tasks)
        ]

    # and each record has the hash and key of its items and its state
    assert [step.step_id for step in history] == list(range(9))
    for step, state in zip(history, states, strict=True):
        paths = [bytes.fromhex(task.path) for task in step.tasks]
        assert step.state_hash == state_hash(state)
        assert step.idempotency_key == idempotency_key("run-1", step.step_id, paths, state_hash(state))
    assert len({step.idempotency_key for step in history}) == 9

    # and each state follows from the one before it by the deltas of the step's tasks, in their order
    for step, before, after in zip(history[1:], states, states[1:], strict=False):
        log = before["log"] + [line for task in step.tasks for line in task.delta.get("log", [])]
        drawn = before["drawn"] + [number for task in step.tasks for number in task.delta.get("drawn", [])]
        assert (after["log"], after["drawn"]) == (log, drawn)


def test_runs_of_equal_input_differ_in_their_keys_alone(store_url: str) -> None:
    with Engine(mixed(lambda: None), store_url, options=Options(seed=SEED)) as engine:
        one, other = [engine.submit({"words": WORDS}, run_id=run_id) for run_id in ("one", "other")]
        assert one.result() == other.result()
        pairs = list(zip(one.history(), other.history(), strict=True))

    for a, b in pairs:
        assert a.state_hash == b.state_hash
        assert [(t.path, t.order_key, t.delta, t.targets) for t in a.tasks] == [
            (t.path, t.order_key, t.delta, t.targets) for t in b.tasks
        ]
        assert a.idempotency_key != b.idempotency_key


# The example


def test_100_of_100_audits_have_one_state_hash(store_url: str) -> None:
    graph, chosen = load_graph(f"{AUDIT}:graph"), {"only": ["pluggy", "iniconfig", "click"]}

    with Engine(graph, store_url) as engine:
        assert len(set(final_hashes(engine, chosen, RUNS, at_once=10))) == 1
        assert len(set(final_hashes(engine, {}, 2))) == 1


def test_an_audit_has_one_state_hash_on_every_store_and_with_any_slots(tmp_path: Path) -> None:
    graph, chosen, hashes = load_graph(f"{AUDIT}:graph"), {"only": ["pluggy", "iniconfig", "click"]}, set()

    for url in ("memory://", f"sqlite:///{tmp_path}/runs.db"):
        for slots in SLOTS:
            with Engine(graph, url, with_max_concurrent(slots)) as engine:
                hashes.update(final_hashes(engine, chosen, 1))

    assert len(hashes) == 1


def test_processes_that_hash_strings_differently_compute_the_same(
    command_line: Any, program: Callable[[str], Path], tmp_path: Path
) -> None:
    # given one run in two processes, whose sets of strings have different orders
    histories = []
    for seed in ("0", "1"):
        store = f"sqlite:///{tmp_path}/{seed}.db"
        arguments = [f"{program('ledger_flow.py')}:graph", "--input", '{"parts": 5}', "--run-id", "run-1", "--store", store]
        environment = {"LEDGER": f"{tmp_path}/{seed}.ledger", "PYTHONHASHSEED": seed}
        code, _, err = command_line.run("run", *arguments, "--json", **environment)
        assert code == 0, err
        _, out, _ = command_line.run("show", "run-1", "--history", "--store", store, "--json")
        histories.append(json.loads(out))

    # then both have the same states, hashes, keys and deltas
    for history in histories:
        for step in history["history"]:
            del step["committed_at"]
            for task in step["tasks"]:
                del task["started_at"], task["latency_ms"], task["delivery"]
    assert histories[0] == histories[1]
    assert histories[0]["status"] == "succeeded"


# Random numbers


class Drawn(TypedDict, total=False):
    turns: int
    numbers: Annotated[list[float], operator.add]


def draw(ctx: Context) -> tuple[float, ...]:
    return tuple(ctx.rng.random() for _ in range(3))


def test_the_random_numbers_are_the_published_ones(store_url: str) -> None:
    graph = Graph(Drawn).add_node("plan", lambda state, ctx: {"numbers": [ctx.rng.random()]}).add_edge(START, "plan")

    with Engine(graph, store_url) as engine:
        assert engine.invoke({}, run_id="run-1") == {"numbers": [0.3336526872657414]}
        assert engine.invoke({}, run_id="run-2", options=Options(seed=7)) == {"numbers": [0.051350568639189076]}
        assert engine.invoke({}, run_id="run-3", options=Options(seed=7)) == {"numbers": [0.051350568639189076]}
    with Engine(graph, store_url, options=Options(seed=7)) as engine:
        assert engine.invoke({}, run_id="run-4") == {"numbers": [0.051350568639189076]}


def test_without_a_seed_each_run_draws_its_own_numbers(store_url: str) -> None:
    graph = Graph(Drawn).add_node("plan", lambda state, ctx: {"numbers": [ctx.rng.random()]}).add_edge(START, "plan")
    names = [f"run-{number}" for number in range(10)]

    with Engine(graph, store_url) as engine:
        drawn = [engine.invoke({}, run_id=name)["numbers"] for name in names]

    assert drawn == [[item_rng(run_seed(name), path(ROOT, "plan", 0), 0).random()] for name in names]
    assert len({tuple(numbers) for numbers in drawn}) == len(names)


def test_every_attempt_draws_the_same_numbers(store_url: str) -> None:
    # given a node that draws, and fails twice
    drawn: list[tuple[int, tuple[float, ...]]] = []

    def plan(state: Drawn, ctx: Context) -> dict[str, Any]:
        drawn.append((ctx.attempt, draw(ctx)))
        if ctx.attempt < 3:
            raise OSError("not yet")
        return {"numbers": list(drawn[-1][1])}

    graph = Graph(Drawn).add_node(plan, retry=NOW).add_edge(START, "plan")

    # when
    with Engine(graph, store_url) as engine:
        numbers = engine.invoke({}, run_id="run-1")["numbers"]

    # then
    expected = item_rng(run_seed("run-1"), path(ROOT, "plan", 0), 0)
    assert [attempt for attempt, _ in drawn] == [1, 2, 3]
    assert {numbers for _, numbers in drawn} == {tuple(numbers)} == {tuple(expected.random() for _ in range(3))}


def test_an_item_that_runs_again_after_recover_draws_the_same_numbers(
    one_store: str, wait: Callable[[threading.Event], None], abandon: Callable[[Engine], None]
) -> None:
    # given an engine that ends while the second node is under way
    drawn: list[tuple[float, ...]] = []
    started, held = threading.Event(), threading.Event()

    def first(state: Drawn) -> None:
        return None

    def second(state: Drawn, ctx: Context) -> dict[str, Any]:
        drawn.append(draw(ctx))
        started.set()
        wait(held)
        return {"numbers": list(drawn[-1])}

    graph = Graph(Drawn).add_sequence([first, second]).add_edge(START, "first")
    engine = Engine(graph, one_store)
    engine.submit({}, run_id="run-1")
    wait(started)
    abandon(engine)
    held.set()

    # when another one goes on
    with Engine(graph, one_store) as engine:
        [run] = engine.recover()
        numbers = run.result()["numbers"]

    # then
    expected = item_rng(run_seed("run-1"), path(path(ROOT, "first", 0), "second", 0), 1)
    assert len(drawn) == 2
    assert set(drawn) == {tuple(numbers)} == {tuple(expected.random() for _ in range(3))}


def test_an_item_of_a_failed_run_that_is_retried_draws_the_same_numbers(
    store_url: str, wait: Callable[[threading.Event], None]
) -> None:
    # given a run that failed after its node had drawn
    drawn: list[tuple[float, ...]] = []
    again = threading.Event()

    def plan(state: Drawn, ctx: Context) -> dict[str, Any]:
        drawn.append(draw(ctx))
        if len(drawn) == 1:
            raise OSError("not yet")
        again.set()
        return {}

    with Engine(Graph(Drawn).add_node(plan).add_edge(START, "plan"), store_url) as engine:
        run = engine.submit({})
        with pytest.raises(LockstepError):
            run.result()

        # when
        run.retry()
        wait(again)

    # then
    assert len(drawn) == 2
    assert len(set(drawn)) == 1


def test_each_turn_of_a_loop_and_each_send_draws_other_numbers(store_url: str) -> None:
    def turn(state: Drawn, ctx: Context) -> Command:
        turns = state["turns"] - 1
        return Command({"turns": turns, "numbers": [ctx.rng.random()]}, goto="turn" if turns else END)

    def one(state: object, ctx: Context) -> dict[str, Any]:
        return {"numbers": [ctx.rng.random()]}

    graph = Graph(Drawn).add_node(turn).add_node(one).add_edge(START, "turn")
    graph.add_conditional_edges(START, lambda state: [Send("one", {}) for _ in range(20)], ["one"])

    with Engine(graph, store_url, options=Options(seed=7)) as engine:
        numbers = engine.invoke({"turns": 20})["numbers"]

    assert len(numbers) == len(set(numbers)) == 40
