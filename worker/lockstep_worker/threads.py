"""Where nodes run: daemon threads for sync ones, an event loop in a daemon thread for async ones."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from lockstep_worker.resources import LoopResources

log = structlog.get_logger()

Work = Callable[[], bool]
"""Something to do; it returns whether its thread may serve again."""


class DaemonThreads:
    """Runs work in threads that never keep the process from ending, unlike those of concurrent.futures. They are made when
    needed and reused; one whose node never returns is replaced.

    `after` is called by a thread each time it has become free.
    """

    def __init__(self, name: str, after: Callable[[], None]) -> None:
        self._name = name
        self._after = after
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        self._closed = False
        self._threads: set[threading.Thread] = set()

    def submit(self, work: Work) -> None:
        """Do this in a free thread, or in a new one."""
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.add(thread)
                thread.start()
        self._work.put(work)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None and work():
            with self._lock:
                if self._closed:
                    break
                self._free += 1
            self._after()
        with self._lock:
            self._threads.discard(threading.current_thread())

    def close(self, timeout_seconds: float) -> None:
        """End the free threads, waiting for them at most this long; the others end with their work, or with the process."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            free, self._free = self._free, 0
        for _ in range(free):
            self._work.put(None)
        if free == len(threads):
            for thread in threads:
                thread.join(timeout_seconds)


class EventLoop:
    """An event loop in a daemon thread, for async nodes."""

    def __init__(self) -> None:
        self.resources = LoopResources()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retired = False
        self._thread = threading.Thread(target=self._run, name="lockstep-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        try:
            self._loop.run_until_complete(self.resources.close())
        except Exception as error:  # of the user's; the others are closed all the same
            log.warning("resources of async nodes could not be closed", error=repr(error))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine on the loop."""
        self._loop.call_soon_threadsafe(self._create, coroutine)

    def _create(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._discard)

    def _discard(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._end_if_retired()

    def _end_if_retired(self) -> None:
        if self._retired and not self._tasks:
            self._loop.stop()

    def retire(self) -> None:
        """End the thread when the coroutines that it has are done."""
        self._retired = True
        self._loop.call_soon_threadsafe(self._end_if_retired)

    def close(self, timeout_seconds: float) -> None:
        """Cancel what runs and end the thread, waiting for it at most this long."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_seconds)
