"""What travels arrives as it was: states, payloads and outcomes to the byte, whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockstep.core.canonical import INT_MAX, INT_MIN, canonical_bytes
from lockstep.core.records import Failure, Finished, Route, Write
from lockstep.errors import ERRORS, LockstepError, NodeFailedError
from lockstep.records import HandedBack, Task, TaskResult
from lockstep.wire import (
    JOB_FUNCTION,
    JOB_HEAD,
    JOB_TAIL,
    TaskMessage,
    decode_outcome,
    decode_results,
    decode_task,
    encode_outcome,
    encode_results,
    encode_task,
    split_job,
)


def decode_job(data: bytes) -> list[TaskMessage]:
    """All tasks of a job."""
    return [decode_task(task) for task in split_job(data)]


# What codecs write differently, or turn into something else.
AWKWARD = [
    1e16,
    -0.0,
    0.0,
    1e-7,
    1.5e-05,
    5e-324,
    1.7976931348623157e308,
    2**53 + 1,
    INT_MIN,
    INT_MAX,
    'é🙂\x00\u2028/\\"',
    None,
]

texts = st.text(max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(INT_MIN, INT_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(AWKWARD)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
canonical = values.map(canonical_bytes)
states = st.dictionaries(texts, values, max_size=3).map(canonical_bytes)
run_ids = st.text("aZ09._:-", min_size=1, max_size=128)
paths = st.binary(min_size=32, max_size=32)
counts = st.integers(0, 2**31)
seconds = st.floats(0, 1e9, exclude_min=True)

some_tasks = st.builds(
    Task,
    run_id=run_ids,
    partition_id=texts,
    graph_hash=texts,
    step_id=counts,
    node_id=texts,
    path=paths,
    order_key=st.binary(min_size=8, max_size=8),
    scheduled_step=counts,
    queue=texts,
    attempt=counts,
    delivery=counts,
    run_seed=st.integers(INT_MIN, 2**64 - 1),
    timeout_seconds=seconds,
    max_payload_bytes=st.integers(1, INT_MAX),
    state=states,
    payload=st.none() | canonical,
)


def job_of(*tasks: bytes) -> bytes:
    """A job's data as the script that enqueues puts it together."""
    return JOB_HEAD + b",".join(tasks) + JOB_TAIL


A_TASK = Task(
    run_id="run-1",
    partition_id="p",
    graph_hash="hash-1",
    step_id=1,
    node_id="node",
    path=bytes(32),
    order_key=bytes(8),
    scheduled_step=0,
    queue="default",
    attempt=1,
    delivery=1,
    run_seed=0,
    timeout_seconds=1.0,
    max_payload_bytes=1,
    state=canonical_bytes({"awkward": AWKWARD}),
)


# --- tasks --------------------------------------------------------------------------------------------------------------------


@given(st.lists(some_tasks, max_size=3))
@settings(max_examples=50)
@example(
    [
        A_TASK,
        msgspec.structs.replace(A_TASK, payload=canonical_bytes(AWKWARD)),
        msgspec.structs.replace(A_TASK, payload=b"null"),
    ]
)
def test_tasks_come_out_of_a_job_as_they_went_in(tasks: list[Task]) -> None:
    # given a job of tasks with their states, then each comes out again, the bytes of its state and payload among it
    messages = decode_job(job_of(*map(encode_task, tasks)))
    assert [message.task(bytes(message.state)) for message in messages] == tasks  # type: ignore[arg-type]


@given(some_tasks)
@settings(max_examples=25)
def test_a_state_by_reference_does_not_travel(task: Task) -> None:
    # given a task whose state travels elsewhere
    data = encode_task(task, "0" * 64)
    # then its job holds only the hash, and with the state it is the same task
    [message] = decode_job(job_of(data))
    assert (message.state, message.state_sha256) == (msgspec.UNSET, "0" * 64)
    assert message.task(task.state) == task
    assert "state" not in json.loads(data)


@given(some_tasks)
@settings(max_examples=25)
def test_canonical_bytes_are_embedded_as_they_are(task: Task) -> None:
    # given a task, then its state and payload stand in the job as they are stored: no codec has read and written them
    data = encode_task(task)
    assert b'"state":' + task.state in data
    assert task.payload is None or b'"payload":' + task.payload in data


@given(some_tasks)
@settings(max_examples=25)
def test_a_job_is_what_rq_s_json_would_be(task: Task) -> None:
    # given a job, then any JSON codec finds a function, an instance, arguments and keywords
    function, instance, arguments, keywords = json.loads(job_of(encode_task(task), encode_task(task)))
    assert (function, instance, len(arguments), keywords) == (JOB_FUNCTION, None, 1, {})
    assert [one["run_id"] for one in arguments[0]] == [task.run_id] * 2


NO_JOBS = {
    "nothing": b"",
    "garbage": b"garbage",
    "no text": b"\xff\xfe\x00",
    "cut off": job_of(encode_task(A_TASK))[:-3],
    "pickled": b"\x80\x04\x95",
    "another function": json.dumps(["os.system", None, [[]], {}]).encode(),
    "another function with our tasks": job_of(encode_task(A_TASK)).replace(JOB_FUNCTION.encode(), b"os.system"),
    "an instance": json.dumps([JOB_FUNCTION, "me", [[]], {}]).encode(),
    "no arguments": json.dumps([JOB_FUNCTION, None, [], {}]).encode(),
    "too many arguments": json.dumps([JOB_FUNCTION, None, [[], []], {}]).encode(),
    "an object": b"{}",
    "a task that is none": job_of(b"{}"),
    "a path that is none": job_of(encode_task(A_TASK).replace(b'"path":"AAA', b'"path":"?AA')),
    "nested too deep": job_of()[:-3] + b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
    "a number that is none": job_of(encode_task(A_TASK).replace(b'"attempt":1', b'"attempt":"1"')),
}


