"""A clock that calls when the earliest of many deadlines has passed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

CLOSE_SECONDS = 1.0
"""How long `close` waits for the thread."""


class Watchdog:
    """A thread that calls `on_deadline` when the earliest watched deadline has passed; that returns the next one.

    Most tasks have the same timeout, so a later task has a later deadline and nobody is woken for it.
    """

    def __init__(self, on_deadline: Callable[[], float | None]) -> None:
        self._on_deadline = on_deadline
        self._earliest: float | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lockstep-watchdog", daemon=True)
        self._thread.start()

    def watch(self, deadline: float) -> None:
        """Make sure that the thread wakes by `deadline` (of time.perf_counter)."""
        if self._earliest is not None and self._earliest <= deadline:
            return
        with self._changed:
            if self._earliest is None or deadline < self._earliest:
                self._earliest = deadline
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (self._earliest is None or self._earliest > time.perf_counter()):
                    self._changed.wait(None if self._earliest is None else self._earliest - time.perf_counter())
                if self._closed:
                    return
                self._earliest = None
            following = self._on_deadline()
            if following is not None:
                self.watch(following)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS)
