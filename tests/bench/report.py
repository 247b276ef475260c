"""From measurements to figures, and from figures to Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.catalogue import Benchmark
from tests.bench.contenders.child import Measurement

BUSY = 0.5
"""From this load before the start, other programs took part of the machine."""

Row = dict[str, Any]


def rows_of(
    benchmark: Benchmark, measured: Mapping[str, Sequence[Measurement]], waits: Mapping[str, float | None]
) -> list[Row]:
    """The figures of each contender, as JSON values. A ratio compares two measurements of the same round, then takes the median."""
    rates = {name: [one.steps / one.seconds for one in several] for name, several in measured.items()}
    baseline = rates[benchmark.baseline]
    return [
        {
            "contender": contender.name,
            "steps_per_second": _spread(rates[contender.name]),
            "ratio": _spread([own / other for own, other in zip(rates[contender.name], baseline, strict=True)]),
            "cpu_ms_per_step": _spread([1000 * one.cpu_seconds / one.steps for one in measured[contender.name]]),
            "disk_waits_per_step": waits[contender.name],
            "power_loss_takes": contender.promise,
            "rounds": rates[contender.name],
        }
        for contender in benchmark.contenders
    ]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report. Tables are aligned, so a terminal shows them as well as a page."""
    parts = [_conditions(results)]
    for benchmark in results["benchmarks"]:
        header = ["contender", "steps/s", "min–max", "ratio", "min–max", "CPU ms/step", "disk waits/step", "a power cut may take"]
        parts.append(f"### {benchmark['title']}\n\n" + _table([header, *map(_cells, benchmark["rows"])]))
    return "\n\n".join(parts) + "\n"


def _conditions(results: Mapping[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    busy = f" Other programs were running (load {machine['load']}): the figures are rough." * (machine["load"] >= BUSY)
    return (
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}. "
        f"{settings['rounds']} rounds of {settings['runs']} runs; "
        f"one wait for the disk takes {machine['disk_wait_ms']} ms.{busy}"
    )


def _cells(row: Row) -> list[str]:
    rate, ratio, waits = row["steps_per_second"], row["ratio"], row["disk_waits_per_step"]
    return [
        row["contender"],
        f"{rate['median']:,.0f}",
        f"{rate['min']:,.0f}–{rate['max']:,.0f}",
        f"{ratio['median']:.2f}",
        f"{ratio['min']:.2f}–{ratio['max']:.2f}",
        f"{row['cpu_ms_per_step']['median']:.2f}",
        "not counted" if waits is None else f"{waits:.2f}",
        row["power_loss_takes"],
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
