"""What a process answers over HTTP: /metrics for Prometheus, /livez and /readyz for whoever starts and stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from lockstep.errors import ConfigurationError

REQUEST_SECONDS = 10.0
"""How long a client may take to ask."""

TEXT = "text/plain; charset=utf-8"


Trouble = Callable[[], str | None]
"""Says what is wrong; None: nothing."""


class Server:
    """Answers on a port until the end of `with`; on port 0, nothing. Raises ConfigurationError for a taken port.

    `livez` says why the process should be started anew, `readyz` why it is of no use at the moment.
    """

    def __init__(self, port: int, collector: Collector, *, livez: Trouble, readyz: Trouble) -> None:
        self._server: ThreadingHTTPServer | None = None
        if port == 0:
            return
        registry = CollectorRegistry()
        registry.register(collector)
        pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/livez": lambda: _verdict(livez()),
            "/readyz": lambda: _verdict(readyz()),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                status, kind, body = page() if page is not None else (404, TEXT, b"/metrics, /livez, /readyz\n")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: probes come every few seconds."""

        try:
            self._server = ThreadingHTTPServer(("", port), Handler)
        except OSError as error:
            raise ConfigurationError(
                f"the metrics' port {port} cannot be opened ({error.strerror}); choose another with LOCKSTEP_METRICS_PORT "
                f"(an engine: metrics_port=), or 0 for none",
                option="metrics_port",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="lockstep-http", daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more. Idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


def _verdict(trouble: str | None) -> tuple[int, str, bytes]:
    return (200, TEXT, b"ok\n") if trouble is None else (503, TEXT, f"{trouble}\n".encode())
