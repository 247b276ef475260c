"""How coordinators share out the partitions: each has one owner, and only its owner gives it away."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import pytest
import sqlalchemy as sa

from lockstep.core.lifecycle import RunStatus
from lockstep.ports import Store
from lockstep.records import Committed
from lockstep.store.schema import graphs
from lockstep.store.sharing import PARTITIONS, SHARDS, fair_share, partition_ranges

if TYPE_CHECKING:
    from conftest import World

    from lockstep.store.sql import SqlStore

HOUR = 3600.0
ALL = sorted(partition_ranges())
ENDS = ["closed", "past its time", "holder died"]


class Coordinators:
    """Coordinators on both handles of the world, beside its embedded engines; each partition has a run, "run-" and its name.

    What a coordinator has is what it was told last. After each call, no two were told the same, and `poll` agrees.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.parts: dict[str, list[str]] = {}
        self._handles: dict[str, Store] = {}
        world.a.submit([world.new(f"run-{name}", partition_id=name) for name in ALL])

    def join(self, *names: str) -> None:
        for name in names:
            handle = self._handles[name] = [self.world.a, self.world.b][len(self._handles) % 2]
            handle.open_lease(name, f"holder-{name}", HOUR, embedded=False)
            self.parts[name] = []

    def ask(self, name: str, *, graphs: Mapping[str, str] | None = None, dead: Collection[str] = ()) -> list[str]:
        """The answer to `share`, of whomever."""
        handle = self._handles.get(name, self.world.a)
        return list(handle.share(name, graphs or {}, lambda holder: holder in {f"holder-{one}" for one in dead}))

    def share(self, name: str, *, graphs: Mapping[str, str] | None = None, dead: Collection[str] = ()) -> list[str]:
        """The answer to `share` of somebody who has joined and not ended."""
        self.parts[name] = self.ask(name, graphs=graphs, dead=dead)
        self.check()
        return self.parts[name]

    def check(self) -> None:
        told = list(itertools.chain.from_iterable(self.parts.values()))
        assert len(told) == len(set(told)), f"two owners: {self.parts}"
        assert {name: self.polled(name) for name in self.parts} == {name: sorted(part) for name, part in self.parts.items()}

    def polled(self, name: str) -> list[str]:
        """The partitions whose runs a lease gets to see."""
        return [row.partition_id for row in self._handles[name].poll(name).new]

    def end(self, name: str, how: str) -> list[str]:
        """End a coordinator, which is not told; those that are dead for whoever shares next."""
        del self.parts[name]
        if how == "closed":
            self._handles[name].close_lease(name)
        elif how == "past its time":
            self.world.adapter.expire(self._handles[name], name)
        return [name] if how == "holder died" else []

    def settle(self, order: random.Random | None = None) -> list[int]:
        """Two rounds, in whatever order: all give back, then all take. How many each has, the most first."""
        for _ in range(2):
            names = list(self.parts)
            (order or random.Random(0)).shuffle(names)
            for name in names:
                self.share(name)
        return sorted(map(len, self.parts.values()), reverse=True)


@pytest.fixture
def coordinators(world: World) -> Coordinators:
    return Coordinators(world)


# Taking and giving back.


def test_the_first_coordinator_makes_all_partitions_and_takes_them(coordinators: Coordinators) -> None:
    coordinators.join("C")

    assert sorted(coordinators.share("C")) == ALL
    # and they stay its own
    assert sorted(coordinators.share("C")) == ALL
    assert len(ALL) == PARTITIONS == 16


def test_a_second_coordinator_gets_its_part_after_the_first_has_given_it_back(coordinators: Coordinators) -> None:
    # given a coordinator with everything
    coordinators.join("C")
    coordinators.share("C")
    coordinators.join("D")

    # when another one comes, then it waits until the first has shared again
    assert coordinators.share("D") == []
    assert len(coordinators.share("C")) == 8
    assert len(coordinators.share("D")) == 8
    assert sorted(coordinators.parts["C"] + coordinators.parts["D"]) == ALL


