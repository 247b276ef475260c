"""`callback`: take answers to questions over HTTP, from whoever has the link."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import click
import structlog

from lockstep.callbacks import callback_token, is_callback_token
from lockstep.cli.options import redis_option, store_option
from lockstep.cli.serving import run_until_signalled
from lockstep.client import Client
from lockstep.config import read_settings
from lockstep.errors import ConfigurationError, LockstepError, RunNotFoundError

PORT = 9467
MAX_BODY_BYTES = 4 * 1024 * 1024
REQUEST_SECONDS = 10.0

log = structlog.get_logger()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(min=0, max=65_535), help="The port to listen at.")
@store_option
@redis_option
def callback(host: str, port: int, store: str | None, redis: str | None) -> None:
    """Take answers to runs' questions over HTTP: POST /runs/RUN_ID/answers/ID?token=TOKEN with JSON. Put TLS before it."""
    settings = read_settings(store=store, redis=redis)
    if settings.callback_key is None:
        raise ConfigurationError("no key for the tokens of links; set LOCKSTEP_CALLBACK_KEY", option="callback_key")
    callback_token(settings.callback_key, "", "")  # A key that is too short is to be known now.
    with Client(settings.store_url, redis_url=settings.redis_url, namespace=settings.namespace) as client:
        run_until_signalled(CallbackServer(client, settings.callback_key, host, port))


class CallbackServer:
    """Answers with 202 when an answer is on its way, 400 for what is no JSON, 403 for a wrong token, 404 for a question that
    nobody waits for, 413 for a body that is too long, 503 while the database is away."""

    def __init__(self, client: Client, key: str, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_POST(self) -> None:
                status, said = _answered(client, key, self)
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the path has the token."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigurationError(
                f"--port: {host}:{port} cannot be opened ({error.strerror}); choose another", option="port"
            ) from None

    def run(self) -> None:
        """Serve until `stop`."""
        log.info("taking answers", port=self._server.server_port)
        self._server.serve_forever()
        self._server.server_close()

    def stop(self) -> None:
        """Make `run` return; if that has not begun yet, at once when it does."""
        self._server.shutdown()


def _answered(client: Client, key: str, request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
    url = urlsplit(request.path)
    match url.path.split("/"):
        case ["", "runs", run, "answers", question]:
            run_id, question_id = unquote(run), unquote(question)
        case _:
            return 404, b"there is nothing here\n"
    [token] = parse_qs(url.query).get("token", [""])[:1]
    if not is_callback_token(key, run_id, question_id, token):
        return 403, b"the token is not that of this question\n"
    length = request.headers.get("Content-Length", "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return 413, b"the answer has no length, or is too long\n"
    try:
        answer = json.loads(request.rfile.read(int(length)))
        found = client.run(run_id)
        if question_id not in {asked.id for asked in found.interrupts()}:
            return 404, b"nobody waits for this answer any more\n"
        found.resume({question_id: answer})
    except ValueError:
        return 400, b"the answer is not JSON\n"
    except RunNotFoundError:
        return 404, b"nobody waits for this answer any more\n"
    except ConfigurationError as error:
        return 400, f"{error}\n".encode()
    except LockstepError as error:
        return 503, f"{type(error).__name__}; try again later\n".encode()
    return 202, b"taken\n"
