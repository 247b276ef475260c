"""Whether loops still turn."""

from __future__ import annotations

import time
from collections.abc import Sequence

ALIVE_SECONDS = 30.0
"""How long a loop may take for a turn before it counts as wedged. Idle loops turn every second."""


class Pulse:
    """When a loop has turned last. A turn may take `patience_seconds` longer than others do."""

    def __init__(self, patience_seconds: float = 0.0) -> None:
        self._last = time.monotonic()
        self._patience_seconds = patience_seconds

    def beat(self) -> None:
        """It turns."""
        self._last = time.monotonic()

    def trouble(self) -> str | None:
        """Why the process is not alive; None: it is."""
        since = time.monotonic() - self._last
        allowed = ALIVE_SECONDS + self._patience_seconds
        return None if since < allowed else f"its loop has not turned for {since:.0f} s"


class Pulses:
    """Several loops of one process."""

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self._pulses = pulses

    def trouble(self) -> str | None:
        """Of the first that has one."""
        return next((trouble for pulse in self._pulses if (trouble := pulse.trouble()) is not None), None)
