"""A process of its own that says that its worker is alive: `python -m lockstep.broker.beat`, with a `Beat` as JSON on stdin.

A node may hold the interpreter's lock for minutes; this process goes on meanwhile. It ends when stdin does, and so with the
worker, however that ends; and while the worker is stopped by a signal, it says nothing.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import redis
from redis.exceptions import RedisError

from lockstep.broker.connection import connect
from lockstep.broker.names import Names, rq_now
from lockstep.broker.presence import BEAT_SECONDS, PRESENCE_TTL_SECONDS, WorkerInfo
from lockstep.broker.scripts import BEAT

RQ_WORKER_TTL_SECONDS = 15
"""How long RQ's tools show a worker that has died without a word."""


class Beat(msgspec.Struct, frozen=True):
    """What the process has to know."""

    url: str
    namespace: str
    info: WorkerInfo


def start_beating(url: str, namespace: str, info: WorkerInfo) -> subprocess.Popen[bytes]:
    """Start the process; closing its stdin ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lockstep.broker.beat"],
        stdin=subprocess.PIPE,
        # Ctrl-C in a terminal is for the worker, which has to finish first.
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(Beat(url, namespace, info)) + b"\n")
    process.stdin.flush()
    return process


def say_alive(client: redis.Redis, names: Names, info: WorkerInfo) -> None:
    """One beat."""
    keys = (names.beats, names.worker(info.name), names.claims(info.name), names.rq_worker(info.name), names.marker)
    description = msgspec.json.encode(info)
    arguments = (info.name, description, PRESENCE_TTL_SECONDS, uuid.uuid4().hex, rq_now(), RQ_WORKER_TTL_SECONDS)
    client.eval(BEAT, len(keys), *keys, *arguments)


def main() -> None:
    """Beat as long as the worker is there."""
    worker = os.getppid()
    # Who stops a service often tells all its processes, and the worker needs beats until it has finished.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    beat = msgspec.json.decode(sys.stdin.buffer.readline(), type=Beat)
    names, client = Names(beat.namespace), connect(beat.url)
    # A process that a node has forked may hold the other end of stdin open when the worker has died.
    while os.getppid() == worker:
        if not _is_stopped(worker):
            try:
                say_alive(client, names, beat.info)
            except (RedisError, OSError):
                client.close()  # The next beat connects anew; if none gets through, the worker counts as dead, as it should.
        readable, _, _ = select.select([sys.stdin], [], [], BEAT_SECONDS)
        if readable:
            return


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process, as far as the system tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    main()
