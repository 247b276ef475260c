"""The inbox, and what an owner finds when it looks: runs that it has not begun, and commands to its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lockstep.core.lifecycle import RunStatus
from lockstep.errors import RunNotFoundError
from lockstep.records import Command, Committed, Superseded, Transition, Work

if TYPE_CHECKING:
    from conftest import World

HOUR = 3600.0


def test_a_command_reaches_the_owner_as_it_was_sent(world: World) -> None:
    world.submit("run-1")
    command = Command(run_id="run-1", command_id="c-1", kind="resume", payload='{"é":[1,2]}'.encode())

    world.b.send(command)

    assert world.a.poll("A").commands == [command]
    assert world.a.poll("A").commands == [command], "looking does not consume"


def test_commands_reach_the_owner_only(world: World) -> None:
    # given a run of each coordinator
    world.submit("run-a", partition_id="A")
    world.submit("run-b", partition_id="B")

    # when both get a command, and A's another one
    world.send("run-b", "to-b")
    world.send("run-a", "to-a")
    world.send("run-a", "to-a-too")

    # then each owner sees its own, oldest first
    assert world.commands("A") == ["to-a", "to-a-too"]
    assert world.commands("B") == ["to-b"]


def test_commands_come_oldest_first_over_all_runs(world: World) -> None:
    world.submit("run-1", "run-2")
    sent = [f"c-{n}" for n in range(9, -1, -1)]

    for n, command_id in enumerate(sent):
        world.send("run-2" if n % 2 else "run-1", command_id)

    assert world.commands() == sent


def test_a_command_sent_twice_is_sent_once(world: World) -> None:
    world.submit("run-1")
    world.send("run-1", "c-1", kind="cancel", payload=b"1")

    # when it is sent again, even with other contents
    world.send("run-1", "c-1", kind="cancel", payload=b"1")
    world.a.send(Command(run_id="run-1", command_id="c-1", kind="retry", payload=b"2"))

    # then the first is what there is
    assert world.a.poll("A").commands == [Command(run_id="run-1", command_id="c-1", kind="cancel", payload=b"1")]


def test_a_command_id_belongs_to_one_run(world: World) -> None:
    world.submit("run-1", "run-2")
    world.send("run-1", "c-1")

    world.send("run-2", "c-1")

    assert [command.run_id for command in world.a.poll("A").commands] == ["run-1"]


def test_of_many_that_race_to_send_one_command_one_sends_it(world: World) -> None:
    world.submit("run-1")
    command = Command(run_id="run-1", command_id="c-1", kind="cancel")

    world.together(*[lambda handle=handle: handle.send(command) for handle in (world.a, world.b) * 10])

    assert world.commands() == ["c-1"]


def test_a_command_to_a_run_that_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(RunNotFoundError, match="nowhere") as caught:
        world.send("nowhere", "c-1")

    assert caught.value.run_id == "nowhere"
    # and nothing is kept of it, not even its id
    world.submit("nowhere", "run-1")
    assert world.commands() == []
    world.send("run-1", "c-1")
    assert world.commands() == ["c-1"]


def test_a_command_that_is_consumed_never_comes_back(world: World) -> None:
    # given a run with two commands, one of which its step answers
    world.submit("run-1")
    world.send("run-1", "c-1")
    world.send("run-1", "c-2")
    assert world.commit(world.step("run-1", 0, consumed=["c-1"])) == [Committed()]

    # then the other one is left
    assert world.commands() == ["c-2"]

    # and when the sender never heard of it, and sends it again
    world.send("run-1", "c-1")
    world.a.send(Command(run_id="run-1", command_id="c-1", kind="cancel"))

    # then it was carried out once, and that is all
    assert world.commands() == ["c-2"]
    world.a.close_lease("A")
    world.adopt()
    assert world.commands("B") == ["c-2"]


def test_a_command_is_consumed_only_if_its_transition_is_committed(world: World) -> None:
    world.submit("run-1")
    world.send("run-1", "c-1")

    assert world.commit(world.step("run-1", 0, version=9, consumed=["c-1"])) == [Superseded()]

    assert world.commands() == ["c-1"]


def test_several_commands_are_answered_by_one_transition(world: World) -> None:
    world.submit("run-1", "run-2")
    for n in range(6):
        world.send("run-1" if n < 4 else "run-2", f"c-{n}")

    outcomes = world.commit(
        Transition(run_id="run-1", consumed=["c-3", "c-0", "c-1"]), Transition(run_id="run-2", consumed=["c-5"])
    )

    assert outcomes == [Committed(), Committed()]
    assert world.commands() == ["c-2", "c-4"]


def test_a_finished_run_still_gets_its_commands(world: World) -> None:
    # given a run that failed
    world.submit("run-1")
    world.commit(world.step("run-1", 0), world.moved("run-1", 0, RunStatus.FAILED, version=1))

    # when somebody asks to retry it
    world.send("run-1", "retry-1", kind="retry")

    # then its owner sees that, and may revive it
    assert world.commands() == ["retry-1"]
    revived = world.update("run-1", 0, expected_version=2, retries=1, revives=True)
    assert world.commit(Transition(run_id="run-1", update=revived, consumed=["retry-1"])) == [Committed()]
    assert (world.commands(), world.run("run-1").status, world.run("run-1").retries) == ([], RunStatus.RUNNING, 1)


def test_commands_follow_a_run_to_its_new_owner(world: World) -> None:
    # given commands that A did not answer before it ended, and one to its finished run
    world.submit("run-1", "run-2")
    world.commit(world.step("run-1", 0), world.step("run-2", 0, RunStatus.SUCCEEDED))
    for run_id in ("run-1", "run-2"):
        world.send(run_id, f"to-{run_id}")
    world.a.close_lease("A")

    # when B takes over what is unfinished, then they go along with their run
    assert world.adopt() == ["run-1"]
    assert world.commands("B") == ["to-run-1"]
    # and when it takes the finished run too, then it sees all of them
    assert world.adopt(run_ids=["run-2"]) == ["run-2"]
    assert world.commands("B") == ["to-run-1", "to-run-2"]


# Runs that have not begun.


def test_a_run_waits_until_its_step_0_is_committed(world: World) -> None:
    # given runs, submitted in no order
    world.submit("run-2", "run-3", "run-1")
    assert world.a.poll("A") == Work(world.a.find_runs(), [])
    assert world.pending() == ["run-1", "run-2", "run-3"]

    # when something else is stored of one, and a step of another is superseded
    world.commit(Transition(run_id="run-1", journal=[world.journal_row("run-1", "x")]), world.step("run-2", 0, version=9))

    # then both still wait
    assert world.pending() == ["run-1", "run-2", "run-3"]

    # until their step 0 is committed
    world.commit(world.step("run-2", 0))
    assert world.pending() == ["run-1", "run-3"]
    world.commit(world.step("run-1", 0), world.step("run-3", 0, RunStatus.SUCCEEDED))
    assert world.pending() == []


def test_a_run_that_ended_before_it_began_does_not_wait(world: World) -> None:
    world.submit("run-1", "run-2")

    world.commit(
        world.moved("run-1", -1, RunStatus.FAILED, version=0), world.moved("run-2", -1, RunStatus.CANCELLED, version=0)
    )

    assert world.pending() == []
    world.a.close_lease("A")
    assert world.adopt() == []


def test_new_runs_wait_for_their_owner_only(world: World) -> None:
    world.submit("run-a", partition_id="A")
    world.submit("run-b", partition_id="B")
    world.submit("run-c", partition_id="C")

    assert (world.pending("A"), world.pending("B")) == (["run-a"], ["run-b"])
    # and a lease opened later has the partition of its name
    world.a.open_lease("C", "holder-a", HOUR)
    assert world.pending("C") == ["run-c"]


def test_who_holds_no_lease_owns_nothing(world: World) -> None:
    # given a run that waits, and commands, one of them to a finished run
    world.submit("run-1", "run-2")
    world.commit(world.step("run-2", 0, RunStatus.SUCCEEDED))
    world.send("run-1", "c-1")
    world.send("run-2", "c-2")
    assert (world.pending(), world.commands()) == (["run-1"], ["c-1", "c-2"])

    # when the lease has ended
    world.a.close_lease("A")

    # then its former holder is not told to do what it could not commit
    assert world.a.poll("A") == world.a.poll("never") == Work([], [])
