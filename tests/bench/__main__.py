"""Lockstep beside its peers: `make bench`, or `python -m tests.bench --help`. See docs/benchmarks.md for what the figures mean."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.catalogue import CATALOGUE, Benchmark
from tests.bench.contenders.child import Measurement
from tests.bench.machine import described
from tests.bench.processes import ROOT, Processes, peers_python
from tests.bench.report import markdown, rows_of


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure Lockstep beside its peers.")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each contender, in turn (%(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="runs in a measurement (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=3, help="runs before, not counted (%(default)s)")
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="where stores are made; it decides on the disk")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with the peers, instead of the one in .venv-peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there too")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    peers = chosen.peers or peers_python()
    settings = {"rounds": chosen.rounds, "runs": chosen.runs, "warm_up": chosen.warm_up}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.directory) as directory:
        results: dict[str, Any] = {"machine": described(Path(directory)), "settings": settings, "versions": {}, "benchmarks": []}
        for benchmark in CATALOGUE:
            measured = in_turn(benchmark, Processes(Path(directory), peers), results, **settings)
            results["benchmarks"].append(measured)
    report = markdown(results)
    print(report, end="")
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")
    if chosen.markdown:
        chosen.markdown.write_text(report)


def in_turn(
    benchmark: Benchmark, processes: Processes, results: dict[str, Any], *, rounds: int, runs: int, warm_up: int
) -> dict[str, Any]:
    """All contenders, one after the other, round after round: what slows the machine down for a while slows down all of them."""
    measured: dict[str, list[Measurement]] = {contender.name: [] for contender in benchmark.contenders}
    for number in range(1, rounds + 1):
        for contender in benchmark.contenders:
            print(f"round {number} of {rounds}: {contender.name}", file=sys.stderr)
            seen = processes.measure(benchmark, contender, warm_up, runs)
            measured[contender.name].append(seen)
            results["versions"].update(seen.versions)
    waits = {one.name: processes.waits_per_step(benchmark, one, runs) for one in benchmark.contenders}
    return {"title": benchmark.title, "steps": benchmark.steps, "rows": rows_of(benchmark, measured, waits)}


if __name__ == "__main__":
    main()
