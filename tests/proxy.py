"""A TCP proxy in front of a database server, which loses what a network may lose: a COMMIT, or the answer to one."""

from __future__ import annotations

import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import sqlalchemy as sa

CHUNK_BYTES = 1 << 16
PATIENCE_SECONDS = 30.0
"""After this long, a server that does not answer a COMMIT fails the test."""
COMMIT = re.compile(rb"(?<!AUTO)COMMIT")
"""A statement of a client's; AUTOCOMMIT is part of another one."""

Accident = Callable[["Connection"], bool]
"""What happens when a COMMIT is about to be sent, and all before it has been. False: the connection is cut."""


def cut_before(connection: Connection) -> bool:
    """The COMMIT is lost."""
    return False


def cut_after(connection: Connection) -> bool:
    """The COMMIT is done, its answer is lost."""
    connection.commit_and_wait()
    return False


class Proxy:
    """Forwards to the server of a database's URL. Each COMMIT meets with one of `accidents`, the oldest first."""

    def __init__(self, url: str) -> None:
        target = sa.make_url(url)
        assert target.host is not None
        self.target = (target.host, target.port or {"postgresql": 5432, "mysql": 3306}[target.get_backend_name()])
        self.names_answers = target.get_backend_name() == "postgresql"
        self.accidents: deque[Accident | None] = deque()
        self.happened = 0
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
                self._connections.append(Connection(self, client))

    def close(self) -> None:
        """End all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)
        self._listener.close()
        for connection in self._connections:
            connection.close()


class Connection:
    """A client's connection, and one to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = socket.create_connection(proxy.target)
        self._rest = b""
        self._answers_lost = False
        self._answered = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._forward, self._answer)]
        for thread in self._threads:
            thread.start()

    def _forward(self) -> None:
        with suppress(OSError):  # One of the two has ended the connection; the other is told so.
            while data := self._client.recv(CHUNK_BYTES):
                found = COMMIT.search(data)
                accident = self._proxy.accidents.popleft() if found and self._proxy.accidents else None
                if found is None or accident is None:
                    self._server.sendall(data)
                    continue
                self._server.sendall(data[: found.start()])
                self._rest = data[found.start() :]
                self._proxy.happened += 1
                if not accident(self):
                    break
                self._server.sendall(self._rest)
        self._cut()

    def commit_and_wait(self) -> None:
        """Let the server commit, and keep its answer."""
        self._answers_lost = True
        self._server.sendall(self._rest)
        assert self._answered.wait(PATIENCE_SECONDS), "the server does not answer the COMMIT"

    def _answer(self) -> None:
        lost = b""
        with suppress(OSError):
            while data := self._server.recv(CHUNK_BYTES):
                if not self._answers_lost:
                    self._client.sendall(data)
                    continue
                lost += data
                # PostgreSQL may still be answering what came before; its answer to a COMMIT names it. MySQL answers in turn.
                if COMMIT.search(lost) or not self._proxy.names_answers:
                    self._answered.set()
        self._cut()

    def _cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):  # It has ended already.
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection, and wait until that is done."""
        self._cut()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "a thread of the proxy does not end"
        self._client.close()
        self._server.close()
