"""The inside of a measurement: one process, one contender, one fresh store. Needs nothing that a peer's environment lacks."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from platform import python_version
from typing import Any

from tests.bench.contenders.meter import Meter
from tests.bench.shapes import SHAPES, Shape, State

THREADS = 8
"""From which runs are begun that are in flight together, whoever the contender is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure: `runs` runs of a shape, after `warm_up` others that don't count, `in_flight` at a time.

    Whatever is stored goes into `directory`, into the database `postgres`, or into `redis` under keys that begin with
    `namespace`; all three are this job's own.
    """

    shape: str
    parameters: dict[str, int]
    settings: dict[str, Any]
    in_flight: int
    warm_up: int
    runs: int
    directory: str
    postgres: str = ""
    redis: str = ""
    namespace: str = ""

    @property
    def shaped(self) -> Shape:
        return SHAPES[self.shape]

    @property
    def begin(self) -> State:
        """The state that each run begins with."""
        return self.shaped.begin(self.parameters)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was seen of all `runs` together: seconds by the clock, and until they were begun; seconds that all threads of this
    process and of those it started spent on a CPU; where Redis was used, how often each command was called there.

    `latency_ms` are percentiles of a step, where the contender knows them; `sql` is counted by whoever made the database, and
    `own_statements` are those in it that were sent for the benchmark alone, each a transaction.
    """

    runs: int
    seconds: float
    begin_seconds: float
    cpu_seconds: float
    versions: dict[str, str]
    redis_calls: dict[str, int] | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    sql: dict[str, int] = field(default_factory=dict)
    own_statements: int = 0


@dataclass(frozen=True)
class Runner:
    """A contender that is ready. `begin` begins a run under an id, from any thread, and returns a handle; what has no
    background carries the run out, and returns its end state. `ended` waits for the runs of some handles, and returns their
    end states in the same order; states that are not at hand may be read when they are looked at: the clock has stopped then.

    `latency_ms` tells what is stored of the runs whose ids begin with "run-", and `own_statements` how many SQL statements all
    this has sent beside the contender's.
    """

    begin: Callable[[str], Any]
    ended: Callable[[Sequence[Any]], Iterable[State]] = list
    latency_ms: Callable[[], dict[str, float]] = dict
    own_statements: Callable[[], int] = int


def measure(opened: Callable[[Job], AbstractContextManager[Runner]], packages: Sequence[str]) -> None:
    """Do the job given on the command line, and print the Measurement. An end state that is wrong ends the benchmark, however
    fast it came."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # So that what was opened is closed.
    job = Job(**json.loads(sys.argv[1]))
    with ExitStack() as stack:
        runner = stack.enter_context(opened(job))
        # One run at a time is begun here: no thread comes between.
        begin_all = map if job.in_flight == 1 else stack.enter_context(ThreadPoolExecutor(THREADS)).map
        warm = _Batches(runner, begin_all, "warm", job.warm_up, job.in_flight)
        with Meter(job.redis) as meter:
            counted = _Batches(runner, begin_all, "run", job.runs, job.in_flight)
        states = [state for ended in (*warm.ended, *counted.ended) for state in ended]
        latency_ms = runner.latency_ms() if job.runs else {}
        own_statements = runner.own_statements()
    expected = job.shaped.end(job.parameters)
    if wrong := [state for state in states if state != expected]:
        sys.exit(f"a run ended with {wrong[0]} instead of {expected}")
    if len(states) != job.warm_up + job.runs:
        sys.exit(f"of {job.warm_up + job.runs} runs, {len(states)} ended")
    measurement = Measurement(
        runs=job.runs,
        seconds=counted.seconds,
        begin_seconds=counted.begin_seconds,
        cpu_seconds=meter.cpu_seconds,
        versions={"Python": python_version(), **{one.name: one.version for one in distributions() if one.name in packages}},
        redis_calls=meter.redis_calls,
        latency_ms=latency_ms,
        own_statements=own_statements,
    )
    print(json.dumps(asdict(measurement)))


class _Batches:
    """Runs carried out batch after batch, and how long it took."""

    def __init__(self, runner: Runner, begin_all: Callable[..., Iterable[Any]], prefix: str, runs: int, in_flight: int) -> None:
        self.ended: list[Iterable[State]] = []
        self.begin_seconds = 0.0
        begun = time.perf_counter()
        for first in range(0, runs, in_flight):
            batch = time.perf_counter()
            ids = [f"{prefix}-{number}" for number in range(first, min(first + in_flight, runs))]
            handles = list(begin_all(runner.begin, ids))
            self.begin_seconds += time.perf_counter() - batch
            self.ended.append(runner.ended(handles))
        self.seconds = time.perf_counter() - begun
