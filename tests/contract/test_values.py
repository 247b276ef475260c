"""Values: what goes in comes out, byte for byte, whatever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.records import Committed, Transition

if TYPE_CHECKING:
    from conftest import World

VALUES = {
    "empty": b"",
    "zero": b"\0",
    "all bytes": bytes(range(256)),
    "not UTF-8": b"\xff\xfe\x00",
    "JSON": '{"é":1e-07,"b":-0.0,"z":9007199254740993}'.encode(),
    "1 MB": bytes(range(256)) * 4096,
}
TEXTS = ["café", "事件", "🦀 done", "e\N{COMBINING ACUTE ACCENT}", "a b\tc\n", "'; DROP TABLE runs; --", "%s {0} :name ?", ""]


@pytest.mark.parametrize("name", VALUES)
def test_bytes_come_out_as_they_went_in(world: World, name: str) -> None:
    # given a run that has this value everywhere
    value = VALUES[name]
    [row] = world.submit("run-1", input=value, options=value)
    journal = world.journal_row("run-1", "x", payload=value, meta=value)
    event = world.event("run-1", 1, data=value)
    world.send("run-1", "command", payload=value)
    step = world.step("run-1", 0, patch=value, frontier=value, journal=[journal], events=[event])
    failure = world.moved("run-1", 1, RunStatus.FAILED, version=2, error=value, options=value)

    # when it is committed
    assert world.commit(step, world.step("run-1", 1, snapshot=value), failure) == [Committed()] * 3

    # then each reader gets it back
    assert (row.input, row.options) == (value, value)
    failed = world.run("run-1")
    assert (failed.input, failed.options, failed.error) == (value, value, value)
    stored = world.b.steps("run-1", 0, 0)[0]
    assert (stored.patch, stored.frontier) == (value, value)
    assert world.b.snapshot("run-1", 0) == (b"{}", [value])
    assert world.b.snapshot("run-1", 1) == (value, [])
    assert world.b.journal("run-1", [journal.path]) == [journal]
    assert world.b.events("run-1") == [event]
    assert [command.payload for command in world.a.poll("A").commands] == [value]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_out_as_it_went_in(world: World, text: str) -> None:
    world.submit("run-1", graph=text, trace_context=text)
    event = world.event("run-1", 1, type=text, node_id=text)

    assert world.commit(world.step("run-1", 0, events=[event])) == [Committed()]

    assert world.b.events("run-1") == [event]
    assert (world.run("run-1").graph, world.run("run-1").trace_context) == (text, text)
    assert [row.run_id for row in world.b.find_runs(graph=text)] == ["run-1"]


def test_names_may_be_as_long_as_their_columns(world: World) -> None:
    run_id, name, identifier = "r" * 128, "é" * 255, "c" * 64
    world.a.open_lease("L" * 64, name, 60.0)
    [row] = world.submit(
        run_id,
        graph=name,
        graph_hash=identifier,
        partition_id="L" * 64,
        thread_id=run_id,
        parent_run_id=run_id,
        trace_context=name,
    )
    world.send(run_id, identifier, kind=identifier)
    event = world.event(run_id, 1, type=name, node_id=name)

    assert world.commit(world.step(run_id, 0, events=[event]), lease="L" * 64) == [Committed()]

    assert (row.graph, row.thread_id, row.graph_hash) == (name, run_id, identifier)
    assert world.b.events(run_id) == [event]
    assert world.commands("L" * 64) == [identifier]
    assert world.adopt(graph_hashes=[identifier], dead=[name]) == [run_id]


def test_numbers_may_be_as_large_as_their_columns(world: World) -> None:
    # given the largest numbers that the coordinator ever writes: 32 bits for what counts within a run, 64 bits for the rest
    world.submit("run-1", shard=65535)
    last = 2**31 - 1
    row = world.journal_row("run-1", "x", "failed", last, step_id=2**63 - 1)
    event = world.event("run-1", 2**63 - 1, last, step_id=2**63 - 1)

    outcomes = world.commit(
        world.step("run-1", 0, journal=[row], events=[event]),
        world.moved("run-1", 0, RunStatus.FAILED, version=1, retries=last),
    )

    assert outcomes == [Committed(), Committed()]
    assert world.b.journal("run-1", [row.path]) == [row]
    assert world.b.events("run-1", after_sequence=2**63 - 2) == [event]
    assert world.run("run-1").retries == last


def test_paths_and_keys_are_compared_as_bytes(world: World) -> None:
    # given paths that are equal up to a zero, to the last byte, or but for the case of a letter
    world.submit("run-1")
    paths = [bytes(32), bytes(31) + b"\1", b"\0" * 5 + b"a" * 27, b"\0" * 5 + b"A" * 27, b"\xff" * 32, b" " * 32]
    rows = [world.journal_row("run-1", "x", payload=path) for path in paths]
    rows = [type(row)(**{name: getattr(row, name) for name in row.__struct_fields__} | {"path": row.payload}) for row in rows]

    assert world.commit(Transition(run_id="run-1", journal=rows)) == [Committed()]

    for row in rows:
        assert world.b.journal("run-1", [row.path]) == [row]
    assert [row.path for row in world.b.journal("run-1", paths)] == sorted(paths)
