"""Whatever arrives, a decoder gives a value or says ValueError, and a run takes in what it can use and nothing else."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, TypedDict

import pytest
from tests.core.test_wire import decode_job

from lockstep import START, Graph, Send
from lockstep.compiled import CompiledGraph
from lockstep.core.canonical import canonical_bytes
from lockstep.core.records import Failure, Route, Write
from lockstep.records import HandedBack, NewRun, Task, TaskResult
from lockstep.store.memory import MemoryStore
from lockstep.wire import (
    JOB_HEAD,
    JOB_TAIL,
    decode_outcome,
    decode_results,
    encode_outcome,
    encode_results,
    encode_task,
)
from lockstep_coordinator.items import Unusable, Verdict
from lockstep_coordinator.recovery import load
from lockstep_coordinator.run import ActiveRun

FUZZED = 10_000
FRAGMENTS = [
    b'"',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"9" * 40,
    b"\xff",
    b"\0",
    b'"\\ud800"',
]
FRAGMENTS += [b"[" * 2000]


def damaged(data: bytes, rng: Random) -> bytes:
    """The data after one to three accidents."""
    for _ in range(rng.randint(1, 3)):
        place, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(5):
            case 0:
                data = data[:place] + data[end:]
            case 1:
                data = data[:place] + rng.choice(FRAGMENTS) + data[place:]
            case 2:
                data = data[:place] + rng.choice(FRAGMENTS) + data[end:]
            case 3:
                data = data[:place] + rng.randbytes(rng.randint(1, 4)) + data[place:]
            case _:
                data = data[:end] + data[place:]
    return data


class State(TypedDict, total=False):
    seen: Annotated[list[int], operator.add]
    n: int


def first(state: State) -> list[Send]:
    return [Send("work", 1)]


graph = (
    Graph(State, name="hostile").add_node("first", lambda state: {"n": 1}).add_node("work", lambda number: {"seen": [number]})
)
graph.add_edge(START, "first").add_conditional_edges("first", first, ["work"])

OUTCOME = encode_outcome(
    [Write("seen", [1, "é"]), Write("n", 2, True)], [Route("work", b'{"a":1}'), Route("work")], [("t", None)]
)
FAILURE = Failure({"type": "NodeFailedError", "message": "é", "traceback": "…"}, ("ValueError", "Exception"))


@pytest.fixture
def compiled() -> CompiledGraph:
    return graph.compile()


@pytest.fixture
def run(compiled: CompiledGraph) -> Iterator[ActiveRun]:
    """A run of which one item is out."""
    yield begun(compiled)


def begun(compiled: CompiledGraph) -> ActiveRun:
    new = NewRun(run_id="run", graph="hostile", graph_hash=compiled.hash, input=b"{}", options=b"{}", partition_id="p", shard=0)
    run, _ = load(MemoryStore(), new.row(0), {compiled.hash: compiled}, now=0.0)
    transition, step = run.transition()
    run.accept(transition, step)
    assert run.next_item(()) is not None
    return run


def result_of(run: ActiveRun, **fields: Any) -> TaskResult:
    [(path, delivery)] = run.in_flight.items()
    return TaskResult(run_id="run", path=path, delivery=delivery, **fields)


def test_damaged_messages_are_values_or_value_errors(run: ActiveRun, rng: Random) -> None:
    # given messages as they are, and ten thousand that are not
    task: Task = run.task_for(run.frontier.items[0])
    job = JOB_HEAD + encode_task(task) + b"," + encode_task(task, "ab" * 32) + JOB_TAIL
    results = encode_results([result_of(run, outcome=OUTCOME), result_of(run, failure=FAILURE), task.handed_back("why")])
    for decode, data in ((decode_job, job), (decode_results, results), (decode_outcome, OUTCOME)):
        decode(data)
        refused = 0
        for _ in range(FUZZED // 3):
            try:
                decode(damaged(data, rng))
            except ValueError:
                refused += 1
        # then most are refused, and none does anything else
        assert refused > FUZZED // 6


def test_a_run_takes_in_nothing_of_a_damaged_result(compiled: CompiledGraph, rng: Random) -> None:
    taken = unusable = 0
    sound = canonical_bytes({"a": [1, {"b": None}]})
    for number in range(FUZZED // 10):
        # given a result whose envelope is sound, and whose inside is not
        run = begun(compiled)
        inside = damaged(OUTCOME, rng) if number % 2 else damaged(sound, rng)
        said = {"type": rng.choice(["StateError", "?", 7, None]), "message": rng.choice(["m", 7, None, ["m"]])}
        result = result_of(run, outcome=inside) if number % 3 else result_of(run, failure=Failure(said))
        verdict = run.absorb(result)
        if isinstance(verdict, Unusable):
            unusable += 1
            assert verdict.reason
            # then nothing of it was taken in, and the item is still out
            assert run.transition()[0].journal == () and result.path in run.in_flight
        else:
            taken += 1
        # and the run can say what follows, be it that it fails
        transition, step = run.transition()
        run.accept(transition, step)
    assert unusable > 100 and taken > 10


def test_an_outcome_larger_than_allowed_is_unusable(run: ActiveRun) -> None:
    large = encode_outcome([Write("n", "x" * run.options.max_payload_bytes)], [], [])

    verdict = run.absorb(result_of(run, outcome=large))

    assert isinstance(verdict, Unusable) and "more than max_payload_bytes" in verdict.reason


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ((1, b"null"), "it asks question 1 of an item with 0 answers"),
        ((0, b'"%s"' % (b"x" * 5_000_000)), "more than max_payload_bytes"),
        ((0, b"[" * 100_000 + b"]" * 100_000), "what it asks cannot be read"),
        ((0, b"1e999"), "what it asks cannot be read"),
        ((0, b"{"), "what it asks cannot be read"),
    ],
    ids=["another number", "too large", "too deep", "infinite", "no JSON"],
)
def test_a_question_that_no_node_can_have_asked_is_unusable(run: ActiveRun, question: tuple[int, bytes], why: str) -> None:
    verdict = run.absorb(result_of(run, question=question))

    assert isinstance(verdict, Unusable) and why in verdict.reason
    assert run.transition()[0].journal == () and len(run.in_flight) == 1


def test_a_question_travels_as_it_is(run: ActiveRun) -> None:
    result = result_of(run, question=(0, b'{"n":1}'))

    assert decode_results(encode_results([result])) == [result]
    assert run.absorb(result) is Verdict.TAKEN


@pytest.mark.parametrize("field", ["delivery", "started_at"])
@pytest.mark.parametrize("number", [-1, 2**53 + 1, 10**40, 1.5, "1", None])
def test_a_number_that_cannot_be_makes_a_result_unreadable(run: ActiveRun, field: str, number: Any) -> None:
    [message] = decode_results(encode_results([result_of(run, outcome=b"{}", started_at=1)]))
    assert isinstance(message, TaskResult)
    body = {"run_id": "run", "path": "AAAA", "delivery": 1, "outcome": {}} | {field: number}

    with pytest.raises(ValueError):
        decode_results(canonical_bytes([body]) if number != 10**40 else str([body]).replace("'", '"').encode())


def test_messages_of_the_other_kind_are_unreadable() -> None:
    for data in (b"", b"null", b"[]", b"{}", b'["os.system",null,[["rm"]],{}]', b"\x80\x04K\x01."):
        with pytest.raises(ValueError):
            decode_job(data)
    assert decode_results(b"[]") == []
    assert isinstance(decode_results(b'[{"run_id":"r","path":"AA==","delivery":1,"handed_back":"x"}]')[0], HandedBack)
