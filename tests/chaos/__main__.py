"""Breaks one thing after the other beneath many runs, and counts what is lost: `python -m tests.chaos --minutes 5 --seed 1`."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path

import structlog
from tests.chaos.storm import RECOVERY_SECONDS, Storm, is_violated


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the same one breaks the same things again")
    parser.add_argument("--store", choices=["postgres", "mysql", "sqlite"], default="postgres")
    parser.add_argument("--recovery-seconds", type=float, default=RECOVERY_SECONDS, help="more than this is a failure, too")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # The report alone is on stdout.
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-chaos-") as folder,
        Storm(options.store, options.seed, Path(folder)) as storm,
    ):
        storm.rage(options.minutes * 60, lambda fault: print(fault, file=sys.stderr, flush=True))  # noqa: T201
        report = {"store": options.store, "seed": options.seed, "minutes": options.minutes, **storm.calm()}
    print(json.dumps(report, indent=2))  # noqa: T201
    sys.exit(is_violated(report) or report["seconds from the last fault until all had moved"] > options.recovery_seconds)


if __name__ == "__main__":
    main()
