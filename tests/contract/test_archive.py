"""A run taken from one store to another is the same run there, byte for byte; a file that was cut or changed leaves nothing."""

from __future__ import annotations

import hashlib
import io
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
import pytest

from lockstep import (
    START,
    ArchiveError,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    RetryPolicy,
    RunExistsError,
    RunNotFoundError,
    Send,
)
from lockstep.archive import export_run, import_run
from lockstep.history import read_history, read_state
from lockstep.ports import Reader, Store
from lockstep.records import NewRun, Retention
from lockstep.store.memory import MemoryStore

if TYPE_CHECKING:
    from conftest import World

TURNS = 130
"""More than the steps that are read at a time."""


class State(TypedDict, total=False):
    turn: int
    text: str
    seen: Annotated[list[str], operator.add]
    broken: bool


def turn(state: State, ctx: Context) -> dict[str, Any]:
    ctx.emit("turned", {"turn": state.get("turn", 0), "é": [1.0, 1, None]})
    return {"turn": state.get("turn", 0) + 1, "text": ctx.path * 8}  # Enough for some snapshots.


def work(number: int, ctx: Context) -> dict[str, Any]:
    if number == 1 and ctx.attempt == 1:
        raise ConnectionError("é: the first attempt fails")
    return {"seen": [f"work {number}"]}


def last(state: State, ctx: Context) -> dict[str, Any]:
    if state.get("broken"):
        raise LookupError("always")
    ctx.emit("ended")
    return {"seen": ["last"]}


def loop(state: State) -> list[Send] | str:
    return "turn" if state["turn"] < TURNS else [Send("work", number) for number in range(3)]


graph = Graph(State, name="archived").add_node(turn).add_node(last)
graph.add_node(work, retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))
graph.add_edge(START, "turn").add_conditional_edges("turn", loop, ["turn", "work"]).add_edge("work", "last")


@pytest.fixture(scope="module")
def source() -> Iterator[MemoryStore]:
    """A store with a run that succeeded, one that failed, and one that has not begun."""
    with Engine(graph, "memory://") as engine:
        engine.submit({"turn": 0}, run_id="succeeded", thread_id="thread").result()
        with pytest.raises(NodeFailedError):
            engine.submit({"turn": TURNS - 1, "broken": True}, run_id="failed").result()
        store = engine._running().store
        assert isinstance(store, MemoryStore)
        store.submit([new_run("pending", "somebody's")])
        yield store


def new_run(run_id: str, partition_id: str) -> NewRun:
    return NewRun(run_id=run_id, graph="g", graph_hash="h", input=b"{}", options=b"{}", partition_id=partition_id, shard=7)


def exported(reader: Reader, run_id: str) -> bytes:
    return b"".join(export_run(reader, run_id))


def sealed(lines: list[dict[str, Any]]) -> bytes:
    """The file with these lines, and an end that fits them."""
    body = b"".join(encoded(line) for line in lines)
    return body + encoded({"record": "end", "lines": len(lines), "sha256": hashlib.sha256(body).hexdigest()})


def encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def lines_of(file: bytes) -> list[dict[str, Any]]:
    """The lines of a file but for its end."""
    return [json.loads(line) for line in file.splitlines()[:-1]]


def under_way(file: bytes) -> list[dict[str, Any]]:
    """The lines of a run as if it stood before its last step."""
    lines = lines_of(file)
    steps = [number for number, line in enumerate(lines) if line["record"] == "step"]
    before = lines[steps[-2]]
    lines[1] |= {"status": "running", "step_id": before["step_id"], "state_hash": before["state_hash"]}
    return lines[: steps[-1]]


def all_of(reader: Reader, run_id: str) -> dict[str, Any]:
    """What readers see of a run, but for what is its store's own matter."""
    [row] = reader.find_runs(run_ids=[run_id])
    return {
        "row": msgspec.structs.replace(row, partition_id="", updated_at=0),
        "steps": reader.steps(run_id, 0, row.step_id),
        "history": list(read_history(reader, run_id, 0, row.step_id)),
        "states": [read_state(reader, run_id, step_id) for step_id in range(0, row.step_id + 1, 13)],
        "snapshots": [reader.snapshot(run_id, step_id) for step_id in range(row.step_id + 1)],
        "events": reader.events(run_id),
    }


# A run is the same wherever it is


@pytest.mark.parametrize("run_id", ["succeeded", "failed"])
def test_a_run_is_the_same_in_another_store(world: World, source: MemoryStore, run_id: str) -> None:
    # given the file of a run
    file = exported(source, run_id)

    # when it is imported, then everything that can be read of it is the same, and so are the bytes of its file
    row = import_run(world.a, io.BytesIO(file))
    assert row == world.run(run_id)
    assert all_of(world.b, run_id) == all_of(source, run_id)
    assert exported(world.b, run_id) == file
    # and nothing is left to do, or to publish
    assert world.pending() == []
    world.b.outbox.add_sink("later", from_now=True)
    assert [backlog.runs for backlog in world.b.outbox.backlogs()] == [0]