def test_who_shares_again_keeps_what_it_has(coordinators: Coordinators) -> None:
    coordinators.join("C", "D", "E")
    coordinators.settle()
    before = {name: set(part) for name, part in coordinators.parts.items()}

    coordinators.settle(random.Random(1))

    assert {name: set(part) for name, part in coordinators.parts.items()} == before


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", range(1, 6))
def test_sharing_converges_in_any_order_of_calls(coordinators: Coordinators, count: int, seed: int) -> None:
    # given coordinators that came, shared and went in any order
    order = random.Random(seed * 10 + count)
    names = [f"C{n}" for n in range(count + 3)]
    coming, gone = list(names), 0
    while coming or gone < 3:
        what = order.choice(["join", "share", "share", "end"])
        if what == "join" and coming:
            coordinators.join(coming.pop())
        elif what == "share" and coordinators.parts:
            coordinators.share(order.choice(list(coordinators.parts)))
        elif what == "end" and gone < 3 and len(coordinators.parts) > 1:
            coordinators.end(order.choice(list(coordinators.parts)), order.choice(["closed", "past its time"]))
            gone += 1

    # when those who are left share twice
    counts = coordinators.settle(order)

    # then each partition has an owner, and nobody more than one above another
    assert len(counts) == count
    assert sum(counts) == PARTITIONS
    assert max(counts) - min(counts) <= 1


def test_more_coordinators_than_partitions_share_too(coordinators: Coordinators) -> None:
    coordinators.join(*(f"C{n}" for n in range(PARTITIONS + 2)))

    assert coordinators.settle() == [1] * PARTITIONS + [0] * 2


@pytest.mark.parametrize(("partitions", "count"), [(16, count) for count in range(1, 20)] + [(7, 3), (1, 2)])
def test_a_fair_share_is_at_most_a_part_of_the_whole(partitions: int, count: int) -> None:
    names = [f"p{n}" for n in range(partitions)]
    leases = [f"lease-{n}" for n in range(count)]
    for had in range(partitions + 1):
        mine, free = names[:had], names[had:]

        shares = [fair_share(mine, free, partitions, lease, leases[::-1]) for lease in leases]

        # all that there is room for, first its own; what is above is given back, and nothing else
        for kept, given in shares:
            assert len(kept) - partitions // count in (0, 1)
            assert kept == (mine + free)[: len(kept)]
            assert given == [name for name in mine if name not in kept]
        # and together they have room for just the whole
        assert sum(len(kept) for kept, _ in shares) == partitions


# Who may take what.


def test_the_partitions_of_a_live_coordinator_are_never_taken(coordinators: Coordinators) -> None:
    # given a coordinator with everything, which does not share again
    coordinators.join("C")
    coordinators.share("C")
    coordinators.join("D", "E")

    # when others ask again and again, then it keeps everything, even past its fair part
    for _ in range(3):
        assert coordinators.share("D") == []
        assert coordinators.share("E", dead=["somebody else"]) == []
    assert coordinators.world.run("run-p03").partition_id == "p03"


@pytest.mark.parametrize("how", ENDS)
def test_the_partitions_of_a_coordinator_that_has_ended_are_taken_over(coordinators: Coordinators, how: str) -> None:
    # given two coordinators with half of the partitions each, one of which ends
    coordinators.join("C", "D")
    coordinators.settle()
    dead = coordinators.end("C", how)

    # when the other one shares, then it has everything
    assert sorted(coordinators.share("D", dead=dead)) == ALL

    # and the one that ended has nothing, and does not come back
    assert coordinators.ask("C") == []
    assert coordinators.polled("C") == []
    assert not coordinators.world.a.renew_lease("C", HOUR)
    coordinators.check()


@pytest.mark.parametrize("how", ENDS)
def test_survivors_share_out_what_was_left(coordinators: Coordinators, how: str) -> None:
    coordinators.join("C", "D", "E")
    coordinators.settle()
    dead = coordinators.end("D", how)

    coordinators.share("C", dead=dead)
    coordinators.share("E", dead=dead)

    assert sorted(map(len, coordinators.parts.values())) == [8, 8]


def test_a_coordinator_past_its_time_that_nobody_ended_keeps_its_partitions(coordinators: Coordinators) -> None:
    # given a coordinator that was slow, and has come back before anybody looked
    coordinators.join("C")
    coordinators.share("C")
    coordinators.world.adapter.expire(coordinators.world.a, "C")
    assert coordinators.world.a.renew_lease("C", HOUR)

    coordinators.join("D")

    assert coordinators.share("D") == []


def test_who_shares_does_not_end_itself(coordinators: Coordinators) -> None:
    coordinators.join("C")
    coordinators.world.adapter.expire(coordinators.world.a, "C")

    assert sorted(coordinators.share("C", dead=["C"])) == ALL


