"""The inside of a measurement: one process, one contender, one fresh store. Needs nothing that a peer's environment lacks."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from platform import python_version
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to measure: `runs` runs of a shape, after `warm_up` others that don't count, with files in `directory`."""

    shape: str
    parameters: dict[str, int]
    settings: dict[str, Any]
    warm_up: int
    runs: int
    directory: str


@dataclass(frozen=True)
class Measurement:
    """What was seen, a run on average: seconds by the clock, and seconds that all threads together spent on a CPU."""

    seconds: float
    cpu_seconds: float
    versions: dict[str, str]


def measure(opened: Callable[[Job], AbstractContextManager[Callable[[str], Any]]], packages: list[str]) -> None:
    """Do the job given on the command line, and print the Measurement. `opened` gives what takes a run from its id to its end
    state; one that is wrong ends the benchmark, however fast it came."""
    job = Job(**json.loads(sys.argv[1]))
    with opened(job) as run:
        for number in range(job.warm_up):
            run(f"warm-{number}")
        clock, cpu = time.perf_counter(), time.process_time()
        states = [run(f"run-{number}") for number in range(job.runs)]
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    if wrong := [state for state in states if state != {"n": job.parameters["steps"]}]:
        sys.exit(f"the steps are {job.parameters['steps']}, but a run ended with {wrong[0]}")
    versions = {"Python": python_version(), **{one.name: one.version for one in distributions() if one.name in packages}}
    print(json.dumps(asdict(Measurement(seconds / job.runs, cpu_seconds / job.runs, versions))))
