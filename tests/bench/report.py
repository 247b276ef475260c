"""The figures and what they depend on, as JSON values and as Markdown."""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.catalogue import Benchmark
from tests.bench.contenders.child import Measurement
from tests.bench.shapes import SHAPES

Values = dict[str, Any]

COLUMNS = {
    "nodes_per_second": ("nodes/s", ",.0f"),
    "cpu_ms_per_node": ("CPU, ms/node", ".2f"),
    "disk_waits_per_run": ("disk waits/run", ".1f"),
    "sql_transactions_per_node": ("SQL transactions/node", ".2f"),
    "sql_statements_per_node": ("SQL statements/node", ".2f"),
    "redis_commands_per_node": ("Redis commands/node", ".2f"),
    "step_early_ms": ("steps 100 to 1,100, ms each", ".3f"),
    "step_late_ms": ("last 1,000, ms each", ".3f"),
    "step_growth": ("last / first", ".2f"),
    "step_p50_ms": ("step p50, ms", ".1f"),
    "step_p95_ms": ("step p95, ms", ".1f"),
}
"""What a row may have, with its header and its form. A table has the columns that some row of it fills."""


def machine() -> Values:
    """Date, CPU and load; to be asked before anything is measured, so that the load is that of others."""
    file = Path("/proc/cpuinfo")
    named = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.exists() else []
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": named[0].partition(":")[2].strip() if named else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def disk_wait_ms(directory: Path) -> float:
    """The median time until 4 KiB more of a file are on the disk: what a durable commit costs at least, here and now."""
    waits = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(100):
            begun = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            waits.append(1000 * (time.perf_counter() - begun))
    return statistics.median(waits)


def table(
    benchmark: Benchmark,
    measured: Mapping[str, Sequence[Measurement]],
    idle: Mapping[str, Measurement],
    waits: Mapping[str, float | None],
) -> Values:
    """A benchmark's figures, one row for each contender; `idle` are measurements of no runs. A ratio compares two measurements
    of the same round: above 1, Lockstep is faster."""
    nodes = SHAPES[benchmark.shape].nodes(benchmark.parameters)
    rows = [
        {
            "contender": contender.name,
            "figures": {name: _spread(values) for name, values in figures.items() if values},
            "at_risk": contender.at_risk,
            "versions": own[0].versions,
        }
        for contender in benchmark.contenders
        for own in [measured[contender.name]]
        for wait in [waits[contender.name]]
        for figures in [_figures(nodes, own, idle.get(contender.name)) | {"disk_waits_per_run": [] if wait is None else [wait]}]
    ]
    ratios = [
        {"contender": ours.name, "than": peer.name, **_spread(_ratios(measured[ours.name], measured[peer.name]))}
        for ours in benchmark.contenders
        for peer in benchmark.contenders
        if ours.ours and not peer.ours
    ]
    runs = next(iter(measured.values()))[0].runs
    described = {"key": benchmark.key, "title": benchmark.title.format(**benchmark.parameters)}
    settings = {"parameters": benchmark.parameters, "in_flight": benchmark.in_flight, "runs": runs}
    return {**described, **settings, "rows": rows, "ratios": ratios}


def _figures(nodes: int, own: Sequence[Measurement], idle: Measurement | None) -> dict[str, list[float]]:
    """The figures of each round by name."""
    figures: dict[str, list[float]] = {
        "nodes_per_second": [one.runs * nodes / one.seconds for one in own],
        "begin_ms_per_run": [1000 * one.begin_seconds / one.runs for one in own],
        "cpu_ms_per_node": [1000 * one.cpu_seconds / (one.runs * nodes) for one in own],
    }
    if idle is not None:
        # Counted over the whole life of a database: what starting and warming up takes of it, a measurement of no runs tells.
        for name, count in idle.sql.items():
            figures[f"sql_{name}_per_node"] = [(one.sql[name] - count) / (one.runs * nodes) for one in own]
    calls = [one.redis_calls for one in own if one.redis_calls is not None]
    if calls:
        per_node = 1 / (own[0].runs * nodes)
        figures["redis_commands_per_node"] = [per_node * sum(one.values()) for one in calls]
        for name in sorted({name for one in calls for name in one}):
            figures[f"redis_{name}_per_node"] = [per_node * one.get(name, 0) for one in calls]
    for name in own[0].latency_ms:
        figures[f"step_{name}_ms"] = [one.latency_ms[name] for one in own]
    if "late" in own[0].latency_ms:
        figures["step_growth"] = [one.latency_ms["late"] / one.latency_ms["early"] for one in own]
    return figures


def _ratios(ours: Sequence[Measurement], peer: Sequence[Measurement]) -> list[float]:
    return [theirs.seconds / own.seconds for own, theirs in zip(ours, peer, strict=True)]


def _spread(values: Sequence[float]) -> Values:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def markdown(results: Values) -> str:
    """The whole report; its tables are aligned, so they read well in a terminal too."""
    here = results["machine"]
    versions = {name: number for one in results["tables"] for row in one["rows"] for name, number in row["versions"].items()}
    versions |= results["servers"]
    conditions = (
        f"{here['date']}: {here['cpu']}, {here['cores']} cores; {', '.join(map(' '.join, versions.items()))}.\n"
        f"Median (min–max) of {results['rounds']} rounds. One wait for the disk took "
        f"{_cell(_spread(results['disk_wait_ms']), '.2f')} ms.\nOther programs' load before the start: {here['load']}."
    )
    if results["redis_neighbours"]:
        conditions += f"\nRedis had up to {results['redis_neighbours']} connections of others; their commands are counted too."
    return "\n\n".join([conditions, *map(_table, results["tables"])]) + "\n"


def _table(one: Values) -> str:
    rows, ratios = one["rows"], one["ratios"]
    columns = {name: column for name, column in COLUMNS.items() if any(name in row["figures"] for row in rows)}
    main = [["", *(header for header, _ in columns.values()), "what may be lost"]]
    for row in rows:
        cells = [_cell(row["figures"].get(name), form) for name, (_, form) in columns.items()]
        main.append([row["contender"], *cells, row["at_risk"]])
    parts = [f"{one['title']}; {one['runs']} runs a round:", _aligned(main)]
    if ratios:
        peers, ours = _distinct(ratio["than"] for ratio in ratios), _distinct(ratio["contender"] for ratio in ratios)
        by_pair = {(ratio["contender"], ratio["than"]): _cell(ratio, ".2f") for ratio in ratios}
        compared = [[own, *(by_pair[own, peer] for peer in peers)] for own in ours]
        parts.append(_aligned([["times as fast as", *peers], *compared]))
    return "\n\n".join(parts)


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _cell(spread: Values | None, form: str) -> str:
    if spread is None:
        return "–"
    median = f"{spread['median']:{form}}"
    return f"{median} ({spread['min']:{form}}–{spread['max']:{form}})" if len(spread["rounds"]) > 1 else median


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
