"""`lockstep fsck`: says nothing where nothing is wrong, and names what is; exit code 1 tells programs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Cli


def test_a_store_is_checked(cli: Cli) -> None:
    # given runs that succeeded and failed
    for graph, run_id in (("talking", "a"), ("held", "b"), ("failing", "c")):
        cli("run", f"flows.py:{graph}", "--run-id", run_id)
    done = cli("fsck")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "all is as it was committed\n")

    # when one is damaged
    with closing(sqlite3.connect(cli.folder / "lockstep.db")) as database, database:
        database.execute("UPDATE steps SET patch = '[]' WHERE run_id = 'b' AND step_id = 1")

    # then it is named, and the exit code tells programs
    done = cli("fsck")
    assert done.returncode == 1
    assert done.stdout == "run b: the step of step 1 does not lead to a state with its hash; restore a backup\n"
    assert done.stderr == "1 defects found\n"
    [defect] = json.loads(cli("fsck", "b", "--json").stdout)["defects"]
    assert defect["run_id"] == "b"
    # and the others are well
    assert cli("fsck", "a", "c").returncode == 0
    assert cli("fsck", "nowhere").returncode == 2
