"""`lockstep versions`: which versions of graphs are needed, and which may be retired."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Cli


def test_versions_that_nobody_needs_may_be_retired(cli: Cli) -> None:
    # given a graph with a run that ended in each of two versions, one that a process left, and one with a failed run
    for version in ("1", "2"):
        assert cli("run", "flows.py:held", "--run-id", f"v{version}", FLOW_VERSION=version).returncode == 0
    process = cli.hold("left", FLOW_VERSION="3")
    process.kill()
    process.communicate()
    assert cli("run", "flows.py:failing", "--run-id", "failed").returncode == 1

    # when versions are listed, then each says what it is needed for
    listed = json.loads(cli("versions", "--json").stdout)
    verdicts = [(one["graph"], one["runs"], one["unfinished"], one["verdict"]) for one in listed]
    assert sorted(verdicts) == [
        ("failing", 1, 0, "may be retired, if its failed runs are not to be retried"),
        ("held", 1, 0, "may be retired"),
        ("held", 1, 0, "may be retired"),
        ("held", 1, 1, "needed: runs go on with it"),
    ]
    shown = cli("versions").stdout
    assert all(one["graph_hash"][:12] in shown for one in listed) and "never" in shown
