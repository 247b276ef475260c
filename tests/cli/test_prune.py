"""`lockstep prune`: finished runs go when somebody says so, and nothing else does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Cli


def ids(cli: Cli) -> list[str]:
    return [run["run_id"] for run in json.loads(cli("runs", "--json").stdout)]


def test_old_runs_go_and_young_ones_stay(cli: Cli) -> None:
    # given three finished runs of two graphs, and one that failed
    for graph, run_id in (("talking", "a"), ("talking", "b"), ("held", "c")):
        assert cli("run", f"flows.py:{graph}", "--run-id", run_id).returncode == 0
    assert cli("run", "flows.py:failing", "--run-id", "d").returncode == 1
    # when what is older than an hour is to go, then nothing does
    done = cli("prune", "--older-than", "1h")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "0 runs are removed\n")
    # when all but the newest of a graph is to go, then one does, but not when only asked which
    done = cli("prune", "--keep", "1", "--graph", "talking", "--dry-run", "--json")
    assert json.loads(done.stdout) == {"dry_run": True, "run_ids": ["a"]}
    assert ids(cli) == ["a", "b", "c", "d"]
    assert cli("prune", "--keep", "1", "--graph", "talking").stdout == "a\n"
    assert ids(cli) == ["b", "c", "d"]
    # when all is to go, then failed ones do, too
    assert cli("prune", "--older-than", "0s").returncode == 0
    assert ids(cli) == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [((), "--older-than"), (("--older-than", "soon"), "'soon'"), (("--older-than", "7"), "30d"), (("--older-than", ""), "30d")],
)
def test_what_cannot_be_is_said_in_one_line(cli: Cli, arguments: tuple[str, ...], why: str) -> None:
    done = cli("prune", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigurationError: ") and why in done.stderr and done.stderr.count("\n") == 1