@pytest.mark.parametrize("data", NO_JOBS.values(), ids=NO_JOBS)
def test_what_is_no_job_of_ours_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_job(data)


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_a_value_error(data: bytes) -> None:
    # given anything, then it is refused in one way, as a job and as results; an empty list of results is none
    with pytest.raises(ValueError, match=r"."):
        decode_job(data)
    if json_or_none(data) != []:
        with pytest.raises(ValueError, match=r"."):
            decode_results(data)


def json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_a_task_of_a_newer_release_can_be_read() -> None:
    # given a field that this release does not know, then the task is the same without it
    data = encode_task(A_TASK).replace(b"{", b'{"priority":{"new":[1]},', 1)
    assert [message.task(A_TASK.state) for message in decode_job(job_of(data))] == [A_TASK]


# --- results ------------------------------------------------------------------------------------------------------------------

errors = st.sampled_from(sorted(ERRORS)).flatmap(
    lambda name: st.builds(lambda message: ERRORS[name](message, run_id="r", attempt=3).to_record(), texts)
)
failures = st.builds(Failure, error=errors, kinds=st.lists(texts, max_size=3).map(tuple))
some_results = st.builds(
    TaskResult,
    run_id=run_ids,
    path=paths,
    delivery=counts,
    outcome=st.none() | canonical,
    failure=st.none() | failures,
    started_at=st.integers(0, 2**53),
    latency_ms=st.floats(0, 1e12),
    worker=texts,
)
hand_backs = st.builds(HandedBack, run_id=run_ids, path=paths, delivery=counts, reason=texts)


@given(st.lists(some_results | hand_backs, max_size=6))
@example([TaskResult(run_id="r", path=bytes(32), delivery=1, outcome=canonical_bytes(value)) for value in (*AWKWARD, AWKWARD)])
@example([TaskResult(run_id="r", path=bytes(32), delivery=1), HandedBack(run_id="r", path=bytes(32), delivery=1)])
def test_results_arrive_as_they_were_sent(results: list[TaskResult | HandedBack]) -> None:
    # given results, failures and tasks handed back, then they arrive, each of its kind, their outcomes to the byte
    assert decode_results(encode_results(results)) == results


def test_results_that_are_nested_too_deep_are_a_value_error() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(ValueError, match="too deep"):
        decode_results(b'[{"run_id":"r","path":"","delivery":1,"failure":{"error":{"a":' + deep + b"}}}]")


def test_the_exception_itself_stays_where_it_is() -> None:
    # given a result with the exception, which cannot travel, then all else of it arrives
    sent = TaskResult(run_id="r", path=bytes(32), delivery=1, failure=Failure({"type": "E"}, ("E",)), cause=KeyError("k"))
    assert decode_results(encode_results([sent])) == [msgspec.structs.replace(sent, cause=None)]


def test_an_error_is_the_same_at_the_other_end() -> None:
    # given an error with all that a node can put into it
    error = NodeFailedError("\ud800 é\x00", error_type="E", traceback="line\n" * 3, run_id="r", step_id=2**40)
    sent = TaskResult(run_id="r", path=bytes(32), delivery=1, failure=Failure(error.to_record(), ("E", "Exception")))
    # then its class, message and fields arrive
    [arrived] = decode_results(encode_results([sent]))
    assert isinstance(arrived, TaskResult)
    assert arrived.failure is not None
    made_again = LockstepError.from_record(arrived.failure.error)
    assert (type(made_again), made_again.to_record()) == (NodeFailedError, error.to_record())


# --- outcomes -----------------------------------------------------------------------------------------------------------------

writes = st.lists(st.builds(Write, field=texts, value=values, overwrite=st.booleans()), max_size=4)
routes = st.lists(st.builds(Route, node_id=texts, payload=st.none() | canonical), max_size=4)
events = st.lists(st.tuples(texts, values), max_size=3)


@given(writes, routes, events)
@example([Write("f", value) for value in AWKWARD], [Route("n", b"null"), Route("n")], [("t", AWKWARD)])
def test_outcomes_are_the_same_at_the_other_end(
    writes: list[Write], routes: list[Route], events: list[tuple[str, Any]]
) -> None:
    # given what a node wants, then its bytes say all of it
    data = encode_outcome(writes, routes, events)
    finished, emitted = decode_outcome(data)
    assert same(finished, Finished(tuple(writes), tuple(routes)))
    assert same(emitted, events)
    # and they are canonical: what is decoded gives the same bytes again
    assert encode_outcome(finished.writes, finished.routes, emitted) == data == canonical_bytes(json.loads(data))


def same(one: Any, other: Any) -> bool:
    """Equal, and -0.0 is not 0.0, nor 1 True."""
    return canonical_bytes(msgspec.to_builtins(one)) == canonical_bytes(msgspec.to_builtins(other))


def test_an_outcome_of_nothing_is_an_empty_object() -> None:
    assert encode_outcome([], [], []) == b"{}"
    assert decode_outcome(b"{}") == (Finished(), [])


def test_a_task_message_has_what_a_task_has() -> None:
    # given the two records, then no field of a task stays behind
    # but max_concurrent, which is looked at before it travels
    assert set(TaskMessage.__struct_fields__) == {*Task.__struct_fields__, "state_sha256"} - {"max_concurrent"}
