"""How a process that serves begins and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


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
