"""How a process that serves begins and ends."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable

GC_ALLOCATIONS = 50_000
"""Objects that are made before the youngest are searched for cycles; Python's default is 700."""


def run_until_signalled(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run in a thread until it ends; SIGTERM and SIGINT make it stop. Handlers do next to nothing: they may come anywhere."""
    signalled = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signalled.set())
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            failure.append(error)
        finally:
            signalled.set()

    thread = threading.Thread(target=guarded, name="lockstep-coordinator", daemon=True)
    thread.start()
    signalled.wait()
    stop()
    thread.join()
    if failure:
        raise failure[0]


def settle_garbage_collector() -> None:
    """Collect cycles rarely, and never look again at what was loaded until now.

    Serving makes very many short-lived objects and hardly any cycles; with Python's defaults, a third of a coordinator's time
    goes into looking for them among the runs that it holds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
