"""Schedules: made from a seed, executed, and, when one fails, made as short as it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from random import Random
from typing import Any
from unittest.mock import patch

import structlog
from tests.simulation.world import EVENTS, Violation, World

MIN_EVENTS, MAX_EVENTS, MAX_RUNS = 20, 120, 3
Event = tuple[str, int, int]


def schedule_of(seed: int) -> tuple[int, list[Event]]:
    """The number of runs and the events of a seed."""
    rng = Random(seed)
    names, weights = list(EVENTS), [weight for weight, _ in EVENTS.values()]
    count = rng.randint(MIN_EVENTS, MAX_EVENTS)
    return rng.randint(1, MAX_RUNS), [
        (name, rng.randrange(100), rng.randrange(100)) for name in rng.choices(names, weights, k=count)
    ]


def execute(runs: int, events: Sequence[Event], counts: Counter[str] | None = None) -> str | None:
    """What is violated in the course of a schedule; None: nothing."""
    world: World | None = None
    try:
        world = World(runs)
        with patch("lockstep_coordinator.loop.is_dead", world.dead.__contains__):
            for name, one, other in events:
                EVENTS[name][1](world, one, other)
            world.calm()
    except Violation as violation:
        return str(violation)
    finally:
        if counts is not None and world is not None:
            counts.update(world.counts)
            counts.update(name for name, _, _ in events)
    return None


def shrunk(runs: int, events: Sequence[Event]) -> list[Event]:
    """The events without those that the violation does not need: halves first, then smaller parts, then one by one."""
    kept, size = list(events), max(1, len(events) // 2)
    while size:
        start = 0
        while start < len(kept):
            shorter = [*kept[:start], *kept[start + size :]]
            if execute(runs, shorter) is not None:
                kept = shorter
            else:
                start += size
        size //= 2
    return kept


class Quiet:
    """Without the logs of what goes wrong on purpose."""

    def __enter__(self) -> Quiet:
        self._stack = ExitStack()
        before: dict[str, Any] = structlog.get_config()
        self._stack.callback(lambda: structlog.configure(**before))
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