@pytest.mark.parametrize("how", [*ENDS, "never opened"])
def test_who_has_no_lease_gets_nothing_and_changes_nothing(coordinators: Coordinators, how: str) -> None:
    # given a coordinator with everything, that ended or never was
    world = coordinators.world
    coordinators.join("D")
    name = "never"
    if how != "never opened":
        name = "C"
        coordinators.join("C")
        coordinators.share("C")
        dead = coordinators.end("C", how)
        world.b.adopt("D", [], None, lambda holder: holder in {f"holder-{one}" for one in dead})

    # when it shares, and says that all others are dead
    assert coordinators.ask(name, graphs={"late": "hash-9"}, dead=["D"]) == []

    # then it has brought nothing in, and the others live
    assert world.a.loaded_graphs() == {}
    assert world.b.renew_lease("D", HOUR)
    assert (world.a.partitions() == {}) is (how == "never opened")
    assert sorted(coordinators.share("D")) == ALL


def test_an_embedded_engine_gets_no_shared_partition(coordinators: Coordinators) -> None:
    assert coordinators.ask("A") == []

    coordinators.join("C")
    coordinators.share("C")

    assert coordinators.ask("A") == coordinators.ask("B") == []
    assert len(coordinators.share("C")) == PARTITIONS


def test_embedded_engines_do_not_count_and_lose_nothing(coordinators: Coordinators) -> None:
    # given embedded engines with a run each, many more of them than coordinators
    world = coordinators.world
    engines = ["A", "B", *(f"engine-{n}" for n in range(5))]
    for name in engines[2:]:
        world.a.open_lease(name, "holder-a", HOUR)
    for name in engines:
        world.submit(f"of-{name}", partition_id=name)

    # when coordinators share, then they have everything among them
    coordinators.join("C", "D")
    assert coordinators.settle() == [8, 8]

    # and the engines have what they had
    assert [[row.run_id for row in world.a.poll(name).new] for name in engines] == [[f"of-{name}"] for name in engines]


@pytest.mark.parametrize("how", ENDS)
def test_the_partition_of_an_embedded_engine_that_has_ended_waits_for_its_program(coordinators: Coordinators, how: str) -> None:
    # given an embedded engine that ended with a run
    world = coordinators.world
    world.submit("run-1")
    if how == "closed":
        world.a.close_lease("A")
    elif how == "past its time":
        world.expire("A")

    # when a coordinator shares
    coordinators.join("C")
    coordinators.parts["C"] = list(world.a.share("C", {}, lambda holder: how == "holder died" and holder == "holder-a"))

    # then it has the shared partitions only
    assert sorted(coordinators.parts["C"]) == ALL
    coordinators.check()
    assert world.run("run-1").partition_id == "A"
    # and the run can be adopted
    assert world.adopt(run_ids=["run-1"]) == ["run-1"]


def test_the_epoch_of_a_partition_rises_with_each_change_of_its_owner(coordinators: Coordinators) -> None:
    # given a coordinator with all partitions
    coordinators.join("C")
    first = coordinators._handles["C"].share("C", {}, lambda _: False)
    # when nothing changes, then neither do the epochs
    assert coordinators._handles["C"].share("C", {}, lambda _: False) == first
    # when another one gets half of them
    coordinators.join("D")
    kept = coordinators._handles["C"].share("C", {}, lambda _: False)
    given = coordinators._handles["D"].share("D", {}, lambda _: False)
    # then those have a higher epoch, and the others the same
    assert {**kept, **given}.keys() == first.keys()
    assert all(epoch == first[name] for name, epoch in kept.items())
    assert all(epoch > first[name] for name, epoch in given.items())


def test_the_holder_of_a_partition_is_told_to_anyone(coordinators: Coordinators) -> None:
    reader = coordinators.world.b
    assert reader.holder_of("p00") is None
    coordinators.join("C")
    coordinators.share("C")
    assert reader.holder_of("p00") == "holder-C"
    coordinators.end("C", "closed")
    assert reader.holder_of("p00") is None
    assert reader.holder_of("nothing") is None


def test_recovering_leaves_runs_to_the_coordinators_unless_asked_for_them(coordinators: Coordinators) -> None:
    # given runs of shared partitions while no coordinator is there: they may all be restarting
    coordinators.join("C")
    coordinators.share("C")
    coordinators.end("C", "closed")
    # when an engine takes over what it finds, then it leaves those alone
    assert coordinators.world.adopt() == []
    # but takes one that it is asked for by name
    assert coordinators.world.adopt(run_ids=["run-p00"]) == ["run-p00"]


