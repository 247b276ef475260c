"""The figures and what they depend on, as JSON values and as Markdown."""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.catalogue import Benchmark
from tests.bench.contenders.child import Measurement

Values = dict[str, Any]


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


def table(benchmark: Benchmark, measured: Mapping[str, Sequence[Measurement]], waits: Mapping[str, float | None]) -> Values:
    """A benchmark's figures, one row for each contender. A ratio compares two measurements of the same round."""
    steps, base = benchmark.parameters["steps"], measured[benchmark.contenders[0].name]
    rows = [
        {
            "contender": contender.name,
            "steps_per_second": _spread([steps / one.seconds for one in own]),
            "ratio": _spread([other.seconds / one.seconds for one, other in zip(own, base, strict=True)]),
            "cpu_ms_per_step": _spread([1000 * one.cpu_seconds / steps for one in own]),
            "disk_waits_per_run": waits[contender.name],
            "at_risk": contender.at_risk,
            "versions": own[0].versions,
        }
        for contender in benchmark.contenders
        for own in [measured[contender.name]]
    ]
    return {"title": benchmark.title, "parameters": benchmark.parameters, "rows": rows}


def _spread(values: Sequence[float]) -> Values:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def markdown(results: Values) -> str:
    """The whole report; its tables are aligned, so they read well in a terminal too."""
    here, header = results["machine"], ["", "steps/s", "ratio", "CPU, ms/step", "disk waits/run", "what may be lost"]
    versions = {name: number for one in results["tables"] for row in one["rows"] for name, number in row["versions"].items()}
    conditions = (
        f"{here['date']}: {here['cpu']}, {here['cores']} cores; {', '.join(map(' '.join, versions.items()))}.\n"
        f"Median (min–max) of {results['rounds']} rounds with {results['runs']} runs each. One wait for the disk took "
        f"{_cell(_spread(results['disk_wait_ms']), '.2f')} ms.\nOther programs' load before the start: {here['load']}."
    )
    tables = [f"{one['title']}:\n\n" + _aligned([header, *map(_cells, one["rows"])]) for one in results["tables"]]
    return "\n\n".join([conditions, *tables]) + "\n"


def _cells(row: Values) -> list[str]:
    forms = {"steps_per_second": ",.0f", "ratio": ".2f", "cpu_ms_per_step": ".2f"}
    waits = row["disk_waits_per_run"]
    spreads = [_cell(row[name], form) for name, form in forms.items()]
    return [row["contender"], *spreads, "not counted" if waits is None else f"{waits:.1f}", row["at_risk"]]


def _cell(spread: Values, form: str) -> str:
    return f"{spread['median']:{form}} ({spread['min']:{form}}–{spread['max']:{form}})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
