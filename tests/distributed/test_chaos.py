"""A sample of `python -m tests.chaos`: whatever is broken beneath many runs, none is lost, and all have their bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.chaos.storm import Storm

SECONDS = 20.0


@pytest.mark.timeout(300)
def test_a_storm_loses_nothing(tmp_path: Path, rng: Random, record_property: Any) -> None:
    # given runs under way, and one fault after the other
    told: list[str] = []
    with Storm("postgres", rng.randrange(10**6), tmp_path) as storm:
        storm.rage(SECONDS, told.append)
        report = storm.calm()
    record_property("report", report)
    # then all runs have ended as undisturbed ones do, and what is stored holds together
    assert len(told) > SECONDS / 3, report
    assert report["runs"] > 200, report
    for name in ("lost", "failed", "another hash", "defects"):
        assert not report[name], (report, told)