def test_adopting_takes_no_run_of_a_partition_with_a_live_owner(coordinators: Coordinators) -> None:
    coordinators.join("C")
    coordinators.share("C")

    assert coordinators.world.adopt() == []
    assert coordinators.world.adopt(run_ids=["run-p00"]) == []
    coordinators.check()


# What belongs to a partition.


def test_every_shard_has_one_partition_without_gap_or_overlap(world: World) -> None:
    assert world.a.partitions() == {}
    world.a.open_lease("C", "holder-c", HOUR, embedded=False)
    mine = world.a.share("C", {}, lambda _: False)

    # given the ranges, one after the other
    ends = -1
    for name, (first, last) in partition_ranges().items():
        assert first == ends + 1
        ends = last
        assert name in mine
    assert ends == SHARDS - 1 == 65_535
    # then the store has the same
    assert world.b.partitions() == partition_ranges()


def test_a_shard_stays_in_its_partition_whoever_owns_it(coordinators: Coordinators) -> None:
    # given two coordinators, one of which has shared: half of the partitions have no owner
    coordinators.join("C", "D")
    assert len(coordinators.share("C")) == 8
    assert coordinators.world.b.partitions() == partition_ranges()
    # and then, when others share, and when all have gone
    coordinators.settle()
    assert coordinators.world.b.partitions() == partition_ranges()
    for name in "CD":
        coordinators.end(name, "closed")
    assert coordinators.world.b.partitions() == partition_ranges()


def test_the_unfinished_runs_of_partitions(world: World) -> None:
    # given runs in each state, in several partitions
    world.submit("run-5", "run-1", "Run-4", "run-2", "run-3", "run-6", partition_id="p00")
    world.submit("run-0", partition_id="p01")
    world.submit("run-7", partition_id="p02")
    world.submit("run-8", partition_id="A")
    world.commit(world.step("run-1", 0), world.step("run-2", 0, RunStatus.SUCCEEDED), world.step("run-3", 0))
    world.commit(world.moved("run-3", 0, RunStatus.FAILED, version=1))
    world.commit(world.moved("run-6", -1, RunStatus.FAILED, version=0))
    assert world.commit(world.moved("run-6", -1, RunStatus.RUNNING, version=1, revives=True)) == [Committed()]

    def unfinished(*names: str) -> list[str]:
        rows = world.b.unfinished(names)
        assert rows == world.a.find_runs(run_ids=[row.run_id for row in rows])
        return [row.run_id for row in rows]

    # then those that are begun, revived or new are there, ascending, and no others
    assert unfinished("p00") == ["Run-4", "run-1", "run-5", "run-6"]
    assert unfinished("p01", "p00", "p15") == ["Run-4", "run-0", "run-1", "run-5", "run-6"]
    assert unfinished("A") == ["run-8"]
    assert unfinished("p15") == unfinished("nowhere") == unfinished() == []


def test_polling_shows_the_runs_and_commands_of_shared_partitions(coordinators: Coordinators) -> None:
    # given a coordinator with everything, and a command for a run
    world = coordinators.world
    coordinators.join("C")
    world.send("run-p03", "command-1")
    assert world.commands("C") == []
    coordinators.share("C")
    world.send("run-p12", "command-2")

    # then it sees new runs, and commands in the order of their age
    assert coordinators.polled("C") == ALL
    assert world.commands("C") == ["command-1", "command-2"]
    assert world.pending("A") == world.pending("B") == world.commands("A") == []

    # and what is begun and answered is not shown again
    assert world.commit(world.step("run-p03", 0, consumed=["command-1"]), lease="C") == [Committed()]
    assert coordinators.polled("C") == [name for name in ALL if name != "p03"]
    assert world.commands("C") == ["command-2"]
    assert [row.run_id for row in world.a.unfinished(["p03"])] == ["run-p03"]


