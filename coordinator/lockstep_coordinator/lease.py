"""A coordinator's right to write: renewed by a thread of its own, so that a long merge doesn't cost it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from lockstep.errors import StoreUnavailableError
from lockstep.ports import Store

LEASE_SECONDS = 8.0
"""How long a lease holds without being renewed; after that others may take over. They look every second and then have to load
the runs, and the next commit shall come within 10 s."""

RENEWALS_PER_LEASE = 4


class LeaseKeeper:
    """Holds a lease until `close`, and calls `on_loss` once if it is taken away."""

    def __init__(self, store: Store, on_loss: Callable[[], None], *, embedded: bool = True) -> None:
        self.lease_id = uuid.uuid4().hex
        self._store = store
        self._on_loss = on_loss
        self._closing = threading.Event()
        self._closed = False
        store.open_lease(self.lease_id, holder_name(), LEASE_SECONDS, embedded=embedded)
        self._thread = threading.Thread(target=self._renew, name="lockstep-lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._closing.wait(LEASE_SECONDS / RENEWALS_PER_LEASE):
            try:
                held = self._store.renew_lease(self.lease_id, LEASE_SECONDS)
            except StoreUnavailableError:
                continue  # The next transaction's fence finds out; until then trying again is all there is to do.
            if not held:
                self._on_loss()
                return

    def stop_renewing(self) -> None:
        """Let the lease run out."""
        self._closing.set()
        self._thread.join()

    def close(self) -> None:
        """Stop renewing and give the lease back. Idempotent; after a StoreUnavailableError, to be called again."""
        self.stop_renewing()
        if not self._closed:
            self._store.close_lease(self.lease_id)
            self._closed = True


def holder_name() -> str:
    """This process: where it runs, its process id, and when it started, as the system counts it."""
    pid = os.getpid()
    return f"{_place()}:{pid}:{_started(pid)}"


def is_dead(holder: str) -> bool:
    """Whether a holder is known to have died: a process of this place that is gone, or whose id another process has now.

    False also means "unknown". A wrong True costs the holder its lease but no data: the fence refuses its later commits.
    """
    place, pid, started = holder.rsplit(":", 2)
    return place == _place() and _started(int(pid)) != started


def _place() -> str:
    """Where process ids mean what they mean here. A host's name does not tell: containers may share it, and so may machines."""
    place = socket.gethostname()
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        place = f"{place}/{boot}/{os.readlink('/proc/self/ns/pid').strip('pid:[]')}"
    return place


def _started(pid: int) -> str:
    """The start time of a process in clock ticks since boot; "" if it has ended, "unknown" where there is no /proc."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie has ended; only its parent has not asked how.
        return "" if state in "ZX" else fields[18]
    except OSError:
        return "" if Path("/proc/self/stat").exists() or not _exists(pid) else "unknown"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
