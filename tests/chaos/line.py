"""A line to a server, as bad as it is told to be: slow, stalled for a while, or cut."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

CHUNK_BYTES = 1 << 16
START_SECONDS = 10.0


class Line:
    """Forwards TCP connections to a port of this machine, from a thread of its own. `close` ends it."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._delay_seconds = 0.0
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_SECONDS)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:  # The server is away, and so is this end.
            writer.close()
            return
        self._connections |= {writer, server_writer}
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forward(reader, server_writer))
            group.create_task(self._forward(server_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # One of the two has ended the connection, or it was cut; the other is told so.
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
        self._connections.discard(writer)

    def slow(self, delay_seconds: float) -> None:
        """From now on, what is sent arrives so much later; 0: no more."""
        self._delay_seconds = delay_seconds

    def stall(self) -> None:
        """Hold everything back until `flow`. Nobody is told."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        """Let everything arrive that was held back."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def cut(self) -> None:
        """End all connections at once; new ones are taken."""
        self._call(self._cut())

    async def _cut(self) -> None:
        for writer in list(self._connections):
            writer.transport.abort()

    def close(self) -> None:
        """End the connections and the thread."""
        self.flow()
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        while others := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            await self._cut()
            await asyncio.wait(others, timeout=1.0)
