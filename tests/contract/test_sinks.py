"""The sinks: Redis Streams on a real server, webhooks to a real receiver, and code of the user's own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
from tests.servers import RedisServer

from lockstep import ConfigurationError, Observer, PublishError
from lockstep.broker import stream
from lockstep.broker.stream import RedisStreamSink
from lockstep.config import Settings
from lockstep.records import Event, PublishedEvent
from lockstep.sinks import open_sink, open_sinks
from lockstep.sinks.webhook import WebhookSink, retry_after


def event(sequence: int = 1, position: int = 0, run_id: str = "run-1", data: bytes = b'{"n":1}') -> PublishedEvent:
    inner = Event(
        run_id=run_id, sequence=sequence, position=position, step_id=sequence - 1, node_id="work", type="found", data=data
    )
    return PublishedEvent(graph="research", committed_at=1_700_000_000_000 + sequence, event=inner)


# Redis Streams.


class Streams:
    """A namespace on a real server, and what its streams hold."""

    def __init__(self, server: RedisServer) -> None:
        self.client = redis.Redis.from_url(server.url)
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.url = server.url
        self.sink = RedisStreamSink("redis", server.url, self.namespace)

    def key(self, run_id: str = "run-1") -> str:
        return f"{self.namespace}:events:{run_id}"

    def ids(self, run_id: str = "run-1") -> list[str]:
        entries: Any = self.client.xrange(self.key(run_id))
        return [entry_id.decode() for entry_id, _ in entries]

    def all_ids(self) -> list[str]:
        """The event ids in the stream of all runs, oldest first."""
        entries: Any = self.client.xrange(f"{self.namespace}:events")
        return [fields[b"event_id"].decode() for _, fields in entries]


@pytest.fixture
def streams(redis_server: RedisServer) -> Iterator[Streams]:
    streams = Streams(redis_server)
    yield streams
    streams.sink.close()
    for key in streams.client.scan_iter(f"{streams.namespace}:*"):
        streams.client.delete(key)
    streams.client.close()


def test_an_event_is_in_the_stream_of_its_run_and_in_that_of_all(streams: Streams) -> None:
    assert streams.sink.publish([event(1, 0), event(1, 1)]) == 2
    assert streams.sink.publish([event(1, 0, "run-2")]) == 1
    # given their ids, then a run's entries stand in the order of its commits
    assert streams.ids() == ["1-0", "1-1"]
    assert streams.all_ids() == ["run-1/1/0", "run-1/1/1", "run-2/1/0"]
    [(_, fields), _] = streams.client.xrange(streams.key())  # type: ignore[misc]
    assert fields == {
        b"event_id": b"run-1/1/0",
        b"graph": b"research",
        b"run_id": b"run-1",
        b"sequence": b"1",
        b"position": b"0",
        b"step_id": b"0",
        b"node_id": b"work",
        b"type": b"found",
        b"committed_at": b"1700000000001",
        b"data": b'{"n":1}',
    }
    # and the run's stream ends by itself
    assert 0 < streams.client.ttl(streams.key()) <= stream.RUN_STREAM_SECONDS  # type: ignore[operator]


def test_what_comes_again_is_there_once(streams: Streams) -> None:
    first, second, third = (event(n) for n in (1, 2, 3))
    streams.sink.publish([first, second])
    # when a relay died before it could mark them, and another one publishes them again, and more
    assert streams.sink.publish([first, second, third]) == 3
    assert streams.ids() == ["1-0", "2-0", "3-0"]
    assert streams.all_ids() == ["run-1/1/0", "run-1/2/0", "run-1/3/0"]


def test_after_redis_has_lost_everything_events_go_on(streams: Streams) -> None:
    streams.sink.publish([event(1), event(2)])
    streams.client.delete(streams.key())
    assert streams.sink.publish([event(2), event(3)]) == 2
    assert streams.ids() == ["2-0", "3-0"]


def test_what_was_trimmed_counts_as_published(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RUN_STREAM_ENTRIES", 2)
    streams.sink.publish([event(n) for n in (1, 2, 3)])
    assert streams.ids() == ["2-0", "3-0"]
    assert streams.sink.publish([event(1)]) == 1
    assert streams.ids() == ["2-0", "3-0"]


@pytest.mark.parametrize("foreign", ["the same id", "a higher id"])
def test_another_runs_stream_is_not_taken_for_this_ones(streams: Streams, foreign: str) -> None:
    # given a stream that a deleted run of this name has left, most likely
    streams.client.xadd(streams.key(), {"event_id": "other"}, id="2-0" if foreign == "the same id" else "7-0")
    # when events are published, then what goes in goes in, and the rest is refused for good
    with pytest.raises(PublishError, match="delete the stream") as caught:
        streams.sink.publish([event(1), event(2)] if foreign == "a higher id" else [event(2)])
    assert caught.value.permanent
    assert caught.value.arrived == 0
    assert streams.all_ids() == []


def test_a_redis_without_memory_is_asked_again_later(streams: Streams) -> None:
    server = RedisServer("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    sink = RedisStreamSink("redis", server.url, "full")
    try:
        with pytest.raises(PublishError, match="no memory") as caught:
            for n in range(1, 100):
                sink.publish([event(n, data=json.dumps("x" * 100_000).encode())])
        assert not caught.value.permanent
    finally:
        sink.close()
        server.stop()


# Webhooks.


class Receiver(ThreadingHTTPServer):
    """Takes POSTs and answers as it is told: each answer once, then 204."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=lambda: self.serve_forever(poll_interval=0.01))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?token=secret"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.posts.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        status, headers = self.server.answers.pop(0) if self.server.answers else (204, {})
        self.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def webhook(receiver: Receiver) -> Iterator[Callable[..., WebhookSink]]:
    opened: list[WebhookSink] = []

    def open_webhook(secret: str | None = None, url: str | None = None) -> WebhookSink:
        opened.append(WebhookSink("webhook", url or receiver.url, secret))
        return opened[-1]

    yield open_webhook
    for sink in opened:
        sink.close()


