"""Versions of graphs: which there are, which new runs get, and how many runs need each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockstep.core.lifecycle import RunStatus

if TYPE_CHECKING:
    from conftest import World


def test_each_version_is_listed_with_the_runs_that_need_it(world: World) -> None:
    # given two versions of a graph that coordinators have loaded, one after the other, and one of which only runs know
    for lease, graph_hash in (("C", "old"), ("D", "new")):
        world.a.open_lease(lease, lease, 60.0, embedded=False)
        world.a.share(lease, {"a": graph_hash, "b": "only"}, lambda holder: False)
    world.submit("r1", "r2", "r3", "r4", graph="a", graph_hash="old")
    world.submit("r5", graph="a", graph_hash="embedded")
    world.submit("r6", graph="c", graph_hash="old")
    world.commit(world.step("r1", 0, RunStatus.SUCCEEDED), world.step("r2", 0))
    world.commit(world.step("r3", 0), world.moved("r3", 0, RunStatus.FAILED, version=1, error=b"{}"))

    # then each is there with its runs: by name, the one loaded last first
    found = world.b.versions()
    assert [(one.graph, one.graph_hash, one.runs, one.unfinished, one.failed) for one in found] == [
        ("a", "new", 0, 0, 0),
        ("a", "old", 4, 2, 1),
        ("a", "embedded", 1, 1, 0),
        ("b", "only", 0, 0, 0),
        ("c", "old", 1, 1, 0),
    ]
    assert [one.loaded_at is not None for one in found] == [True, True, False, True, False]


def test_a_store_without_runs_has_none(world: World) -> None:
    assert world.b.versions() == []
