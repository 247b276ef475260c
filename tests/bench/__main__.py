"""Lockstep beside its peers: `make bench`, or `python -m tests.bench --help`. What the figures mean: docs/benchmarks.md."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.bench.catalogue import CATALOGUE, Benchmark
from tests.bench.contenders.child import Measurement
from tests.bench.processes import ROOT, Processes, peers_python
from tests.bench.report import Values, disk_wait_ms, machine, markdown, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure Lockstep beside its peers.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender takes its turn (%(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="runs in a turn (%(default)s)")
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="where the stores are put, and so on which disk")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has the peers, instead of .venv-peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there, ready for docs/benchmarks.md")
    options = parser.parse_args()

    peers = options.peers or peers_python()
    options.directory.mkdir(parents=True, exist_ok=True)
    results: Values = {"machine": machine(), "rounds": options.rounds, "runs": options.runs, "disk_wait_ms": [], "tables": []}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory:
        for benchmark in CATALOGUE:
            results["tables"].append(in_turns(benchmark, Path(directory), peers, results))
    report = markdown(results)
    print(report, end="")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(report)


def in_turns(benchmark: Benchmark, directory: Path, peers: str, results: Values) -> Values:
    """Round after round of all contenders, so that what slows the machine for a while slows each of them."""
    processes, runs = Processes(directory, peers), results["runs"]
    measured: dict[str, list[Measurement]] = {contender.name: [] for contender in benchmark.contenders}
    for number in range(1, results["rounds"] + 1):
        results["disk_wait_ms"].append(disk_wait_ms(directory))
        for contender in benchmark.contenders:
            print(f"{benchmark.title}, round {number} of {results['rounds']}: {contender.name}", file=sys.stderr)
            measured[contender.name].append(processes.measure(benchmark, contender, runs))
    waits = {contender.name: processes.disk_waits(benchmark, contender, runs) for contender in benchmark.contenders}
    return table(benchmark, measured, waits)


if __name__ == "__main__":
    main()
