"""What processes count, without knowing who reads it: plain numbers, which cost nothing to keep."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

import msgspec

from lockstep.costs import Usage, total

MAX_MODELS = 100
"""Models that are counted by name; what comes after them counts as `other`. Names are nodes' own, and labels have a bound."""

OTHER = "other"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MILLISECONDS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
RUNS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Distribution:
    """How many values were at most each bound, and their sum: what a Prometheus histogram is made of."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counts(msgspec.Struct):
    """What a coordinator has counted since it started."""

    backpressure_events: int = 0
    """Items that found their queue full; each counts once, however long it waits."""
    quarantined: int = 0
    """Messages that could not be used."""
    retries: int = 0
    """Attempts that were followed by another one."""
    ended: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    """Runs that ended, by status and the type of the error that ended them, "" for none."""
    conflicts: int = 0
    """Steps in which several items wrote one field, and that failed their runs."""
    dropped_results: int = 0
    """Results that came too late to matter: of a run that had ended, or of an item that had one."""
    redeliveries: int = 0
    """Tasks that were handed out again because their worker died, or Redis had forgotten them."""
    refused_commits: int = 0
    """Transitions that were not stored because somebody else had moved the run: this coordinator was a zombie."""
    takeovers: int = 0
    """Partitions that came from another owner, or from none."""
    lost_leases: int = 0
    """Leases that were taken away."""
    store_errors: int = 0
    """Times that the database did not answer, or refused."""
    redis_errors: int = 0
    """Times that Redis did not answer, or refused."""
    tokens: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    """Tokens that models used, by model and direction: in, out."""
    cost_usd: dict[str, Decimal] = msgspec.field(default_factory=dict)
    """What that cost, by model."""
    unpriced: Counter[str] = msgspec.field(default_factory=Counter)
    """Calls without a price, by model."""
    step_ms: Distribution = msgspec.field(default_factory=lambda: Distribution(MILLISECONDS))
    """From the commit that made a step due to its own."""
    merge_seconds: Distribution = msgspec.field(default_factory=lambda: Distribution(SECONDS))
    """Merging the results of a step, and finding what comes next."""
    commit_seconds: Distribution = msgspec.field(default_factory=lambda: Distribution(SECONDS))
    """A transaction, its round trips included."""
    commit_runs: Distribution = msgspec.field(default_factory=lambda: Distribution(RUNS))
    """Runs in a transaction."""

    def use(self, usage: Iterable[Usage]) -> None:
        """Count calls to models."""
        for one in usage:
            known = one.model in self.cost_usd or len(self.cost_usd) < MAX_MODELS
            model = one.model if known else OTHER
            self.tokens[model, "in"] += one.tokens_in or 0
            self.tokens[model, "out"] += one.tokens_out or 0
            self.cost_usd[model] = total([self.cost_usd.get(model, Decimal(0)), one.cost or Decimal(0)])
            self.unpriced[model] += one.cost_usd is None
