"""The research example against recorded replies, which a server on this machine plays back.

research_replies.json was written by hand, in the format of chat completions. Its requests are compared as a whole: who changes
a prompt of the example changes it there too.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lockstep import Engine, NodeFailedError, RetryPolicy, Run, StateError, with_max_concurrent

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "research.py"
RECORDED = json.loads(Path(__file__).with_name("research_replies.json").read_text(encoding="utf-8"))
TIDES = {"topic": "Why are some tides higher than others?"}
RIVER = {"topic": "Which river is the longest?", "max_rounds": 2}
FIRST_ROUND = [
    "How do the Moon and the Sun together raise spring and neap tides?",
    "How does the Moon's changing distance alter the height of tides?",
    "How does the shape of a coast amplify tides?",
]
GAP = "How much can weather add to a predicted tide?"
API_KEY = "sk-of-this-test-alone"
WAIT_SECONDS = 20.0
"""Bounds every wait. Only a test that fails waits so long."""

Answer = tuple[int, bytes]


def material_of(request: dict[str, Any]) -> dict[str, Any]:
    """What a request hands to the model beside the task."""
    material: dict[str, Any] = json.loads(request["messages"][-1]["content"])
    return material


def subject_of(request: dict[str, Any]) -> str:
    """The question that a request asks, or its topic."""
    material = material_of(request)
    return str(material.get("question", material.get("topic")))


def completion(content: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}).encode()


class Endpoint(ThreadingHTTPServer):
    """Answers each request as recorded; one that is not recorded gets a 404, and fails the test in the end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first: dict[str, list[Answer]] = {}
        """What a subject gets before its recorded reply, one for each request."""
        self.only_after: dict[str, str] = {}
        """Subjects, each with the one that must be answered before it."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[HTTPMessage] = []
        self.answered: list[str] = []
        self.unrecorded: list[Any] = []
        self._changed = threading.Condition()

    def answer(self, path: str, headers: HTTPMessage, request: dict[str, Any]) -> Answer:
        with self._changed:
            self.requests.append(request)
            self.headers.append(headers)
            earlier = self.only_after.get(subject_of(request))
            in_time = self._changed.wait_for(lambda: earlier is None or earlier in self.answered, WAIT_SECONDS)
            first = self.first.get(subject_of(request))
            if first and in_time:
                return first.pop(0)
        replies = [one["reply"] for one in RECORDED if one["request"] == request]
        if path != "/v1/chat/completions" or not replies or not in_time:
            self.unrecorded.append((path, request))
            return 404, b"nothing is recorded for this request"
        return 200, json.dumps(replies[0]).encode()

    def has_answered(self, request: dict[str, Any]) -> None:
        with self._changed:
            self.answered.append(subject_of(request))
            self._changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = self.server.answer(self.path, self.headers, request)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.has_answered(request)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked is in `requests`."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", API_KEY + "\n")  # as it comes from a file
        monkeypatch.setenv("OPENAI_MODEL", "recorded-1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield endpoint
        endpoint.shutdown()
        thread.join(WAIT_SECONDS)
    assert endpoint.unrecorded == []


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again, is at once."""
    decide = RetryPolicy.pause_seconds
    monkeypatch.setattr(RetryPolicy, "pause_seconds", lambda *given: None if decide(*given) is None else 0.0)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("research_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(example: ModuleType) -> Iterator[Engine]:
    with Engine(example.graph, "memory://") as engine:
        yield engine


def finished(engine: Engine, given: dict[str, Any]) -> Run:
    """A run that has ended well."""
    run = engine.submit(given)
    run.result(WAIT_SECONDS)
    return run


def failure(engine: Engine, given: dict[str, Any]) -> NodeFailedError:
    with pytest.raises(NodeFailedError) as caught:
        engine.submit(given).result(WAIT_SECONDS)
    return caught.value


def state_hash(run: Run) -> str:
    return run.history()[-1].state_hash


def nodes(run: Run) -> list[list[str]]:
    """What ran, step by step."""
    return [[task.node_id for task in step.tasks] for step in run.history()[1:]]


def asked(run: Run) -> list[str]:
    return [note["question"] for note in run.state()["notes"]]


def recorded_answer(topic: str) -> str:
    """What the last request about a topic was answered."""
    contents = [one["reply"]["choices"][0]["message"]["content"] for one in RECORDED if subject_of(one["request"]) == topic]
    return str(contents[-1]).strip()


def test_a_run_plans_searches_fills_the_gap_and_writes(endpoint: Endpoint, engine: Engine) -> None:
    run = finished(engine, TIDES)

    assert nodes(run) == [["plan"], ["search"] * 3, ["critique"], ["search"], ["critique"], ["write"]]
    assert run.state()["answer"] == recorded_answer(TIDES["topic"])
    assert run.state()["answer"].startswith("# Why some tides are higher than others\n")
    assert run.state()["rounds"] == 2


def test_each_reply_leaves_an_event_with_what_it_cost(endpoint: Endpoint, engine: Engine) -> None:
    run = finished(engine, RIVER)

    events = run.backend.reader.events(run.run_id)
    usages = [one["reply"]["usage"] for one in RECORDED if one["request"] in endpoint.requests]
    assert [json.loads(event.data)["usage"] for event in events if event.type == "completion"] == usages


def test_two_runs_end_in_the_same_state(endpoint: Endpoint, example: ModuleType, engine: Engine) -> None:
    # given a run with many slots
    run = finished(engine, TIDES)

    # when another has one slot
    with Engine(example.graph, "memory://", with_max_concurrent(1)) as slow:
        hashes = [step.state_hash for step in finished(slow, TIDES).history()]

    # then the states are the same, step by step
    assert hashes == [step.state_hash for step in run.history()]


def test_another_process_ends_in_the_same_state(endpoint: Endpoint, engine: Engine, tmp_path: Path) -> None:
    run = finished(engine, TIDES)

    # when the command line runs it, as the top of the example says
    program = "from lockstep.cli import main; main(prog_name='lockstep')"
    command = [sys.executable, "-c", program, "run", f"{EXAMPLE}:graph", "--input", json.dumps(TIDES), "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)

    assert json.loads(done.stdout)["state_hash"] == state_hash(run)


def test_notes_are_in_the_order_of_the_questions_not_of_the_answers(endpoint: Endpoint, engine: Engine) -> None:
    # given an undisturbed run
    undisturbed = finished(engine, TIDES)

    # when each question is answered only after the one that follows it
    endpoint.only_after = dict(itertools.pairwise(FIRST_ROUND))
    endpoint.answered.clear()
    run = finished(engine, TIDES)

    # then the answers came in reverse order, and the notes did not
    assert [subject for subject in endpoint.answered if subject in FIRST_ROUND] == FIRST_ROUND[::-1]
    assert asked(run) == [*FIRST_ROUND, GAP]
    assert state_hash(run) == state_hash(undisturbed)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_retried_and_leaves_no_trace_in_the_state(endpoint: Endpoint, engine: Engine, status: int) -> None:
    # given an undisturbed run
    undisturbed = finished(engine, TIDES)

    # when the endpoint fails twice on one of the questions
    endpoint.first[FIRST_ROUND[1]] = [(status, b'{"error": {"message": "overloaded"}}')] * 2
    run = finished(engine, TIDES)

    # then that question alone was asked again, and the state is the same
    assert [task.attempt for task in run.history()[2].tasks] == [1, 3, 1]
    assert state_hash(run) == state_hash(undisturbed)


def test_an_answer_that_is_not_the_json_asked_for_is_asked_for_again(endpoint: Endpoint, engine: Engine) -> None:
    endpoint.first[TIDES["topic"]] = [(200, completion("Happy to help!")), (200, b"<html>"), (200, completion(None))]

    run = finished(engine, TIDES)

    assert [task.attempt for task in run.history()[1].tasks] == [4]
    assert run.state()["answer"] == recorded_answer(TIDES["topic"])


def test_a_model_that_never_answers_with_json_fails_the_node(endpoint: Endpoint, engine: Engine) -> None:
    endpoint.first[TIDES["topic"]] = [(200, completion("Happy to help!"))] * 4

    error = failure(engine, TIDES)

    assert (error.node_id, error.error_type, error.attempt) == ("plan", "Unanswered", 4)
    assert """was asked for {"questions": ["..."]}, but answered 'Happy to help!'""" in str(error)


@pytest.mark.parametrize(
    ("answer", "error_type", "attempts", "quoted"),
    [
        ((200, b"<html>a portal</html>"), "Unanswered", 4, "answered 200, but with no completion: '<html>a portal</html>'"),
        ((200, b"[]"), "Unanswered", 4, "answered 200, but with no completion: '[]'"),
        ((200, completion(" ")), "Unanswered", 4, "answered 200, but with no completion: "),
        ((500, b"out of order"), "Unanswered", 4, "answered 500: 'out of order'"),
        ((401, b"no such key"), "EndpointError", 1, "answered 401: 'no such key'"),
        ((404, b"no such model" + b"." * 5000), "EndpointError", 1, f"answered 404: 'no such model{'.' * 287}'"),
    ],
    ids=["no JSON", "no completion", "no text", "a lasting fault", "a refusal", "a long refusal"],
)
def test_a_bad_answer_fails_the_node_and_is_quoted(
    endpoint: Endpoint, engine: Engine, answer: Answer, error_type: str, attempts: int, quoted: str
) -> None:
    endpoint.first[FIRST_ROUND[1]] = [answer] * 4

    error = failure(engine, TIDES)

    assert (error.node_id, error.error_type, error.attempt) == ("search", error_type, attempts)
    assert f"{os.environ['OPENAI_BASE_URL']}/chat/completions {quoted}" in str(error)


def test_an_endpoint_that_is_not_there_fails_the_node(
    endpoint: Endpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")

    error = failure(engine, TIDES)

    assert (error.node_id, error.error_type, error.attempt) == ("plan", "Unanswered", 4)
    assert "http://127.0.0.1:1/chat/completions does not answer: " in str(error)


def test_the_loop_ends_at_its_bound(endpoint: Endpoint, engine: Engine) -> None:
    # given a critique that is never satisfied: the recorded one always has a question more
    run = finished(engine, RIVER)

    # then it was asked between the two rounds, not after the last
    assert nodes(run) == [["plan"], ["search"], ["critique"], ["search"], ["critique"], ["write"]]
    assert run.state()["rounds"] == 2
    assert len(endpoint.requests) == 5
    assert run.state()["answer"] == recorded_answer(RIVER["topic"])


def test_an_attempt_has_an_idempotency_key_of_its_own(endpoint: Endpoint, engine: Engine) -> None:
    # given a question that is answered on the second attempt
    endpoint.first[FIRST_ROUND[0]] = [(500, b"")]
    finished(engine, TIDES)

    # when the keys are read
    keys = {
        (subject_of(request), headers["Idempotency-Key"])
        for request, headers in zip(endpoint.requests, endpoint.headers, strict=True)
    }

    # then no two requests share one, and those of one item differ in their attempt alone
    assert len({key for _, key in keys}) == len(endpoint.requests)
    [one, other] = sorted(key for subject, key in keys if subject == FIRST_ROUND[0])
    assert (one.removesuffix("-1"), "-1", "-2") == (other.removesuffix("-2"), one[-2:], other[-2:])


def test_the_api_key_is_sent_and_never_stored(endpoint: Endpoint, example: ModuleType, tmp_path: Path) -> None:
    # given a run that succeeds and one that fails
    with Engine(example.graph, f"sqlite:///{tmp_path}/runs.db") as engine:
        finished(engine, RIVER)
        endpoint.first[TIDES["topic"]] = [(401, b"no")]
        failure(engine, TIDES)

    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {API_KEY}"}
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"spring tides" not in stored and b"the Nile" in stored
    assert API_KEY.encode() not in stored


def test_without_a_key_no_authorization_is_sent(endpoint: Endpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")

    finished(engine, RIVER)

    assert [headers["Authorization"] for headers in endpoint.headers] == [None] * 5


def test_an_input_without_a_topic_says_so(endpoint: Endpoint, engine: Engine) -> None:
    with pytest.raises(StateError, match="topic"):
        engine.submit({}).result(WAIT_SECONDS)

    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("answer", "questions"),
    [
        ('{"questions": ["a?", "b?"]}', ["a?", "b?"]),
        ('Here you are:\n```json\n{"questions": ["a?"]}\n```\nAnything else?', ["a?"]),
        ('{"questions": [" a? ", "", "a?", "b?"], "reason": "{}"}', ["a?", "b?"]),
        ('{"questions": ["1", "2", "3", "4", "5", "6"]}', ["1", "2", "3", "4"]),
        ('{"questions": []}', []),
    ],
)
def test_questions_are_read_with_what_a_model_puts_around_them(example: ModuleType, answer: str, questions: list[str]) -> None:
    assert example.questions_in(answer) == questions


@pytest.mark.parametrize("answer", ["", "no", "{", '["a?"]', '{"questions": "a?"}', '{"questions": [1]}', '{"question": []}'])
def test_other_answers_hold_no_questions(example: ModuleType, answer: str) -> None:
    with pytest.raises(example.Unanswered, match="the model was asked for"):
        example.questions_in(answer)
