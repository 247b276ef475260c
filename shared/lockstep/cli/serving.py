"""How a process that serves begins and ends."""

from __future__ import annotations

import gc
import signal
import threading
from typing import Protocol

GC_ALLOCATIONS = 50_000
"""Objects that are made before the youngest are searched for cycles; Python's default is 700."""


class Service(Protocol):
    """Something that serves."""

    def run(self) -> None:
        """Serve until `stop`."""

    def stop(self) -> None:
        """Make `run` return soon. May be called from any thread, and more than once."""


def run_until_signalled(*services: Service) -> None:
    """Run each in a thread until one ends; SIGTERM and SIGINT make all stop. Handlers do next to nothing: they may come
    anywhere."""
    signalled = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signalled.set())
    failures: list[BaseException] = []

    def guarded(service: Service) -> None:
        try:
            service.run()
        except BaseException as error:
            failures.append(error)
        finally:
            signalled.set()

    threads = [threading.Thread(target=guarded, args=[service], name="lockstep-service", daemon=True) for service in services]
    for thread in threads:
        thread.start()
    signalled.wait()
    for service in services:
        service.stop()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def settle_garbage_collector() -> None:
    """Collect cycles rarely, and never look again at what was loaded until now.

    Serving makes very many short-lived objects and hardly any cycles; with Python's defaults, a third of a coordinator's time
    goes into looking for them among the runs that it holds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
