"""Executes schedules of faults in one thread, on a virtual clock: `python -m tests.simulation --schedules 100000 --seed 1`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

from tests.simulation.bugs import BUGS
from tests.simulation.schedule import Quiet, execute, schedule_of, shrunk


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the others follow")
    parser.add_argument("--bug", choices=sorted(BUGS), help="break a rule of the product, to see it found")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    started, done = time.perf_counter(), 0
    violation: dict[str, Any] | None = None
    with Quiet(), BUGS[options.bug]() if options.bug else nullcontext():
        for seed in range(options.seed, options.seed + options.schedules):
            runs, events = schedule_of(seed)
            what, done = execute(runs, events, counts), done + 1
            if what is not None:
                seconds = time.perf_counter() - started
                short = shrunk(runs, events)
                violation = {"seed": seed, "runs": runs, "what": what, "events": short, "then": execute(runs, short)}
                break
        else:
            seconds = time.perf_counter() - started
    report = {"schedules": done, "seconds": round(seconds, 1), "violation": violation, "counts": dict(counts.most_common())}
    print(json.dumps(report, indent=2))  # noqa: T201 # The report is what this is for.
    sys.exit(violation is not None)


if __name__ == "__main__":
    main()