@pytest.mark.parametrize(
    ("secret", "key"),
    [("plain words", b"plain words"), ("whsec_" + base64.b64encode(b"\x01\x02 key").decode(), b"\x01\x02 key")],
)
def test_a_post_is_signed(receiver: Receiver, webhook: Callable[..., WebhookSink], secret: str, key: bytes) -> None:
    assert webhook(secret).publish([event(1), event(2, 1)]) == 2
    assert [json.loads(body)["event_id"] for _, _, body in receiver.posts] == ["run-1/1/0", "run-1/2/1"]
    for path, headers, body in receiver.posts:
        assert path == "/hook?token=secret"
        assert headers["content-type"] == "application/json"
        # given what a receiver computes by itself, then it is what the header says
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert headers["webhook-id"] == json.loads(body)["event_id"]
    assert json.loads(receiver.posts[0][2])["data"] == {"n": 1}


def test_without_a_secret_nothing_is_signed(receiver: Receiver, webhook: Callable[..., WebhookSink]) -> None:
    webhook().publish([event()])
    [(_, headers, _)] = receiver.posts
    assert "webhook-signature" not in headers


@pytest.mark.parametrize("status", [302, 400, 401, 404, 410, 429, 500, 503])
def test_a_refused_post_says_how_many_arrived_and_is_tried_again(
    receiver: Receiver, webhook: Callable[..., WebhookSink], status: int
) -> None:
    receiver.answers = [(204, {}), (status, {"retry-after": "7", "location": "/elsewhere"})]
    sink = webhook()
    with pytest.raises(PublishError, match=f"answers {status}") as caught:
        sink.publish([event(1), event(2), event(3)])
    assert (caught.value.arrived, caught.value.permanent, caught.value.retry_after_seconds) == (1, None, 7.0)
    assert "secret" not in str(caught.value)
    # and the next attempt gets through
    assert sink.publish([event(2), event(3)]) == 2
    assert [json.loads(body)["sequence"] for _, _, body in receiver.posts] == [1, 2, 2, 3]


def test_a_receiver_that_is_not_there_is_named_without_its_secrets(webhook: Callable[..., WebhookSink]) -> None:
    sink = webhook(url="http://user:password@127.0.0.1:1/hook?token=secret")
    with pytest.raises(PublishError, match=r"127\.0\.0\.1:1") as caught:
        sink.publish([event()])
    assert caught.value.arrived == 0
    assert "secret" not in str(caught.value) and "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("12", 12.0), ("999999999999", 3600.0), ("soon", None), ("-3", None)],
)
def test_how_long_a_receiver_wants_to_be_left_alone(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 0.0) == seconds


def test_a_date_to_come_back_at() -> None:
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 10.0) == 50.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 100.0) == 0.0


# Code of the user's own.


class Collecting(Observer):
    def __init__(self) -> None:
        self.seen: list[PublishedEvent] = []

    def observe(self, event: PublishedEvent) -> None:
        if event.event.sequence == 3:
            raise ValueError("three")
        self.seen.append(event)


def test_an_observer_gets_events_until_it_raises() -> None:
    observer = Collecting()
    sink = open_sink("mine.py:observer", Settings(), lambda reference: observer)
    events = [event(n) for n in (1, 2, 3, 4)]
    with pytest.raises(PublishError, match=r"Collecting.observe raised ValueError: three") as caught:
        sink.publish(events)
    assert caught.value.arrived == 2
    assert observer.seen == events[:2]
    assert sink.name == "mine.py:observer"


# Naming sinks.


def test_sinks_are_named_by_their_kind_or_as_one_likes() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0")
    sinks = open_sinks(["redis", "log", "webhook:http://h/x", "audit=webhook:https://h/y"], settings, lambda _: None)
    assert [sink.name for sink in sinks] == ["redis", "log", "webhook", "audit"]
    for sink in sinks:
        sink.close()


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        (["log", "log"], "two sinks have the name log"),
        (["kafka"], "no sink 'kafka'"),
        (["webhook:nonsense"], "needs a URL"),
        (["webhook:ftp://h/x"], "needs a URL"),
        (["redis"], "LOCKSTEP_REDIS_URL"),
        (["a.py:thing"], "observe"),
        ([""], "empty"),
    ],
)
def test_what_is_no_sink_is_said(specs: list[str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        open_sinks(specs, Settings(), lambda _: object())
    assert caught.value.option in ("sinks", "redis")
