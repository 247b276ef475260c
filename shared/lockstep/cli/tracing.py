"""Where a command's spans go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from lockstep.config import Settings
from lockstep.telemetry.spans import Spans


@contextmanager
def open_spans(settings: Settings, role: str) -> Iterator[Spans | None]:
    """To the collector that the standard's variables name; None: they name none, and nothing is loaded for it."""
    if not settings.traces:
        yield None
        return
    from lockstep.telemetry.otel import export_by_environment

    with closing(export_by_environment(f"lockstep-{role}")) as spans:
        yield spans
