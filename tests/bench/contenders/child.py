"""The inside of a measurement: one process, one contender, one fresh store. Imports nothing that a peer's environment lacks."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to measure: `runs` runs of a shape, after `warm_up` others that are not counted, with files in `directory`."""

    shape: str
    steps: int
    warm_up: int
    runs: int
    directory: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """What was seen: seconds by the clock and of all the process's threads on the CPU, and what ran."""

    seconds: float
    cpu_seconds: float
    steps: int
    versions: dict[str, str]


Run = Callable[[str], Any]
"""Runs the shape to its end under this id, and returns the final state."""


def measure(opened: Callable[[Job], AbstractContextManager[Run]], packages: list[str]) -> None:
    """Do the job given on the command line, and print the Measurement as JSON. Refuses wrong results, however fast."""
    job = Job(**json.loads(sys.argv[1]))
    with opened(job) as run:
        for number in range(job.warm_up):
            run(f"warm-{number}")
        cpu, clock = time.process_time(), time.perf_counter()
        states = [run(f"run-{number}") for number in range(job.runs)]
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    if wrong := [state for state in states if state != {"n": job.steps}]:
        sys.exit(f"expected n = {job.steps} in every run, got {wrong[0]}")
    versions = {"Python": python_version(), **{package: _version(package) for package in packages}}
    print(json.dumps(asdict(Measurement(seconds, cpu_seconds, job.runs * job.steps, versions))))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source tree"