def test_the_file_can_be_read_with_tools_for_json(source: MemoryStore) -> None:
    lines = [json.loads(line) for line in exported(source, "succeeded").splitlines()]

    assert lines[0] == {"record": "lockstep-run", "format_version": 1}
    assert (lines[1]["record"], lines[1]["run_id"], lines[1]["input"]) == ("run", "succeeded", {"turn": 0})
    assert not {"partition_id", "updated_at"} & lines[1].keys()
    assert lines[-1]["record"] == "end" and lines[-1]["lines"] == len(lines) - 1
    kinds = Counter(line["record"] for line in lines)
    assert kinds["step"] == TURNS + 3
    assert kinds["event"] == TURNS + 1
    assert kinds["journal"] == TURNS + 5  # One of three items failed at first.
    assert kinds["snapshot"] >= 3
    assert [line["data"] for line in lines if line["record"] == "event"][1] == {"turn": 1, "é": [1.0, 1, None]}


def test_events_of_an_imported_run_wait_for_no_sink_until_they_are_asked_for(world: World, source: MemoryStore) -> None:
    world.a.outbox.add_sink("sink")
    import_run(world.a, io.BytesIO(exported(source, "succeeded")))
    assert world.b.outbox.claim("relay", "sink", 10, 60.0) == []

    assert world.b.outbox.replay("sink", "succeeded")

    [pending] = world.b.outbox.claim("relay", "sink", 10, 60.0)
    assert [event.event for event in pending.events] == source.events("succeeded")[: len(pending.events)]


def test_an_imported_run_counts_as_changed_now(world: World, source: MemoryStore) -> None:
    # given a run of long ago
    lines = lines_of(exported(source, "failed"))
    lines[1]["created_at"] = 1_000_000_000_000
    import_run(world.a, io.BytesIO(sealed(lines)))

    # then it is kept like one that has just finished, and goes when that would
    assert world.run("failed").created_at == 1_000_000_000_000
    assert world.a.prune("archived", Retention(max_age_seconds=3600)).run_ids == []
    assert world.a.prune("archived", Retention(max_runs=0)).run_ids == ["failed"]


# A run that has not finished


@pytest.mark.parametrize("kind", ["pending", "under way"])
def test_an_unfinished_run_needs_a_word(world: World, source: MemoryStore, kind: str) -> None:
    file = exported(source, "pending") if kind == "pending" else sealed(under_way(exported(source, "succeeded")))

    # when it is imported, then it is refused, unless somebody says that nobody else goes on with it
    with pytest.raises(ConfigurationError, match="its nodes would run twice") as caught:
        import_run(world.a, io.BytesIO(file))
    assert caught.value.option == "unfinished"
    assert world.b.find_runs() == []
    row = import_run(world.a, io.BytesIO(file), unfinished=True)
    assert exported(world.b, row.run_id) == file

    # and it waits for whoever can take it over
    assert world.adopt("A", graph_hashes=[row.graph_hash]) == [row.run_id]
    assert world.pending("A") == [row.run_id]


def test_an_imported_run_belongs_to_the_partition_of_its_shard(world: World, source: MemoryStore) -> None:
    # given a coordinator that owns all partitions
    world.a.open_lease("C", "coordinator", 60.0, embedded=False)
    owned = world.a.share("C", {}, lambda holder: False)

    row = import_run(world.a, io.BytesIO(exported(source, "pending")), unfinished=True)

    first, last = world.a.partitions()[row.partition_id]
    assert row.partition_id in owned and first <= row.shard <= last
    assert [new.run_id for new in world.a.poll("C").new] == ["pending"]


# What is refused


def test_a_run_id_that_is_taken_is_left_alone(world: World, source: MemoryStore) -> None:
    before = world.submit("succeeded")

    with pytest.raises(RunExistsError, match="there is a run 'succeeded' already; delete it first") as caught:
        import_run(world.a, io.BytesIO(exported(source, "succeeded")))

    assert caught.value.run_id == "succeeded"
    assert world.b.find_runs() == before and world.b.steps("succeeded", 0, 9) == []


def test_what_is_not_there_is_not_exported(source: MemoryStore) -> None:
    with pytest.raises(RunNotFoundError, match="no run 'nowhere'"):
        exported(source, "nowhere")


def test_a_damaged_run_is_not_exported(world: World) -> None:
    world.submit("run-1")
    world.commit(world.step("run-1", 0))

    with pytest.raises(ArchiveError, match="what is stored of run run-1 is damaged: the step of step 0 cannot be read"):
        exported(world.b, "run-1")


Lines = list[dict[str, Any]]
Change = Callable[[Lines], object]


def of_kind(lines: Lines, kind: str, number: int = 5) -> dict[str, Any]:
    return [line for line in lines if line["record"] == kind][number]


def swapped(lines: Lines, kind: str) -> None:
    places = [number for number, line in enumerate(lines) if line["record"] == kind]
    lines[places[3]], lines[places[4]] = lines[places[4]], lines[places[3]]


