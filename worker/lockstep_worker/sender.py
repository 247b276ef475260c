"""Sends results, and keeps each until the coordinator has stored it: Redis may lose it on the way."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from redis.exceptions import RedisError

from lockstep.broker.worker import Answer, SentEntry, WorkerLink
from lockstep.records import Chunk

CHECK_SECONDS = 1.0
"""How often the sender looks which results have been stored."""

RETRY_SECONDS = 0.5
"""The pause before a result is sent again that could not be sent."""

MAX_KEPT = 20_000
"""Results that are not known to be stored; with more, the worker takes no new tasks."""

MAX_CHUNKS = 10_000
"""Chunks that wait to be sent; nodes that stream more lose some."""

log = structlog.get_logger()


class Outgoing:
    """An answer on its way: to which partition, and which jobs it ends."""

    __slots__ = ("answer", "finished", "partition_id")

    def __init__(self, partition_id: str, answer: Answer, finished: Sequence[tuple[str, str]]) -> None:
        self.partition_id = partition_id
        self.answer = answer
        self.finished = finished


class ResultSender:
    """A thread that sends results in batches.

    `say_claims` repeats to Redis what this worker holds; `on_failure` is told what ends the thread, if that is not `close`.
    """

    def __init__(self, link: WorkerLink, say_claims: Callable[[], None], on_failure: Callable[[Exception], None]) -> None:
        self._link = link
        self._on_failure = on_failure
        self._say_claims = say_claims
        self._outbox: queue.SimpleQueue[Outgoing | Chunk | None] = queue.SimpleQueue()
        self._chunks = 0
        self.dropped_chunks = 0
        """Chunks that nodes have streamed faster than Redis takes them, or while it was away."""
        self._kept: dict[str, deque[tuple[bytes, Sequence[Answer]]]] = {}
        self._kept_answers = 0
        self._unsent = 0
        self._streamed: list[Chunk] = []
        self._marker = ""
        self._lock = threading.Lock()
        self._sent = threading.Condition(self._lock)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lockstep-results", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether so many results are kept that no new task should be taken."""
        return self._kept_answers + self._unsent >= MAX_KEPT

    def put(self, outgoing: Outgoing) -> None:
        """Send this soon."""
        with self._lock:
            self._unsent += 1
        self._outbox.put(outgoing)

    def stream(self, chunk: Chunk) -> None:
        """Send this soon, before results that come later; or drop it, if there are too many."""
        with self._lock:
            if self._chunks >= MAX_CHUNKS:
                self.dropped_chunks += 1
                return
            self._chunks += 1
        self._outbox.put(chunk)

    def flush(self, seconds: float) -> bool:
        """Wait until all results are sent; False: it takes longer."""
        with self._sent:
            return self._sent.wait_for(lambda: self._unsent == 0, seconds)

    def _run(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # of our own making: a worker whose results nobody sends must not go on
            self._on_failure(error)

    def _send_all(self) -> None:
        batch: list[Outgoing] = []
        next_check = time.monotonic() + CHECK_SECONDS
        while not self._closing.is_set():
            batch += self._gather(max(0.0, next_check - time.monotonic()) if not batch else 0.0)
            try:
                self._send_chunks()
                if batch:
                    marker = self._send(batch)
                    batch = []
                    self._compare(marker)
                if time.monotonic() >= next_check:
                    next_check = time.monotonic() + CHECK_SECONDS
                    self._check()
            except (RedisError, OSError) as error:
                log.warning("results cannot be sent now; they are kept", error=str(error), results=len(batch))
                self._closing.wait(RETRY_SECONDS)

    def _gather(self, seconds: float) -> list[Outgoing]:
        """All results that are there; waits for the first one at most this long."""
        batch: list[Outgoing] = []
        try:
            outgoing = self._outbox.get(timeout=seconds)
            while outgoing is not None:
                if isinstance(outgoing, Chunk):
                    self._streamed.append(outgoing)
                else:
                    batch.append(outgoing)
                outgoing = self._outbox.get_nowait()
        except queue.Empty:
            pass
        return batch

    def _send_chunks(self) -> None:
        """Send what nodes have streamed, once: it may get lost, and readers see that."""
        chunks, self._streamed = self._streamed, []
        if chunks:
            with self._lock:
                self._chunks -= len(chunks)
            try:
                self._link.stream(chunks)
            except (RedisError, OSError):
                self.dropped_chunks += len(chunks)
                raise

    def _send(self, batch: Sequence[Outgoing]) -> str:
        """Send these, and keep them; the server's marker."""
        answers: dict[str, list[Answer]] = {}
        for outgoing in batch:
            answers.setdefault(outgoing.partition_id, []).append(outgoing.answer)
        finished = [job for outgoing in batch for job in outgoing.finished]
        entries, marker = self._link.send(answers, finished)
        self._keep(entries)
        with self._sent:
            self._unsent -= len(batch)
            self._sent.notify_all()
        return marker

    def _keep(self, entries: Sequence[tuple[SentEntry, Sequence[Answer]]]) -> None:
        for entry, some in entries:
            self._kept.setdefault(entry.partition_id, deque()).append((entry.entry_id, some))
            self._kept_answers += len(some)

    def _check(self) -> None:
        """Forget the results that have been stored: their entries, and all older ones, are gone from the stream."""
        first, marker = self._link.first_entries([name for name, kept in self._kept.items() if kept])
        if marker != self._marker:
            # An entry may be gone because the server has lost it: what was read says nothing of what has been stored.
            self._compare(marker)
            return
        for partition_id, entry_id in first.items():
            kept = self._kept[partition_id]
            while kept and (entry_id is None or _number(kept[0][0]) < _number(entry_id)):
                self._kept_answers -= len(kept.popleft()[1])

    def _compare(self, marker: str) -> None:
        """When the server has lost its memory, say again what this worker holds, and send again what it keeps."""
        if not marker or marker == self._marker:
            return
        if self._marker:
            log.warning("Redis has lost its memory; claims and results are sent again")
            self._say_claims()
            answers = {name: [answer for _, some in entries for answer in some] for name, entries in self._kept.items()}
            entries, _ = self._link.send(answers, [])
            self._kept, self._kept_answers = {}, 0
            self._keep(entries)
        # Last: what could not be said now is said at the next opportunity.
        self._marker = marker

    def close(self) -> None:
        """Stop sending; what is not sent is lost, and its tasks are handed out again. Idempotent."""
        self._closing.set()
        self._outbox.put(None)
        self._thread.join()


def _number(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
