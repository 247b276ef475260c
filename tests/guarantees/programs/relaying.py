"""Lets two relays at a time publish to a file, each of which kills itself between publishing and marking, so many times.

    relaying.py STORE_URL SINK KILLS FILE

A relay is a child without threads of its own that dies right after it has written an event, at a call by chance. The file's
lines are what has arrived, in order: event id, a tab, the event. When nothing waits any more, everything is published again. At
the end, relays that are left alone publish what is left. Prints how many relays have died.
"""

import os
import random
import signal
import sys
from collections.abc import Sequence

from lockstep.records import PublishedEvent
from lockstep.sinks.body import body_of
from lockstep.store import open_store, outbox
from lockstep_coordinator import relay

CALLS_TO_LIVE = 12
"""A relay dies at one of so many calls. With few events in each claim, it has marked some of them by then."""


class File:
    """A sink that takes one event at a time."""

    def __init__(self, name: str, file: str, calls_to_live: int) -> None:
        self.name = name
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._calls_to_live = calls_to_live

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        os.write(self._file, events[0].event_id.encode() + b"\t" + body_of(events[0]) + b"\n")
        self._calls_to_live -= 1
        if self._calls_to_live == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1

    def close(self) -> None:
        os.close(self._file)


def child(url: str, sink: str, file: str, calls_to_live: int) -> None:
    """Publish until nothing can be claimed."""
    outbox.EVENTS_PER_CLAIM = 5
    relay.RUNS_PER_CLAIM = 3
    # What the dead have claimed is free again soon.
    relay.CLAIM_SECONDS = 0.05
    store = open_store(url)
    running = relay.SinkRelay(store.outbox, File(sink, file, calls_to_live))
    while running.turn():
        pass
    store.close()


def start(url: str, sink: str, file: str, calls_to_live: int) -> int:
    """The process id of a child. This process has no threads and no connections, so forking is safe."""
    pid = os.fork()
    if pid:
        return pid
    try:
        child(url, sink, file, calls_to_live)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def waiting(url: str, sink: str, *, replay: bool) -> bool:
    """Whether anything waits; if nothing does, everything is published again, if so wanted."""
    store = open_store(url)
    try:
        if store.outbox.waiting(sink, limit=1):
            return True
        for row in store.find_runs(limit=1000) if replay else ():
            store.outbox.replay(sink, row.run_id)
        return False
    finally:
        store.close()


def main(url: str, sink: str, kills: int, file: str) -> None:
    chance = random.Random(kills)
    dead, idle = 0, 0
    alive: set[int] = set()
    while dead < kills:
        while len(alive) < 2:
            alive.add(start(url, sink, file, chance.randint(1, CALLS_TO_LIVE)))
        pid, status = os.wait()
        alive.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            sys.exit(code)
        dead += code == -signal.SIGKILL
        idle = idle + 1 if code == 0 else 0
        if idle > 4:
            waiting(url, sink, replay=True)
    for pid in alive:
        os.waitpid(pid, 0)
    while waiting(url, sink, replay=False):
        os.waitpid(start(url, sink, file, 0), 0)
    sys.stdout.write(f"{dead}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