def test_runs_and_commands_go_with_their_partition(coordinators: Coordinators) -> None:
    # given a coordinator that gave half of what it had back
    world = coordinators.world
    coordinators.join("C")
    coordinators.share("C")
    for name in ALL:
        world.send(f"run-{name}", f"command-{name}")
    coordinators.join("D")
    kept = coordinators.share("C")
    given = [name for name in ALL if name not in kept]

    # then nobody sees what lies in between
    assert world.commands("C") == [f"command-{name}" for name in ALL if name in kept]
    assert world.commands("D") == []
    # until somebody takes it
    assert sorted(coordinators.share("D")) == given
    assert world.commands("D") == [f"command-{name}" for name in given]
    # and when its owner has gone, nobody sees it again
    coordinators.end("D", "closed")
    assert coordinators.polled("D") == world.commands("D") == []


# Graphs.


def test_the_graphs_of_all_coordinators_are_loaded(coordinators: Coordinators) -> None:
    coordinators.join("C", "D")
    assert coordinators.world.a.loaded_graphs() == {}

    coordinators.share("C", graphs={"one": "hash-1", "two": "hash-2"})
    coordinators.share("D", graphs={"three": "hash-3"})
    coordinators.share("D")

    assert coordinators.world.a.loaded_graphs() == {"one": "hash-1", "two": "hash-2", "three": "hash-3"}
    # and they stay known when their coordinators have gone
    coordinators.end("C", "closed")
    coordinators.share("D")
    assert coordinators.world.b.loaded_graphs() == {"one": "hash-1", "two": "hash-2", "three": "hash-3"}


def test_the_version_of_a_graph_that_was_loaded_last_wins(coordinators: Coordinators) -> None:
    # given versions that are loaded one after the other, faster than a clock ticks, the older ones again too
    coordinators.join("C", "D")
    versions = ["hash-2", "hash-1", "hash-3", "hash-1", "hash-1", "hash-2", "hash-3", "hash-2"] * 3

    for n, version in enumerate(versions):
        coordinators.ask("CD"[n % 2], graphs={"changing": version, "same": "hash-0"})

        # then the last one is what clients get
        assert coordinators.world.b.loaded_graphs() == {"changing": version, "same": "hash-0"}


@pytest.mark.usefixtures("sql_adapter")  # The reference model needs no times for this.
def test_the_version_loaded_last_wins_also_when_the_clock_was_set_back(coordinators: Coordinators) -> None:
    # given a version that was loaded by a clock that went ahead
    coordinators.join("C")
    coordinators.share("C", graphs={"changing": "hash-1"})
    with cast("SqlStore", coordinators.world.a)._access.database.engine.begin() as connection:
        connection.execute(sa.update(graphs).values(loaded_at=graphs.c.loaded_at + 3_600_000))

    for version in ["hash-2", "hash-1", "hash-2"]:
        coordinators.share("C", graphs={"changing": version})
        assert coordinators.world.b.loaded_graphs() == {"changing": version}


# At the same time.


@pytest.mark.parametrize("count", [2, 6])
def test_coordinators_that_begin_together_make_the_partitions_once(coordinators: Coordinators, count: int) -> None:
    names = [f"C{n}" for n in range(count)]
    coordinators.join(*names)

    parts = coordinators.world.together(*(lambda name=name: coordinators.ask(name, graphs={"one": "hash-1"}) for name in names))

    coordinators.parts = dict(zip(names, parts, strict=True))
    coordinators.check()
    assert coordinators.world.a.loaded_graphs() == {"one": "hash-1"}
    assert sum(coordinators.settle()) == PARTITIONS


def test_coordinators_that_share_while_others_come_and_go_never_own_the_same(coordinators: Coordinators) -> None:
    names = [f"C{n}" for n in range(6)]
    claims: dict[str, set[str]] = {}
    lock = threading.Lock()

    def work(number: int) -> None:
        """Half of them go after some rounds. While one asks, it claims nothing, since it may be giving back."""
        name = names[number]
        for _ in range(4 + number):
            with lock:
                claims[name] = set()
            told = set(coordinators.ask(name, graphs={"one": f"hash-{number}"}))
            with lock:
                others = set[str]().union(*(claim for other, claim in claims.items() if other != name))
                assert not told & others
                claims[name] = told
        if number < 3:
            with lock:
                del claims[name]
            coordinators.end(name, "closed")

    # when all share at the same time, then nobody is told what another one has
    coordinators.join(*names)
    coordinators.world.together(*(lambda n=n: work(n) for n in range(len(names))))

    # and those who are left have been told what they have
    coordinators.parts = {name: sorted(claim) for name, claim in claims.items()}
    coordinators.check()
    assert coordinators.settle() == [6, 5, 5]
