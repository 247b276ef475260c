"""Lockstep beside its peers: `make bench`, or `python -m tests.bench --help`. What the figures mean: docs/benchmarks.md."""

import argparse
import json
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench.catalogue import CATALOGUE, Benchmark
from tests.bench.contenders.child import Measurement
from tests.bench.processes import ROOT, Processes, peers_python
from tests.bench.report import Values, disk_wait_ms, machine, markdown, table
from tests.bench.services import Services

POSTGRES = os.environ.get("LOCKSTEP_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("LOCKSTEP_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


def main() -> None:
    options = parsed()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("ended from outside"))  # So that databases and keys are removed.
    services = Services(options.postgres, options.redis)
    benchmarks = chosen(options, services.missing())
    peers = options.peers or peers_python()
    options.directory.mkdir(parents=True, exist_ok=True)
    results: Values = {"machine": machine(), "rounds": options.rounds, "disk_wait_ms": [], "tables": []}
    results["servers"] = services.describe({need for each in benchmarks for one in each.contenders for need in one.needs})
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory:
        processes = Processes(Path(directory), peers, services)
        for benchmark in benchmarks:
            results["tables"].append(in_turns(benchmark, processes, benchmark.whole(options.runs), results))
    results["redis_neighbours"] = services.redis_neighbours
    report = markdown(results)
    print(report, end="")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(report)


def parsed() -> argparse.Namespace:
    keys = [benchmark.key for benchmark in CATALOGUE]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure Lockstep beside its peers.")
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="TABLE", help=f"of {', '.join(keys)}")
    parser.add_argument(
        "--contenders", nargs="+", default=[""], metavar="TEXT", help="only those whose names contain one of these"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender takes its turn (%(default)s)")
    parser.add_argument("--runs", type=int, help="runs in a turn, rounded up to whole batches (each table has its own)")
    parser.add_argument("--steps", type=int, help="length of the chains")
    parser.add_argument("--width", type=int, help="width of the fan-outs")
    parser.add_argument("--postgres", metavar="URL", default=POSTGRES, help="a database beside which others may be created")
    parser.add_argument("--redis", metavar="URL", default=REDIS, help="best one that nobody else uses: it counts for all")
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="where SQLite's files are put: on which disk")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has the peers, instead of .venv-peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there, ready for docs/benchmarks.md")
    return parser.parse_args()


def chosen(options: argparse.Namespace, missing: dict[str, str]) -> list[Benchmark]:
    """The benchmarks that were asked for, without those whose servers do not answer."""
    given = {name: value for name in ("steps", "width") if (value := getattr(options, name)) is not None}
    benchmarks = []
    for benchmark in CATALOGUE:
        contenders = [one for one in benchmark.contenders if any(text in one.name for text in options.contenders)]
        parameters = {name: given.get(name, value) for name, value in benchmark.parameters.items()}
        if benchmark.key not in options.only or not contenders:
            continue
        if absent := sorted({need for one in contenders for need in one.needs if need in missing}):
            print(f"{benchmark.key} is left out: no {' and no '.join(absent)} ({missing[absent[0]].strip()})", file=sys.stderr)
            continue
        benchmarks.append(replace(benchmark, contenders=contenders, parameters=parameters))
    return benchmarks


def in_turns(benchmark: Benchmark, processes: Processes, runs: int, results: Values) -> Values:
    """Round after round of all contenders, so that what slows the machine for a while slows each of them."""
    contenders = benchmark.contenders
    idle = {one.name: processes.measure(benchmark, one, 0) for one in contenders if "postgres" in one.needs}
    measured: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    for number in range(1, results["rounds"] + 1):
        results["disk_wait_ms"].append(disk_wait_ms(processes.directory))
        for contender in contenders:
            print(f"{benchmark.key}, round {number} of {results['rounds']}: {contender.name}", file=sys.stderr)
            measured[contender.name].append(processes.measure(benchmark, contender, runs))
    waits = {contender.name: processes.disk_waits(benchmark, contender, runs) for contender in contenders}
    return table(benchmark, measured, idle, waits)


if __name__ == "__main__":
    main()