CHANGES: dict[str, tuple[Change, str]] = {
    "another header": (lambda lines: lines[0].update(record="something"), "line 1: this is not the file of a run"),
    "a newer format": (lambda lines: lines[0].update(format_version=2), "line 1: it has format 2, this release reads 1"),
    "no run": (lambda lines: lines.pop(1), "line 2: the row of the run is missing"),
    "a run_id that cannot be": (lambda lines: lines[1].update(run_id="a b"), "run_id 'a b' must be"),
    "no status": (lambda lines: lines[1].pop("status"), "line 2: it is no RunRow"),
    "a status that there is not": (lambda lines: lines[1].update(status="fine"), "line 2: it is no RunRow"),
    "more than a run has": (lambda lines: lines[1].update(more=1), "line 2: it is no RunRow"),
    "a number too large": (lambda lines: lines[1].update(shard=10**30), "line 2: it is no RunRow"),
    "a hash that is none": (lambda lines: lines[1].update(state_hash="xyz"), "line 2: it is no RunRow"),
    "another end": (lambda lines: lines[1].update(step_id=7), "the run stands after step 7, and its steps end with"),
    "another hash at the end": (lambda lines: lines[1].update(state_hash="00" * 32), "the run stands after step"),
    "another run's step": (lambda lines: of_kind(lines, "step").update(run_id="b"), "it belongs to run 'b'"),
    "another value": (lambda lines: of_kind(lines, "step").update(patch=[["set", "turn", 999]]), "a state with its hash"),
    "another patch": (lambda lines: of_kind(lines, "step").update(patch=[["merge", "turn", {}, []]]), "cannot be read"),
    "another hash": (lambda lines: of_kind(lines, "step").update(state_hash="00" * 32), "a state with its hash"),
    "another key": (lambda lines: of_kind(lines, "step").update(idempotency_key="00" * 32), "the key of its items"),
    "another frontier": (
        lambda lines: of_kind(lines, "step").update(frontier=of_kind(lines, "step", 9)["frontier"]),
        "is of an item that there is not",
    ),
    "a result too few": (
        lambda lines: lines.remove(of_kind(lines, "journal")),
        "the step of step 6 was stored without the results of all its items",
    ),
    "no frontier": (lambda lines: of_kind(lines, "step").update(frontier={}), "cannot be read"),
    "a step too few": (lambda lines: lines.remove(of_kind(lines, "step")), "step 5 is out of order"),
    "a step too many": (lambda lines: lines.append(of_kind(lines, "step", -1)), "is out of order"),
    "steps in another order": (lambda lines: swapped(lines, "step"), "is out of order"),
    "another snapshot": (lambda lines: of_kind(lines, "snapshot", 0).update(state={}), "is not the state there"),
    "a result twice": (lambda lines: lines.append(of_kind(lines, "journal", -1)), "is out of order"),
    "another item's result": (lambda lines: of_kind(lines, "journal").update(path="00" * 32), "of an item that there is not"),
    "no result": (lambda lines: of_kind(lines, "journal").update(payload=[7]), "cannot be read"),
    "an event twice": (lambda lines: lines.insert(7, of_kind(lines, "event", 0)), "the event of step 1 is out of order"),
    "a record that there is not": (lambda lines: lines[7].update(record="note"), "line 8: there is no such record"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_was_changed_is_refused_even_if_its_end_fits(world: World, source: MemoryStore, name: str) -> None:
    change, why = CHANGES[name]
    lines = lines_of(exported(source, "succeeded"))
    change(lines)

    with pytest.raises((ArchiveError, ConfigurationError), match=re.escape(why)):
        import_run(world.a, io.BytesIO(sealed(lines)))

    # then nothing of it is there, and the true one can come
    assert world.b.find_runs() == []
    assert world.b.steps("succeeded", 0, 999) == world.b.events("succeeded") == []
    import_run(world.a, io.BytesIO(exported(source, "succeeded")))


def test_any_change_of_a_byte_is_noticed(source: MemoryStore, rng: Random) -> None:
    # given a file, and what may happen to one on its way
    file = exported(source, "succeeded")
    for _ in range(40):
        place = rng.randrange(len(file))
        other = bytes([rng.choice([byte for byte in range(256) if byte != file[place]])])
        for damaged in (file[:place], file[:place] + file[place + 1 :], file[:place] + other + file[place + 1 :], file + other):
            # when it is imported, then it is refused, and nothing is stored
            store = MemoryStore()
            with pytest.raises((ArchiveError, ConfigurationError)):
                import_run(store, io.BytesIO(damaged))
            assert store.find_runs() == []


def test_a_line_without_end_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.archive.MAX_LINE_BYTES", 1000)

    with pytest.raises(ArchiveError, match="line 1: it is too long"):
        import_run(MemoryStore(), io.BytesIO(b"x" * 2000))


def test_of_two_who_import_one_run_one_does(world: World, source: MemoryStore) -> None:
    file = exported(source, "failed")

    def import_it(store: Store) -> bool:
        try:
            import_run(store, io.BytesIO(file))
        except RunExistsError:
            return False
        return True

    done = world.together(*[lambda store=store: import_it(store) for store in (world.a, world.b) * 3])  # type: ignore[misc]

    assert sum(done) == 1
    assert exported(world.b, "failed") == file
