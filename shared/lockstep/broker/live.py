"""What nodes stream while they run: past the store, bounded, gone after a while, and in nobody's way."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from lockstep.broker.connection import connect, translated
from lockstep.broker.names import Names
from lockstep.records import Chunk
from lockstep.wire import decode_chunk

CHUNKS_PER_RUN = 10_000
"""Chunks of a run that are kept; a reader that is slower than that misses some, and is told so."""
CHUNKS_SECONDS = 3600
"""How long the chunks of a run are kept in Redis after its last one."""
RUNS_KEPT = 1000
"""Runs whose chunks an engine keeps in its memory: those that have streamed last."""
CHUNKS_PER_READ = 1000


class LiveHub:
    """The chunks of the runs of one engine. `on_chunk` is told the run."""

    def __init__(self, on_chunk: Callable[[str], None]) -> None:
        self._on_chunk = on_chunk
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, deque[tuple[int, Chunk]]] = OrderedDict()
        self._number = 0

    def put(self, chunk: Chunk) -> None:
        """A node has streamed something."""
        with self._lock:
            chunks = self._runs.setdefault(chunk.run_id, deque(maxlen=CHUNKS_PER_RUN))
            self._runs.move_to_end(chunk.run_id)
            self._number += 1
            chunks.append((self._number, chunk))
            if len(self._runs) > RUNS_KEPT:
                self._runs.popitem(last=False)
        self._on_chunk(chunk.run_id)

    def reader(self, run_id: str) -> HubReader:
        """For one reader of a run."""
        return HubReader(self, run_id)

    def after(self, run_id: str, number: int) -> list[tuple[int, Chunk]]:
        """The next chunks of a run."""
        with self._lock:
            newer = []
            for entry in reversed(self._runs.get(run_id, ())):
                if entry[0] <= number:
                    break
                newer.append(entry)
        return newer[::-1]


class HubReader:
    """A `LiveReader` of an engine's own runs. It never waits: the engine wakes who reads."""

    blocks = False

    def __init__(self, hub: LiveHub, run_id: str) -> None:
        self._hub = hub
        self._run_id = run_id

    def read(self, after: str, seconds: float) -> list[tuple[str, Chunk]]:
        return [(str(number), chunk) for number, chunk in self._hub.after(self._run_id, int(after or 0))]

    def close(self) -> None:
        pass


class RedisLiveReader:
    """A `LiveReader` of a run whose nodes stream through Redis."""

    blocks = True

    def __init__(self, url: str, namespace: str, run_id: str) -> None:
        self._url = url
        self._client = connect(url)
        self._stream = Names(namespace).live(run_id)
        self._run_id = run_id

    def read(self, after: str, seconds: float) -> list[tuple[str, Chunk]]:
        """Raises BrokerUnavailableError."""
        block = max(1, int(seconds * 1000)) if seconds > 0 else None
        with translated(self._url):
            answer: Any = self._client.xread({self._stream: after or "0"}, count=CHUNKS_PER_READ, block=block)
        entries = answer[0][1] if answer else []
        return [(entry_id.decode(), decode_chunk(self._run_id, fields[b"chunk"])) for entry_id, fields in entries]

    def close(self) -> None:
        self._client.close()
