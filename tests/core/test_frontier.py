"""From the routes of a step to the next frontier: indexes, coalescing, Sends, barriers, deferral, and the two dead ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core.canonical import canonical_bytes
from lockstep.core.frontier import decode_frontier, encode_frontier, first_frontier, in_order, next_frontier
from lockstep.core.ordering import END, ROOT_PATH, START, Ordering, order_key_of, path_of
from lockstep.core.records import Finished, Frontier, Route, Waiting, WorkItem
from lockstep.core.topology import Barrier, Edge, Node, Topology
from lockstep.errors import NoProgressError, RouteError


def topology(
    edges: Mapping[str, Sequence[str | int]],
    *,
    barriers: Sequence[tuple[Sequence[str], str]] = (),
    defer: Sequence[str] = (),
    start_routers: Sequence[str] = (),
    ordering: Ordering = "edge",
) -> Topology:
    """A topology written down as it is read: per node its targets in declaration order, a number standing for a barrier."""
    return Topology(
        {
            name: Node(
                name,
                tuple(Edge(barriers[to][1], barrier=to) if isinstance(to, int) else Edge(to) for to in targets),
                tuple(start_routers) if name == START else (),
                name in defer,
            )
            for name, targets in edges.items()
        },
        tuple(Barrier(tuple(members), target) for members, target in barriers),
        ordering,
    )


def send(node_id: str, payload: Any) -> Route:
    return Route(node_id, canonical_bytes(payload))


def step(graph: Topology, frontier: Frontier, step_id: int, **routes: Sequence[str | Route]) -> Frontier:
    """The frontier after all items of this one have finished; `routes` says per node where its items go besides their edges."""
    finished = {
        item.path: Finished(
            routes=tuple(to if isinstance(to, Route) else Route(to) for to in routes.get(item.node_id.strip("_"), ()))
        )
        for item in frontier.items
    }
    return next_frontier(graph, frontier, step_id, finished)


def names(frontier: Frontier) -> list[str]:
    return [item.node_id for item in frontier.items]


def only(frontier: Frontier, node_id: str) -> WorkItem:
    (item,) = (item for item in frontier.items if item.node_id == node_id)
    return item


# --- where a run begins, and what an item is


def test_the_children_of_start_have_the_zero_parent_and_their_declaration_index() -> None:
    # given START -> a, END, b
    frontier = first_frontier(topology({START: ["a", END, "b"], "a": [], "b": []}))
    # then there are two items, ranked without a gap, though END took an index
    assert frontier.items == tuple(
        WorkItem(name, path_of(ROOT_PATH, name, index), ROOT_PATH, index, order_key_of("edge", rank, path), 0)
        for rank, (name, index) in enumerate([("a", 0), ("b", 2)])
        for path in [path_of(ROOT_PATH, name, index)]
    )


def test_a_start_that_leads_only_to_the_end_leaves_nothing_to_run() -> None:
    assert first_frontier(topology({START: [END]})) == Frontier()


def test_start_routers_run_first_as_a_hidden_item_whose_children_are_children_of_the_root() -> None:
    # given START with one edge and a router
    graph = topology({START: ["a"], "a": [], "b": []}, start_routers=["route"])
    # when the run begins, then the hidden item is alone
    first = first_frontier(graph)
    assert first.items == (
        WorkItem(START, path := path_of(ROOT_PATH, START, 0), ROOT_PATH, 0, order_key_of("edge", 0, path), 0),
    )
    # and when it has routed to b, then a and b have the zero path as their parent, edges before routes
    following = step(graph, first, 1, start=["b"])
    assert [(item.node_id, item.parent_path, item.edge_index, item.scheduled_step) for item in following.items] == [
        ("a", ROOT_PATH, 0, 1),
        ("b", ROOT_PATH, 1, 1),
    ]


def test_a_start_without_routers_has_no_hidden_item() -> None:
    assert names(first_frontier(topology({START: ["a"], "a": []}))) == ["a"]


def test_an_item_records_its_parent_its_index_and_the_step_that_scheduled_it() -> None:
    # given a -> b
    graph = topology({START: ["a"], "a": ["b"], "b": []})
    first = first_frontier(graph)
    # when a finishes in step 1
    item = only(step(graph, first, 1), "b")
    # then b derives from it
    parent = first.items[0].path
    assert (item.parent_path, item.edge_index, item.scheduled_step, item.payload) == (parent, 0, 1, None)
    assert item.path == path_of(parent, "b", 0)


# --- edge indexes


def test_every_declared_and_returned_target_takes_one_index() -> None:
    # given a node with an edge to END, a membership in a barrier that will not fire, and a plain edge
    graph = topology({START: ["a"], "a": [END, 0, "b"], "b": [0], "c": [], "d": []}, barriers=[(["a", "b"], "c")])
    # when it goes to END (Command.goto), then d, then a Send (routers)
    following = step(graph, first_frontier(graph), 1, a=[END, "d", send("d", 1)])
    # then END and the barrier counted though they made no item: 0 END, 1 barrier, 2 b, 3 END, 4 d, 5 Send
    assert [(item.node_id, item.edge_index) for item in following.items] == [("b", 2), ("d", 4), ("d", 5)]
    # and the ranks have no gaps
    assert [item.order_key[:4] for item in following.items] == [rank.to_bytes(4, "big") for rank in range(3)]


def test_a_coalesced_target_still_takes_its_index() -> None:
    # given a -> b
    graph = topology({START: ["a"], "a": ["b"], "b": [], "c": []})
    # when a also names b, and then c
    following = step(graph, first_frontier(graph), 1, a=["b", "b", "c"])
    # then b is one item, and c has the index it would have anyway
    assert [(item.node_id, item.edge_index) for item in following.items] == [("b", 0), ("c", 3)]


# --- coalescing


def test_edge_goto_and_router_names_for_one_node_become_one_item() -> None:
    # given a -> x and b -> y, x
    graph = topology({START: ["a", "b"], "a": ["x"], "b": ["y", "x"], "x": [], "y": []})
    first = first_frontier(graph)
    # when both also name x and y by routes
    following = step(graph, first, 1, a=["x", "y"], b=["x", "y"])
    # then each is one item, and the first to ask for it gave it its position, parent and index
    a = only(first, "a").path
    assert [(item.node_id, item.parent_path, item.edge_index) for item in following.items] == [("x", a, 0), ("y", a, 2)]


def test_the_first_in_order_key_order_gives_the_position_not_the_first_declared() -> None:
    # given START -> b, a (in this order), both leading to x
    graph = topology({START: ["b", "a"], "a": ["x"], "b": ["x"], "x": []})
    first = first_frontier(graph)
    # then x belongs to b, whose order key is lower
    assert only(step(graph, first, 1), "x").parent_path == only(first, "b").path


def test_sends_are_never_coalesced_not_even_equal_ones() -> None:
    # given a node that sends the same payload twice, and another payload once
    graph = topology({START: ["a"], "a": [], "w": []})
    following = step(graph, first_frontier(graph), 1, a=[send("w", 1), send("w", 1), send("w", 2)])
    # then there are three items with paths of their own, in list order
    assert [item.payload for item in following.items] == [b"1", b"1", b"2"]
    assert len({item.path for item in following.items}) == 3


def test_a_node_may_be_due_on_the_state_and_on_several_payloads_in_one_step() -> None:
    # given a -> w, b -> w, and Sends to w from both
    graph = topology({START: ["a", "b"], "a": ["w"], "b": ["w"], "w": []})
    following = step(graph, first_frontier(graph), 1, a=[send("w", "a")], b=[send("w", "b")])
    # then the plain triggers are one item, at the first one's place, and the Sends are two more
    assert [item.payload for item in following.items] == [None, b'"a"', b'"b"']


def test_a_send_of_null_is_still_a_send() -> None:
    # given a Send whose payload is JSON null, and a plain route to the same node
    graph = topology({START: ["a"], "a": [], "w": []})
    following = step(graph, first_frontier(graph), 1, a=[send("w", None), "w"])
    # then the two are told apart
    assert [item.payload for item in following.items] == [b"null", None]


def test_map_reduce_results_keep_list_order_though_their_paths_do_not() -> None:
    # given a fan-out of 300
    graph = topology({START: ["a"], "a": [], "w": []})
    following = step(graph, first_frontier(graph), 1, a=[send("w", number) for number in range(300)])
    # then ascending order_key is list order, across the border of one byte; ascending path is not
    assert [int(item.payload or b"") for item in in_order(following.items)] == list(range(300))
    assert sorted(following.items, key=lambda item: item.path) != list(following.items)


# --- barriers

JOIN = topology(
    {START: ["a", "x"], "x": ["b"], "a": [0], "b": [0], "c": []},
    barriers=[(["a", "b"], "c")],
)


def test_a_barrier_waits_for_all_members_across_steps_and_fires_once() -> None:
    # given a barrier [a, b] -> c, with a done in step 1 and b in step 2
    one = first_frontier(JOIN)
    two = step(JOIN, one, 1)
    # then after step 1 it is half filled and c does not run
    assert names(two) == ["b"] and two.arrived == {0: frozenset({"a"})}
    three = step(JOIN, two, 2)
    # and after step 2 it fires, is empty again, and its item belongs to b, which completed it
    assert names(three) == ["c"] and three.arrived == {}
    assert (three.items[0].parent_path, three.items[0].edge_index) == (two.items[0].path, 0)
    # and does not fire again by itself
    assert step(JOIN, three, 3) == Frontier()


def test_members_that_finish_together_give_the_item_to_the_lowest_order_key() -> None:
    # given START -> d, b, and a barrier declared [b, d] -> c, which d reaches by its second edge
    graph = topology({START: ["d", "b"], "b": [0], "d": [END, 0], "c": []}, barriers=[(["b", "d"], "c")])
    one = first_frontier(graph)
    # when both finish in step 1, then the item belongs to d, the lower order key, not to the first member declared
    item = only(step(graph, one, 1), "c")
    assert (item.parent_path, item.edge_index) == (only(one, "d").path, 1)


def test_a_member_of_an_earlier_step_does_not_own_the_item_whatever_its_key() -> None:
    # given a barrier of three: a is done in step 1 with rank 0, d and b complete it in step 2, d first
    graph = topology(
        {START: ["a", "x"], "x": ["d", "b"], "a": [0], "b": [0], "d": [0], "c": []}, barriers=[(["a", "b", "d"], "c")]
    )
    two = step(graph, first_frontier(graph), 1)
    assert names(two) == ["d", "b"]
    # then the item belongs to d: the lowest of those that finished in the completing step
    assert only(step(graph, two, 2), "c").parent_path == only(two, "d").path


def test_a_barrier_re_arms_in_a_loop() -> None:
    # given START -> a, b; [a, b] -> c; c goes back to a and b
    graph = topology({START: ["a", "b"], "a": [0], "b": [0], "c": []}, barriers=[(["a", "b"], "c")])
    frontier = first_frontier(graph)
    owners = []
    # when the loop turns three times
    for turn in range(3):
        frontier = step(graph, frontier, 2 * turn + 1)
        assert names(frontier) == ["c"] and frontier.arrived == {}
        owners.append(frontier.items[0].path)
        frontier = step(graph, frontier, 2 * turn + 2, c=["a", "b"])
        assert names(frontier) == ["a", "b"]
    # then c has run once in each turn, as another item each time
    assert len(set(owners)) == 3
    # and a turn in which only a comes back does not fire: the barrier needs both again
    frontier = step(graph, step(graph, frontier, 7), 8, c=["a"])
    with pytest.raises(NoProgressError):
        step(graph, frontier, 9)


def test_an_ancestor_and_its_descendant_can_be_members_of_one_barrier() -> None:
    # given a -> b and [a, b] -> c
    graph = topology({START: ["a"], "a": ["b", 0], "b": [0], "c": []}, barriers=[(["a", "b"], "c")])
    two = step(graph, first_frontier(graph), 1)
    assert names(two) == ["b"]
    # when b has finished as well, then c runs once, as b's child
    three = step(graph, two, 2)
    assert names(three) == ["c"] and three.items[0].parent_path == two.items[0].path


def test_a_member_that_finishes_many_times_counts_once() -> None:
    # given x sends three items to a, a member of [a, b] -> c
    graph = topology({START: ["x"], "x": [], "a": [0], "b": [0], "c": []}, barriers=[(["a", "b"], "c")])
    two = step(graph, first_frontier(graph), 1, x=[*(send("a", number) for number in range(3)), "b"])
    assert names(two) == ["a", "a", "a", "b"]
    # when all four finish, then c is due once, owned by the first of them
    three = step(graph, two, 2)
    assert names(three) == ["c"] and three.items[0].parent_path == two.items[0].path


def test_a_barrier_and_a_plain_trigger_for_one_node_become_one_item() -> None:
    # given [a, b] -> c and also a -> c
    graph = topology({START: ["a", "b"], "a": ["c", 0], "b": [0], "c": []}, barriers=[(["a", "b"], "c")])
    # then c is due once
    assert names(step(graph, first_frontier(graph), 1)) == ["c"]


def test_barriers_fill_independently_of_each_other() -> None:
    # given [a, b] -> c and [a, x] -> d
    graph = topology(
        {START: ["a", "x"], "a": [0, 1], "x": [1, "b"], "b": [0], "c": [], "d": []},
        barriers=[(["a", "b"], "c"), (["a", "x"], "d")],
    )
    # when a and x finish, then d fires, and the other waits with a in it
    two = step(graph, first_frontier(graph), 1)
    assert names(two) == ["d", "b"] and two.arrived == {0: frozenset({"a"})}
    assert names(step(graph, two, 2)) == ["c"]


def test_a_barrier_to_the_end_makes_no_item() -> None:
    graph = topology({START: ["a", "b"], "a": [0], "b": [0]}, barriers=[(["a", "b"], END)])
    assert step(graph, first_frontier(graph), 1) == Frontier()


# --- deferral


def test_a_deferred_node_waits_until_nothing_else_is_left() -> None:
    # given a -> d (deferred) and a long branch b -> c -> e
    graph = topology({START: ["a", "b"], "a": ["d"], "b": ["c"], "c": ["e"], "d": [], "e": []}, defer=["d"])
    one = first_frontier(graph)
    two = step(graph, one, 1)
    assert names(two) == ["c"] and [waiting.node_id for waiting in two.deferred] == ["d"]
    three = step(graph, two, 2)
    assert names(three) == ["e"] and len(three.deferred) == 1
    # when the branch has come to its end, then d runs, still a child of a, scheduled by the step that released it
    four = step(graph, three, 3)
    item = only(four, "d")
    assert four.deferred == () and (item.parent_path, item.scheduled_step) == (one.items[0].path, 3)
    assert step(graph, four, 4) == Frontier()


def test_deferred_items_are_ordered_by_their_first_trigger_and_coalesced_while_they_wait() -> None:
    # given three deferred nodes, asked for as: step 1 p then q, step 2 r, and q and p again
    graph = topology(
        {START: ["a", "b"], "a": ["p"], "b": ["q", "c"], "c": ["r", "q", "p"], "p": [], "q": [], "r": []},
        defer=["r", "q", "p"],
    )
    one = first_frontier(graph)
    two = step(graph, one, 1)
    three = step(graph, two, 2)
    # then they are released in the order of first trigger, each once, as the child of who asked first
    assert [(item.node_id, item.parent_path) for item in three.items] == [
        ("p", only(one, "a").path),
        ("q", only(one, "b").path),
        ("r", only(two, "c").path),
    ]
    assert [item.order_key[:4] for item in three.items] == [rank.to_bytes(4, "big") for rank in range(3)]


def test_sends_to_a_deferred_node_wait_as_items_of_their_own() -> None:
    # given a sends d (deferred) two payloads and names it as well, and goes on to b
    graph = topology({START: ["a"], "a": ["b"], "b": [], "d": []}, defer=["d"])
    two = step(graph, first_frontier(graph), 1, a=[send("d", 1), "d", send("d", 1)])
    assert names(two) == ["b"]
    # then all three come, with their payloads, when b is done
    assert [item.payload for item in step(graph, two, 2).items] == [b"1", None, b"1"]


def test_a_waiting_send_does_not_stand_for_a_later_plain_trigger() -> None:
    # given a Send to d (deferred) in step 1, and a plain route to d in step 2
    graph = topology({START: ["a"], "a": ["b"], "b": ["d"], "d": []}, defer=["d"])
    three = step(graph, step(graph, first_frontier(graph), 1, a=[send("d", 1)]), 2)
    # then d runs on the payload and on the state
    assert [item.payload for item in three.items] == [b"1", None]


def test_a_released_node_may_be_deferred_again() -> None:
    # given d (deferred) that goes back to a, which asks for d
    graph = topology({START: ["a"], "a": ["d"], "d": []}, defer=["d"])
    frontier = first_frontier(graph)
    for turn in range(3):
        frontier = step(graph, frontier, 2 * turn + 1)
        assert names(frontier) == ["d"]
        frontier = step(graph, frontier, 2 * turn + 2, d=["a", "d"])
        # then while a is due, d waits
        assert names(frontier) == ["a"] and len(frontier.deferred) == 1


def test_deferred_children_of_start_run_at_once_where_nothing_else_is_due() -> None:
    assert names(first_frontier(topology({START: ["d"], "d": []}, defer=["d"]))) == ["d"]
    graph = topology({START: ["d", "a"], "d": [], "a": []}, defer=["d"])
    assert names(first_frontier(graph)) == ["a"] and names(step(graph, first_frontier(graph), 1)) == ["d"]


def test_deferred_nodes_run_before_a_half_filled_barrier_is_given_up() -> None:
    # given [a, d] -> c where d is deferred: only its release can fill the barrier
    graph = topology({START: ["a"], "a": ["d", 0], "d": [0], "c": []}, barriers=[(["a", "d"], "c")], defer=["d"])
    two = step(graph, first_frontier(graph), 1)
    assert names(two) == ["d"] and names(step(graph, two, 2)) == ["c"]


# --- the ends


def test_nothing_triggered_is_the_end() -> None:
    # given a -> END, and a router that says END too, then there is nothing left
    graph = topology({START: ["a"], "a": [END]})
    assert step(graph, first_frontier(graph), 1, a=[END]) == Frontier()


@pytest.mark.parametrize("route", [Route("nowhere"), send("nowhere", {"x": 1})], ids=["name", "send"])
def test_an_unknown_target_is_a_route_error_never_a_silent_end(route: Route) -> None:
    graph = topology({START: ["a"], "a": [], "b": []})
    with pytest.raises(RouteError) as caught:
        step(graph, first_frontier(graph), 1, a=["b", route])
    # then the error names who routed, where to, and where it could have gone
    assert (caught.value.node_id, caught.value.target) == ("a", "nowhere")
    assert "'a'" in str(caught.value) and "'nowhere'" in str(caught.value) and "a, b, or END" in str(caught.value)


def test_start_is_no_target() -> None:
    graph = topology({START: ["a"], "a": []})
    with pytest.raises(RouteError) as caught:
        step(graph, first_frontier(graph), 1, a=[START])
    assert caught.value.target == START and "known nodes: a, or END" in str(caught.value)


def test_a_half_filled_barrier_that_nothing_can_fill_is_no_progress() -> None:
    # given [a, b] -> c and [a, z] -> y, and only a runs
    graph = topology(
        {START: ["a"], "a": [0, 1], "b": [0], "z": [1], "c": [], "y": []}, barriers=[(["a", "b"], "c"), (["a", "z"], "y")]
    )
    with pytest.raises(NoProgressError) as caught:
        step(graph, first_frontier(graph), 1)
    # then the error names who waits, and for whom
    assert (caught.value.step_id, caught.value.waiting) == (1, ["c", "y"])
    assert "c, y still waits for b, z" in str(caught.value)


def test_a_half_filled_barrier_to_the_end_keeps_no_one_waiting() -> None:
    # given [a, b] -> END where only a runs: END makes no item, so no item waits for b (DESIGN 2.4 and 2.5)
    graph = topology({START: ["a"], "a": [0], "b": [0]}, barriers=[(["a", "b"], END)])
    # then the run is done
    assert step(graph, first_frontier(graph), 1).items == ()


# --- "hash" ordering


def test_hash_ordering_sorts_by_path_and_changes_nothing_else() -> None:
    # given a fan-out, in both orderings
    found = {}
    orderings: tuple[Ordering, ...] = ("edge", "hash")
    for ordering in orderings:
        graph = topology({START: ["a"], "a": ["x", "x"], "w": [], "x": []}, ordering=ordering)
        found[ordering] = step(graph, first_frontier(graph), 1, a=[send("w", number) for number in range(20)]).items
    # then the same items are due, under their own keys: the first 8 bytes of the path, ascending
    assert {(item.path, item.payload) for item in found["edge"]} == {(item.path, item.payload) for item in found["hash"]}
    assert [item.path for item in found["hash"]] == sorted(item.path for item in found["edge"])
    assert all(item.order_key == item.path[:8] for item in found["hash"])
    assert [item.path for item in found["hash"]] != [item.path for item in found["edge"]]


def test_hash_ordering_gives_a_barrier_item_to_the_lowest_hash() -> None:
    # given members in declaration order m0..m7, of which the lowest path is not the first
    members = [f"m{number}" for number in range(8)]
    graph = topology({START: members, **{name: [0] for name in members}, "c": []}, barriers=[(members, "c")], ordering="hash")
    one = first_frontier(graph)
    lowest = min(one.items, key=lambda item: item.path)
    assert lowest.node_id != "m0"
    assert only(step(graph, one, 1), "c").parent_path == lowest.path


# --- the stored form

NODE_IDS = st.sampled_from(["a", "b", "é/child", '"quoted"\n'])
PARENTS = st.sampled_from([ROOT_PATH, b"\x01" * 32, b"\xfe" * 32])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
PAYLOADS = st.none() | JSON.map(canonical_bytes)
POSITIONS = st.tuples(PARENTS, NODE_IDS, st.integers(0, 2**32 - 1))


@st.composite
def frontiers(draw: st.DrawFn, ordering: Ordering, step_id: int) -> Frontier:
    items = []
    for rank, (parent, node_id, index) in enumerate(draw(st.lists(POSITIONS, unique=True, max_size=5))):
        path = path_of(parent, node_id, index)
        items.append(WorkItem(node_id, path, parent, index, order_key_of(ordering, rank, path), step_id, draw(PAYLOADS)))
    deferred = [
        Waiting(node_id, parent, index, draw(st.integers(0, step_id)), draw(PAYLOADS))
        for parent, node_id, index in draw(st.lists(POSITIONS, unique=True, max_size=3))
    ]
    arrived = draw(st.dictionaries(st.integers(0, 20), st.frozensets(NODE_IDS, min_size=1), max_size=3))
    return Frontier(in_order(items), tuple(deferred), arrived)


@pytest.mark.parametrize("ordering", ["edge", "hash"])
@given(data=st.data())
@settings(max_examples=50)
def test_a_frontier_is_read_back_just_as_it_was_stored(ordering: Ordering, data: st.DataObject) -> None:
    # given any frontier that step 7 left
    frontier = data.draw(frontiers(ordering, 7))
    # when it is written and read, then it is the same, payload bytes and keys included
    stored = encode_frontier(frontier, ordering)
    assert decode_frontier(stored, 7) == frontier
    # and what is written is canonical JSON, so that equal frontiers are equal bytes
    assert canonical_bytes(json.loads(stored)) == stored


def test_a_fan_out_stores_its_parent_once() -> None:
    # given 1,000 items of one parent
    graph = topology({START: ["a"], "a": [], "w": []})
    frontier = step(graph, first_frontier(graph), 1, a=[send("w", number) for number in range(1000)])
    stored = encode_frontier(frontier, "edge")
    # then its path of 64 digits stands there once, and an item costs little more than its name, index and payload
    assert stored.count(first_frontier(graph).items[0].path.hex().encode()) == 1
    assert len(stored) < 20 * 1000


def test_the_stored_form_does_not_depend_on_the_order_in_which_members_arrived() -> None:
    # given half-filled barriers, filled in different orders
    one = Frontier(arrived={0: frozenset(["a", "b", "c"]), 11: frozenset(["z"]), 2: frozenset(["y"])})
    other = Frontier(arrived={2: frozenset(["y"]), 11: frozenset(["z"]), 0: frozenset(["c", "b", "a"])})
    assert encode_frontier(one, "edge") == encode_frontier(other, "edge")


def test_langgraph_ordering_takes_nodes_by_name_and_then_sends_in_their_order() -> None:
    # given what LangGraph itself was seen to do: asrc2, src, zz, then the Sends of asrc2, then those of src
    shape = topology({START: ["zz", "src", "asrc2"], "zz": [], "src": [], "asrc2": [], "w": []}, ordering="langgraph")
    first = first_frontier(shape)
    assert [item.node_id for item in first.items] == ["asrc2", "src", "zz"]
    sends = {
        "asrc2": [Route("w", b'"A2-%d"' % number) for number in range(12)],
        "src": [Route("w", b'"c0"'), Route("w", b'"c1"'), Route("w", b'"e0"'), Route("w", b'"e1"')],
        "zz": [],
    }
    finished = {item.path: Finished(routes=tuple(sends[item.node_id])) for item in first.items}
    following = next_frontier(shape, first, 1, finished)
    assert [item.payload for item in following.items] == [route.payload for name in ("asrc2", "src") for route in sends[name]]
    assert [item.order_key for item in following.items] == sorted(item.order_key for item in following.items)
    # and the stored form gives the same back
    assert decode_frontier(encode_frontier(following, "langgraph"), 1) == following
