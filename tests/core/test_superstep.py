"""One step, computed once: whatever order results arrive in, the commit has the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import decode_frontier, first_frontier
from lockstep.core.merge import Field, Schema
from lockstep.core.ordering import END, ROOT_PATH, START, Ordering, idempotency_key_of, path_of
from lockstep.core.policy import ConflictPolicy
from lockstep.core.records import Finished, Route, Write
from lockstep.core.state import State, apply_patches
from lockstep.core.superstep import Program, Step, advance, begin
from lockstep.core.topology import Barrier, Edge, Node, Topology
from lockstep.errors import ConflictError, LockstepError, MaxStepsExceededError, NoProgressError, ReducerError, RouteError

LAST = ConflictPolicy.LAST_WRITER_WINS


def appended(current: list[Any], update: list[Any]) -> list[Any]:
    return current + update


SCHEMA = Schema(
    {
        "log": Field(name="log", reducer=appended, reducer_name="tests.appended", initial=b"[]"),
        "last": Field(name="last"),
        "tries": Field(name="tries", initial=b"3"),
    }
)


def program(edges: Mapping[str, Sequence[str]], ordering: Ordering = "edge") -> Program:
    nodes = {name: Node(name, tuple(Edge(target) for target in targets)) for name, targets in edges.items()}
    return Program(Topology(nodes, ordering=ordering), SCHEMA)


def chain(length: int) -> Program:
    """START -> n1 -> n2 ... -> n<length>."""
    names = [START, *(f"n{number}" for number in range(1, length + 1))]
    return program({**{one: [other] for one, other in itertools.pairwise(names)}, names[-1]: []})


def next_step(
    graph: Program,
    step: Step,
    finished: Mapping[bytes, Finished] | None = None,
    *,
    max_steps: int = 100,
    policy: ConflictPolicy = ConflictPolicy.FAIL,
) -> Step:
    """The step after this one; without `finished`, every item returned nothing."""
    results = {item.path: Finished() for item in step.frontier.items} if finished is None else finished
    return advance(graph, policy, max_steps, "run-1", step.step_id + 1, step.state, step.frontier, results)


def committed(step: Step) -> tuple[bytes, bytes, bytes, bytes]:
    """All that a commit stores of a step."""
    return step.state_hash, step.patch, step.encoded_frontier, step.idempotency_key


# --- step 0


def test_step_0_is_the_defaults_and_then_the_input() -> None:
    # given a schema with a reduced field and a default, and an input that writes two fields
    graph = chain(1)
    step = begin(graph, ConflictPolicy.FAIL, "run-1", [Write("log", ["in"]), Write("last", "x")])
    # then S(0) is the defaults with the input folded in, the patch makes it from nothing, and the key covers no items
    assert step.step_id == 0 and not step.done
    assert step.state.to_bytes() == b'{"last":"x","log":["in"],"tries":3}'
    assert apply_patches(b"{}", [step.patch]).to_bytes() == step.state.to_bytes()
    assert step.state_hash == step.state.hash()
    assert step.idempotency_key == idempotency_key_of("run-1", 0, [], step.state_hash)
    # and F(1) is the children of START
    assert step.frontier == first_frontier(graph.topology)
    assert [item.path for item in step.frontier.items] == [path_of(ROOT_PATH, "n1", 0)]


def test_a_graph_without_anything_to_run_is_done_at_step_0() -> None:
    assert begin(program({START: [END]}), ConflictPolicy.FAIL, "run-1", []).done


# --- a step


def test_a_step_commits_the_fold_the_patch_the_frontier_and_the_key() -> None:
    # given a fan-out of two, declared against the alphabet
    graph = program({START: ["b", "a"], "a": [], "b": ["c"], "c": []})
    zero = begin(graph, ConflictPolicy.FAIL, "run-1", [])
    b, a = (item.path for item in zero.frontier.items)
    # when both have finished, a first
    one = next_step(graph, zero, {a: Finished((Write("log", ["a"]), Write("last", 1))), b: Finished((Write("log", ["b"]),))})
    # then the deltas are folded in order_key order, and the commit is of this step, these items and this state
    assert one.state.to_bytes() == b'{"last":1,"log":["b","a"],"tries":3}'
    assert apply_patches(zero.state.to_bytes(), [one.patch]).to_bytes() == one.state.to_bytes()
    assert one.idempotency_key == idempotency_key_of("run-1", 1, [a, b], one.state.hash())
    assert [(item.node_id, item.scheduled_step) for item in one.frontier.items] == [("c", 1)]
    # and the state before is what it was
    assert zero.state.to_bytes() == b'{"log":[],"tries":3}'


def test_the_run_id_and_the_step_are_part_of_the_key() -> None:
    graph = program({START: ["a"], "a": ["a"]})
    zero = begin(graph, ConflictPolicy.FAIL, "run-1", [])
    one = next_step(graph, zero)
    two = next_step(graph, one)
    # given steps that change nothing, then each has a key of its own
    assert len({zero.idempotency_key, one.idempotency_key, two.idempotency_key}) == 3
    assert begin(graph, ConflictPolicy.FAIL, "run-2", []).idempotency_key != zero.idempotency_key


@st.composite
def graphs(draw: st.DrawFn) -> Program:
    """A small graph: up to four nodes with random edges, some of them deferred, and perhaps one barrier."""
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    targets = st.lists(st.sampled_from([*names, END]), unique=True, max_size=3)
    edges = {name: [Edge(target) for target in draw(targets)] for name in names}
    edges[START] = [Edge(target) for target in draw(st.lists(st.sampled_from(names), unique=True, min_size=1))]
    barriers: tuple[Barrier, ...] = ()
    if len(names) > 2 and draw(st.booleans()):
        barriers = (Barrier(("a", "b"), "c"),)
        for name in ("a", "b"):
            edges[name].insert(draw(st.integers(0, len(edges[name]))), Edge("c", barrier=0))
    deferred = draw(st.sets(st.sampled_from(names), max_size=1))
    nodes = {name: Node(name, tuple(edges[name]), defer=name in deferred) for name in [START, *names]}
    return Program(Topology(nodes, barriers, draw(st.sampled_from(["edge", "hash"]))), SCHEMA)


def outcomes(names: Sequence[str]) -> st.SearchStrategy[Finished]:
    """What an item may come to: appends, a plain write, and routes by name or Send."""
    values = st.integers(0, 9) | st.text("ab", max_size=2)
    writes = st.lists(
        st.builds(lambda value: Write("log", [value]), values) | st.builds(lambda value: Write("last", value), values),
        max_size=3,
    )
    payloads = st.none() | values.map(canonical_bytes)
    routes = st.lists(st.builds(Route, st.sampled_from([*names, END]), payloads), max_size=3)
    return st.builds(lambda some, more: Finished(tuple(some), tuple(more)), writes, routes)


@given(graphs(), st.data())
@settings(max_examples=60)
def test_the_order_of_arrival_plays_no_part_in_the_commit(graph: Program, data: st.DataObject) -> None:
    # given any small graph, any outcomes of its items, and several steps
    names = sorted(graph.topology.nodes.keys() - {START})
    step = begin(graph, LAST, "run-1", [])
    for _ in range(3):
        if step.done:
            return
        results = {item.path: data.draw(outcomes(names)) for item in step.frontier.items}
        arrivals = data.draw(st.permutations(list(results.items())))

        def attempt(arrived: Mapping[bytes, Finished], before: Step = step) -> Step | str:
            try:
                return next_step(graph, before, arrived, policy=LAST)
            except LockstepError as error:
                return f"{type(error).__name__}: {error}"

        # when the same results arrive in another order, then what is committed is the same to the byte, or fails alike
        here, there = attempt(results), attempt(dict(arrivals))
        if isinstance(here, str) or isinstance(there, str):
            assert here == there
            return
        assert committed(here) == committed(there)
        # and the deltas are folded in ascending order_key
        ordered = sorted(step.frontier.items, key=lambda item: (item.order_key, item.path))
        written = [write for item in ordered for write in results[item.path].writes]
        log = [value for write in written if write.field == "log" for value in write.value]
        assert here.state.values["log"] == step.state.values["log"] + log
        if last := [write.value for write in written if write.field == "last"]:
            assert here.state.values["last"] == last[-1]
        # and a coordinator that takes over from what is stored goes on with the same frontier
        assert decode_frontier(here.encoded_frontier, here.step_id) == here.frontier
        # and every item has an order key and a path of its own
        assert len({item.path for item in here.frontier.items}) == len(here.frontier.items)
        keys = [(item.order_key, item.path) for item in here.frontier.items]
        assert keys == sorted(keys)
        step = here


@pytest.mark.parametrize("ordering", ["edge", "hash"])
def test_every_permutation_of_a_fan_out_gives_one_commit(ordering: Ordering) -> None:
    # given a fan-out of five that append to one field and all set another
    graph = program({START: ["s"], "s": [], "w": ["j"], "j": []}, ordering)
    zero = begin(graph, LAST, "run-1", [])
    fan = tuple(Route("w", canonical_bytes(number)) for number in range(5))
    one = next_step(graph, zero, {zero.frontier.items[0].path: Finished(routes=fan)})
    results = {
        item.path: Finished((Write("log", [int(item.payload or b"")]), Write("last", int(item.payload or b""))))
        for item in one.frontier.items
    }
    # when the results arrive in all 120 orders
    steps = [next_step(graph, one, dict(order), policy=LAST) for order in itertools.permutations(results.items())]
    # then there is one commit; by edge the log is in list order, by hash in the order of the paths
    assert len({committed(step) for step in steps}) == 1
    by_path = [int(item.payload or b"") for item in sorted(one.frontier.items, key=lambda item: item.path)]
    expected = list(range(5)) if ordering == "edge" else by_path
    assert by_path != list(range(5))
    assert steps[0].state.values["log"] == expected and steps[0].state.values["last"] == expected[-1]


def test_routes_of_the_lowest_order_key_come_first_whoever_finished_first() -> None:
    # given a and b, of which b arrives first
    graph = program({START: ["a", "b"], "a": [], "b": [], "w": []})
    zero = begin(graph, LAST, "run-1", [])
    a, b = (item.path for item in zero.frontier.items)
    results = {b: Finished(routes=(Route("w", b'"b"'),)), a: Finished(routes=(Route("w", b'"a"'),))}
    # then a's Send is ranked first
    assert [item.payload for item in next_step(graph, zero, results).frontier.items] == [b'"a"', b'"b"']


# --- the bound on steps


def test_the_bound_on_steps_is_exact() -> None:
    # given a chain of five nodes
    graph = chain(5)
    step = begin(graph, ConflictPolicy.FAIL, "run-1", [])
    # when five steps are allowed, then it ends in the fifth
    for _ in range(5):
        step = next_step(graph, step, max_steps=5)
    assert step.step_id == 5 and step.done
    # and when four are allowed, then the fourth fails, because the fifth would have to follow
    step = begin(graph, ConflictPolicy.FAIL, "run-1", [])
    for _ in range(3):
        step = next_step(graph, step, max_steps=4)
    with pytest.raises(MaxStepsExceededError) as caught:
        next_step(graph, step, max_steps=4)
    assert (caught.value.step_id, caught.value.max_steps) == (4, 4)
    # naming what would have run next, and the option
    assert "n5 would run next" in str(caught.value) and "max_steps" in str(caught.value)


# --- failures


def failing(a: Finished, *, b: Finished | None = None) -> type[LockstepError]:
    """The class of the error with which a step of a and b fails; its inputs are checked to be unchanged."""
    graph = program({START: ["a", "b"], "a": [], "b": []})
    zero = begin(graph, ConflictPolicy.FAIL, "run-1", [])
    before = zero.state.to_bytes(), zero.frontier
    results = dict(zip([item.path for item in zero.frontier.items], [a, b or Finished()], strict=True))
    with pytest.raises(LockstepError) as caught:
        next_step(graph, zero, results)
    assert (zero.state.to_bytes(), zero.frontier) == before and zero.state == State.from_bytes(before[0])
    return type(caught.value)


def test_a_step_that_cannot_be_computed_raises_and_changes_nothing() -> None:
    # given each way in which a step fails, then it fails with its own error, and the state and frontier stay
    assert failing(Finished((Write("last", 1),)), b=Finished((Write("last", 2),))) is ConflictError
    assert failing(Finished((Write("log", 1),))) is ReducerError
    assert failing(Finished(routes=(Route("nowhere"),))) is RouteError


def test_no_progress_is_found_in_the_step_that_leaves_nothing_to_run() -> None:
    # given [a, b] -> c of which only a runs
    nodes = {
        START: Node(START, (Edge("a"),)),
        "a": Node("a", (Edge("c", barrier=0),)),
        "b": Node("b", (Edge("c", barrier=0),)),
        "c": Node("c"),
    }
    graph = Program(Topology(nodes, (Barrier(("a", "b"), "c"),)), SCHEMA)
    with pytest.raises(NoProgressError) as caught:
        next_step(graph, begin(graph, ConflictPolicy.FAIL, "run-1", []))
    assert caught.value.step_id == 1 and caught.value.waiting == ["c"]
