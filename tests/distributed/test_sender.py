"""A worker's results: kept until they are stored, and sent again when Redis has forgotten them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from tests.servers import RedisServer

import lockstep_worker.sender
from lockstep.broker.presence import WorkerInfo
from lockstep.broker.worker import WorkerLink
from lockstep.records import Chunk, TaskResult
from lockstep.wire import decode_chunk, decode_results
from lockstep_worker.sender import Outgoing, ResultSender

PATIENCE_SECONDS = 30.0


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Sending:
    """A sender, and what it has left in Redis. `refusals` are the errors that saying the claims meets next."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)
        info = WorkerInfo(name="w", host="h", pid=1, slots=1, queues=("default",), graphs=())
        self.link = WorkerLink(url, uuid.uuid4().hex, info)
        self.refusals: list[Exception] = []
        self.claims_said = 0
        self.forget("first")
        self.failures: list[Exception] = []
        self.sender = ResultSender(self.link, self._say_claims, self.failures.append)

    def _say_claims(self) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.claims_said += 1

    def forget(self, marker: str) -> None:
        """Redis loses its memory, and somebody notices."""
        with self.redis.pipeline() as pipe:
            pipe.flushall()
            pipe.set(self.link.names.marker, marker)
            pipe.execute()

    def put(self, path: bytes) -> None:
        result = TaskResult(run_id="run", path=path, delivery=1, outcome=b"{}")
        self.sender.put(Outgoing("p", result, []))

    def stored(self) -> None:
        """The coordinator has stored what there is."""
        stream = self.link.names.results("p")
        entries: Any = self.redis.xrange(stream)
        self.redis.xdel(stream, *[entry_id for entry_id, _ in entries])

    def sent(self) -> list[bytes]:
        entries: Any = self.redis.xrange(self.link.names.results("p"))
        return [result.path for _, fields in entries for result in decode_results(fields[b"results"])]

    def close(self) -> None:
        self.sender.close()
        self.link.close()
        self.redis.close()


@pytest.fixture
def sending(redis_server: RedisServer) -> Iterator[Sending]:
    sending = Sending(redis_server.url)
    # It knows the marker when it has sent something.
    sending.put(b"begin")
    until(lambda: sending.sent() == [b"begin"])
    sending.stored()
    until(lambda: not sending.sender._kept_answers)
    yield sending
    sending.close()


def test_results_are_sent_again_as_often_as_redis_forgets_them(sending: Sending) -> None:
    # given a result that nobody has stored
    sending.put(b"one")
    until(lambda: sending.sent() == [b"one"])
    # when Redis forgets it again and again, then it is there again, and so are the claims
    for times in range(1, 4):
        sending.forget(f"marker {times}")
        until(lambda: sending.sent() == [b"one"])
        assert sending.claims_said == times
    # and when it is stored, it is forgotten here, too
    sending.stored()
    until(lambda: not sending.sender._kept_answers)
    sending.forget("last")
    until(lambda: sending.claims_said == 4)
    assert sending.sent() == []


def test_what_could_not_be_said_again_is_tried_again(sending: Sending) -> None:
    # given a result that nobody has stored, and a Redis that has forgotten it and answers now and then
    sending.put(b"one")
    until(lambda: sending.sent() == [b"one"])
    sending.refusals = [redis.ConnectionError("gone"), redis.TimeoutError("slow")]
    sending.forget("second")
    # when the next result is sent just then
    sending.put(b"two")
    # then all is said in the end
    until(lambda: set(sending.sent()) == {b"one", b"two"})
    assert sending.claims_said == 1
    # and the sender knows that nothing waits
    assert sending.sender.flush(PATIENCE_SECONDS)
    sending.stored()
    until(lambda: not sending.sender._kept_answers)
    assert not sending.sender._unsent


def test_what_ends_the_thread_is_told(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an error that nobody has foreseen
    error = RuntimeError("planted")

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(sending.link, "send", broken)
    # when a result is to be sent, then the worker learns that nothing will be sent any more
    sending.put(b"one")
    until(lambda: sending.failures == [error])


def chunk(number: int) -> Chunk:
    place = {"run_id": "run", "step_id": 1, "node_id": "n", "path": bytes(32), "attempt": 1, "delivery": 1, "execution": "e"}
    return Chunk(**place, number=number, data=b"%d" % number)


def test_chunks_come_before_the_result_that_follows_them(sending: Sending) -> None:
    for number in range(3):
        sending.sender.stream(chunk(number))
    sending.put(b"a")
    until(lambda: sending.sent() == [b"a"])
    entries: Any = sending.redis.xrange(sending.link.names.live("run"))
    assert [decode_chunk("run", fields[b"chunk"]) for _, fields in entries] == [chunk(number) for number in range(3)]
    assert sending.sender.dropped_chunks == 0


def test_chunks_that_cannot_be_sent_are_dropped_and_counted_and_results_are_kept(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a Redis that is away when chunks are sent, and more of them than may wait
    monkeypatch.setattr(lockstep_worker.sender, "MAX_CHUNKS", 2)
    stream, away = sending.link.stream, threading.Event()

    def refused(chunks: Sequence[Chunk]) -> None:
        if not away.is_set():
            away.wait(PATIENCE_SECONDS)
            raise redis.exceptions.ConnectionError("away")
        stream(chunks)

    monkeypatch.setattr(sending.link, "stream", refused)
    sending.sender.stream(chunk(0))
    until(lambda: sending.sender._chunks == 0)
    for number in range(1, 5):
        sending.sender.stream(chunk(number))
    sending.put(b"a")
    away.set()
    # then what there is no room for is lost, what follows is not, and all of it is counted
    until(lambda: sending.sent() == [b"a"])
    entries: Any = sending.redis.xrange(sending.link.names.live("run"))
    assert [decode_chunk("run", fields[b"chunk"]).number for _, fields in entries] == [1, 2]
    assert sending.sender.dropped_chunks == 3
    assert sending.failures == []
