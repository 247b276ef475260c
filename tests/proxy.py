"""A TCP proxy in front of a database server, which loses what a network may lose: a COMMIT, or the answer to one."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import sqlalchemy as sa

CHUNK_BYTES = 1 << 16
JOIN_SECONDS = 30.0
"""After this long, a thread that does not end fails the test. What passes never waits for it."""
COMMIT = b"COMMIT"

Accident = Literal["before", "after"]
"""The connection is lost before a COMMIT arrives, or after it was done and before its answer is back."""


class Proxy:
    """Forwards to the server of a database's URL. Each COMMIT that comes meets with one of `accidents`, the oldest first.

    `meanwhile` is called when a COMMIT was done whose answer will be lost.
    """

    def __init__(self, url: str) -> None:
        target = sa.make_url(url)
        assert target.host is not None
        self.target = (target.host, target.port or {"postgresql": 5432, "mysql": 3306}[target.get_backend_name()])
        is_postgres = target.get_backend_name() == "postgresql"
        # What a statement begins with tells it from the words AUTOCOMMIT and COMMITTED of others.
        self.commit = (b"\0" if is_postgres else b"\3") + COMMIT
        # MySQL's client sends nothing more before it has read an answer, so the next one is the COMMIT's.
        self.answer = COMMIT if is_postgres else b""
        self.accidents: deque[Accident | None] = deque()
        self.happened = 0
        self.away = False
        self.meanwhile: Callable[[], None] = lambda: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        proxied = target.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        self.url = proxied.render_as_string(hide_password=False)
        self._connections: list[Connection] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # The listener was shut down.
            while True:
                client, _ = self._listener.accept()
                if self.away:
                    client.close()
                    continue
                self._connections.append(Connection(self, client))

    def leave(self) -> None:
        """End all connections, and take none until `away` is False again."""
        self.away = True
        for connection in self._connections:
            connection.close()

    def close(self) -> None:
        """End all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(JOIN_SECONDS)
        self._listener.close()
        for connection in self._connections:
            connection.close()


class Connection:
    """A client's connection, and one to the server; a thread for each direction, neither of which waits for the other."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = socket.create_connection(proxy.target)
        self._last = b""
        self._answers_lost = False
        self._threads = [threading.Thread(target=work) for work in (self._ask, self._answer)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        commit, waiting = self._proxy.commit, b""
        with suppress(OSError):  # One of the two has ended the connection; the other is told so.
            while data := self._client.recv(CHUNK_BYTES):
                waiting += data
                while (place := (self._last + waiting).find(commit)) >= 0:
                    begins = place + 1 - len(self._last)
                    self._forward(waiting[:begins])
                    if self._meets_accident():
                        return self._cut()
                    self._forward(waiting[begins : begins + len(COMMIT)])
                    waiting = waiting[begins + len(COMMIT) :]
                # What may be the beginning of a COMMIT waits for the rest of it.
                ends = len(waiting) - next((n for n in range(len(COMMIT) - 1, 0, -1) if self._ends_with(waiting, n)), 0)
                self._forward(waiting[:ends])
                waiting = waiting[ends:]
        self._cut()

    def _ends_with(self, waiting: bytes, letters: int) -> bool:
        return (self._last + waiting).endswith(self._proxy.commit[: 1 + letters])

    def _forward(self, data: bytes) -> None:
        self._server.sendall(data)
        self._last = data[-1:] or self._last

    def _meets_accident(self) -> bool:
        """Whether the COMMIT that has come is lost."""
        accident = self._proxy.accidents.popleft() if self._proxy.accidents else None
        self._proxy.happened += accident is not None
        self._answers_lost = self._answers_lost or accident == "after"
        return accident == "before"

    def _answer(self) -> None:
        lost = b""
        with suppress(OSError):
            while data := self._server.recv(CHUNK_BYTES):
                if not self._answers_lost:
                    self._client.sendall(data)
                    continue
                lost += data  # PostgreSQL may still be answering what came before the COMMIT.
                if self._proxy.answer in lost:
                    self._proxy.meanwhile()
                    break
        self._cut()

    def _cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):  # It has ended already.
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection, and wait until that is done."""
        self._cut()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive(), "a thread of the proxy does not end"
        self._client.close()
        self._server.close()
