"""Submitting: a run_id is created once, whoever asks for it, and the answer is the row that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockstep.core.lifecycle import RunStatus
from lockstep.records import FORMAT_VERSION, Submitted

if TYPE_CHECKING:
    from conftest import World


def test_a_new_run_is_created_as_it_was_submitted(world: World) -> None:
    # given a run with every field set
    new = world.new(
        "run-1",
        input=b'{"topic":"x"}',
        options=b'{"seed":1}',
        shard=65535,
        thread_id="thread",
        parent_run_id="parent",
        trace_context="00-trace",
    )

    # when it is submitted
    [submitted] = world.a.submit([new])

    # then the answer is its row, which has not begun
    row = submitted.row
    assert submitted.created
    assert {name: getattr(row, name) for name in new.__struct_fields__} == {
        name: getattr(new, name) for name in new.__struct_fields__
    }
    assert (row.status, row.step_id, row.version, row.retries) == (RunStatus.PENDING, -1, 0, 0)
    assert (row.state_hash, row.error, row.format_version) == (None, None, FORMAT_VERSION)
    # and everybody can read it
    assert world.a.find_runs() == world.b.find_runs() == [row]


def test_a_run_id_that_is_taken_gives_the_row_that_has_it(world: World) -> None:
    # given a run
    [first] = world.submit("run-1", input=b"1")

    # when its run_id is submitted again, for something else, by somebody else
    [again] = world.b.submit([world.new("run-1", input=b"2", graph="other", graph_hash="hash-2", partition_id="B")])

    # then nothing changed
    assert again == Submitted(first, created=False)
    assert world.run("run-1") == first
    assert (world.pending("A"), world.pending("B")) == (["run-1"], [])


def test_a_run_that_has_moved_is_returned_as_it_stands(world: World) -> None:
    world.submit("run-1")
    world.commit(world.step("run-1", 0), world.step("run-1", 1, RunStatus.SUCCEEDED))

    [again] = world.b.submit([world.new("run-1")])

    assert again == Submitted(world.run("run-1"), created=False)
    assert (again.row.status, again.row.step_id, again.row.version) == (RunStatus.SUCCEEDED, 1, 2)


def test_a_finished_run_that_is_submitted_again_does_not_begin_again(world: World) -> None:
    world.submit("run-1")
    world.commit(world.step("run-1", 0, RunStatus.SUCCEEDED))

    world.submit("run-1")

    assert world.pending() == []
    assert world.run("run-1").status is RunStatus.SUCCEEDED


def test_many_runs_in_one_call_are_answered_in_their_order(world: World) -> None:
    # given every third of 1,500 runs: more than one statement can name
    names = [f"run-{n:04}" for n in range(1500)]
    world.submit(*names[::3])

    # when all are submitted, last first
    answers = world.b.submit([world.new(name) for name in reversed(names)])

    # then each answer is for the run in its place
    assert [answer.row.run_id for answer in answers] == names[::-1]
    assert {answer.row.run_id for answer in answers if not answer.created} == set(names[::3])
    assert [row.run_id for row in world.a.find_runs(limit=2000)] == names


def test_of_two_runs_with_one_id_in_a_call_the_first_is_created(world: World) -> None:
    answers = world.a.submit([world.new("run-1", input=b"1"), world.new("run-2"), world.new("run-1", input=b"2")])

    assert [(answer.row.run_id, answer.row.input, answer.created) for answer in answers] == [
        ("run-1", b"1", True),
        ("run-2", b"{}", True),
        ("run-1", b"1", False),
    ]


def test_nothing_submitted_is_nothing_answered(world: World) -> None:
    assert world.a.submit([]) == []


def test_run_ids_that_differ_in_case_are_different_runs(world: World) -> None:
    answers = world.a.submit([world.new("run"), world.new("Run"), world.new("RUN")])

    assert [answer.created for answer in answers] == [True, True, True]
    assert [row.run_id for row in world.a.find_runs()] == ["RUN", "Run", "run"]


def test_of_a_thousand_threads_that_submit_one_run_id_exactly_one_creates_it(world: World) -> None:
    # given a thousand submissions of one run_id, half of them over either handle, that can be told apart
    runs = [world.new("run-1", input=b"%d" % n) for n in range(1000)]
    handles = [world.a, world.b] * 500

    # when they race
    answers = world.together(
        *(lambda handle=handle, run=run: handle.submit([run])[0] for handle, run in zip(handles, runs, strict=True))
    )

    # then one of them created it, and all were told of that one
    [winner] = [run for run, answer in zip(runs, answers, strict=True) if answer.created]
    assert {answer.row for answer in answers} == {world.run("run-1")}
    assert world.run("run-1").input == winner.input
    assert world.pending() == ["run-1"]
