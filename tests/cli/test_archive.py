"""`lockstep export` and `lockstep import`: a run goes to another store by a file or a pipe, and goes on there if need be."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Cli

ELSEWHERE = ("--store", "sqlite:///elsewhere.db")


def shown(cli: Cli, run_id: str, *store: str) -> Any:
    return json.loads(cli("show", run_id, "--history", "--json", *store).stdout)


def test_a_run_goes_to_another_store_by_a_file(cli: Cli) -> None:
    assert cli("run", "flows.py:graph", "--input", '{"topic": "é"}', "--run-id", "a").returncode == 0
    # when it is exported, then the file is there, and what stdout gets is the same
    done = cli("export", "a", "--output", "a.ndjson")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert cli("export", "a").stdout == (cli.folder / "a.ndjson").read_text(encoding="utf-8")
    assert not list(cli.folder.glob("*.part"))
    # and when it is imported, then everything of it is there
    done = cli("import", "a.ndjson", *ELSEWHERE)
    assert (done.returncode, done.stderr) == (0, "run a of graph research: succeeded after step 3\n")
    assert shown(cli, "a", *ELSEWHERE) == shown(cli, "a")


def test_a_run_goes_through_a_pipe(cli: Cli) -> None:
    assert cli("run", "flows.py:failing", "--run-id", "a").returncode == 1
    with cli.start("import", "-", *ELSEWHERE, stdin=subprocess.PIPE) as process:
        process.communicate(cli("export", "a").stdout, timeout=60)
    assert process.returncode == 0
    # and what failed there is retried here, with the results that it has
    (cli.folder / "mended").touch()
    assert cli("retry", "a", "--graphs", "flows.py:failing", *ELSEWHERE).returncode == 0
    assert shown(cli, "a", *ELSEWHERE)["state"] == {"notes": ["first", "mended"]}
    assert cli.ledger() == ["first", "broken", "broken"]


def test_a_run_goes_on_in_another_store_when_the_first_is_gone(cli: Cli) -> None:
    # given a run whose process died after its first node
    process = cli.hold("a")
    process.kill()
    process.communicate()
    cli("export", "a", "--output", "a.ndjson")
    # when it is imported, then only with a word for it
    refused = cli("import", "a.ndjson", *ELSEWHERE)
    assert refused.returncode == 2 and "--unfinished" in refused.stderr and refused.stderr.count("\n") == 1
    assert cli("import", "a.ndjson", "--unfinished", *ELSEWHERE).returncode == 0
    # and then it goes on from there
    done = cli("resume", "a", "--graphs", "flows.py:held", "--json", *ELSEWHERE)
    assert json.loads(done.stdout)["state"] == {"notes": ["first", "second"]}
    assert cli.ledger() == ["first", "second", "second"]


def test_what_cannot_be_is_said_in_one_line(cli: Cli) -> None:
    cli("run", "flows.py:talking", "--run-id", "a")
    cli("export", "a", "--output", "a.ndjson")
    for arguments, why in (
        (("import", "nowhere.ndjson"), "nowhere.ndjson cannot be read: No such file"),
        (("import", "flows.py"), "ArchiveError: line 1: it is no line of JSON"),
        (("export", "nowhere"), "no run 'nowhere'"),
        (("export", "a", "--output", "no/folder/a"), "no/folder/a cannot be written: No such file"),
        (("import", "a.ndjson"), "there is a run 'a' already"),
    ):
        done = cli(*arguments)
        assert done.returncode == 2
        assert why in done.stderr and done.stderr.count("\n") == 1
