"""The command line, as a process: what it prints where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from lockstep.cli import COMMANDS, main
from lockstep.core.state import State
from lockstep.store.migrate import HEAD

if TYPE_CHECKING:
    from conftest import Cli

    Answer = subprocess.CompletedProcess[str]

TOPIC = '{"topic": "tea"}'
RESEARCHED = {"topic": "TEA", "notes": ["TEA 0", "TEA 1", "TEA 2"], "n": 3}
FIELDS = {"run_id", "graph", "status", "step_id", "state", "state_hash", "error", "interrupts", "cost_usd"}


SERVER = "postgresql+psycopg://user:secret@127.0.0.1:1/runs"


def parsed(answer: Answer) -> Any:
    """The one JSON document on stdout."""
    assert answer.stderr == "" or answer.returncode, answer.stderr
    return json.loads(answer.stdout)


# --- run


def test_run_shows_its_steps_on_stderr_and_the_state_on_stdout(cli: Cli) -> None:
    done = cli("run", "flows.py:graph", "--input", TOPIC, "--run-id", "r")
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["step 1  plan", "step 2  search × 3", "step 3  report"]
    lines = done.stdout.splitlines()
    assert {'topic "TEA"', 'notes ["TEA 0", "TEA 1", "TEA 2"]', "n 3"} <= set(lines)
    state_hash = State.of(RESEARCHED).hash().hex()
    assert f"run r of graph research: succeeded after step 3, state_hash {state_hash}" in lines
    assert lines[-1] == "its rows are in sqlite:///lockstep.db: lockstep show r"


def test_run_json_prints_one_object_and_nothing_else(cli: Cli) -> None:
    done = cli("run", "flows.py:graph", "--input", TOPIC, "--run-id", "r", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "run_id": "r",
        "graph": "research",
        "status": "succeeded",
        "step_id": 3,
        "state": RESEARCHED,
        "state_hash": State.of(RESEARCHED).hash().hex(),
        "error": None,
        "interrupts": [],
        "cost_usd": None,
    }
    # and show prints the same, and run again too, without running anything
    assert cli("show", "r", "--json").stdout == done.stdout
    assert cli("run", "flows.py:graph", "--input", TOPIC, "--run-id", "r", "--json").stdout == done.stdout


def test_run_takes_its_input_from_a_file_and_its_graph_from_a_module(cli: Cli) -> None:
    (cli.folder / "input.json").write_text('{"topic": "café"}', encoding="utf-8")
    run = parsed(cli("run", "flows:graph", "--input", "@input.json", "--concurrency", "1", "--json"))
    assert run["state"]["notes"] == ["CAFÉ 0", "CAFÉ 1", "CAFÉ 2"]
    assert len(run["run_id"]) == 32


def test_run_of_a_graph_that_fails_ends_with_1(cli: Cli) -> None:
    done = cli("run", "flows.py:failing", "--run-id", "r", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    run = json.loads(done.stdout)
    assert set(run) == FIELDS
    assert (run["status"], run["step_id"], run["state"]) == ("failed", 1, {"notes": ["first"]})
    error = run["error"]
    assert {name: error[name] for name in ("type", "message", "run_id", "step_id", "node_id", "attempt")} == {
        "type": "NodeFailedError",
        "message": "node 'broken' raised LookupError: not yet: [bold]é[/bold]",
        "run_id": "r",
        "step_id": 2,
        "node_id": "broken",
        "attempt": 1,
    }
    # and people read what the exception said, brackets and all
    shown = cli("show", "r")
    assert shown.returncode == 0
    assert "NodeFailedError node 'broken' raised LookupError: not yet: [bold]é[/bold]" in " ".join(shown.stdout.split())


def test_people_see_the_steps_before_the_failure(cli: Cli) -> None:
    done = cli("run", "flows.py:failing")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["step 1  first"]
    assert "NodeFailedError" in done.stdout and "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("what", ["logs", "prints"])
def test_what_a_node_says_goes_beside_the_json(what: str, cli: Cli) -> None:
    done = cli("run", "flows.py:talking", "--input", json.dumps({"topic": what}), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == {"topic": what, "n": 1, "notes": []}
    assert f"a node {what}" in done.stderr


# --- what is wrong with a command: one line on stderr, and the exit code that says of what kind

WRONG: dict[str, tuple[list[str], int, list[str]]] = {
    # where the graph should come from
    "no such file": (["run", "nowhere.py:graph"], 2, ["ConfigurationError: no file nowhere.py in"]),
    "no such module": (["run", "nowhere:graph"], 2, ["no module 'nowhere' can be imported from", "path to a .py file"]),
    "no such name": (
        ["run", "flows.py:grpah"],
        2,
        ["flows.py has no Graph named 'grpah'", "it has failing, graph, held, talking"],
    ),
    "not a graph": (["run", "flows.py:not_a_graph"], 2, ["flows.py has no Graph named 'not_a_graph'", "it has failing, graph"]),
    "no name": (["run", "flows.py"], 2, ["'flows.py' is not MODULE:GRAPH, such as flows.py:graph"]),
    "it raises": (["run", "raises.py:graph"], 2, ["importing raises.py raised ValueError: at import"]),
    "it exits": (["run", "exits.py:graph"], 2, ["importing exits.py", "SystemExit"]),
    "it misses an import": (["run", "needy.py:graph"], 2, ["importing needy.py failed: No module named 'nowhere_at_all'"]),
    "it is no Python": (["run", "syntax.py:graph"], 2, ["importing syntax.py raised SyntaxError"]),
    "a graph that is wrong": (["run", "unreachable.py:graph"], 2, ["nothing leads to node 'b'; add an edge to it"]),
    "the name of a loaded module": (
        ["run", "sub/json.py:graph"],
        2,
        ["sub/json.py has the name of module 'json'", "rename it"],
    ),
    # the input
    "no JSON": (["run", "flows.py:graph", "--input", "{topic}"], 2, ["ConfigurationError: --input is not JSON:"]),
    "no input file": (["run", "flows.py:graph", "--input", "@nowhere.json"], 2, ["--input @nowhere.json: No such file"]),
    "an input file in Latin-1": (["run", "flows.py:graph", "--input", "@latin1.json"], 2, ["--input @latin1.json", "UTF-8"]),
    "an input that is no object": (
        ["run", "flows.py:graph", "--input", "[1]"],
        2,
        ["the input must be a dict of state fields"],
    ),
    "an unknown field": (["run", "flows.py:graph", "--input", '{"topik": 1}'], 2, ["unknown field 'topik'", "n, notes, topic"]),
    "NaN": (["run", "flows.py:graph", "--input", '{"topic": NaN}'], 2, ["field 'topic' is nan"]),
    # the run
    "a bad run id": (["run", "flows.py:graph", "--run-id", "a b"], 2, ["run_id 'a b' must be 1 to 128 of"]),
    "another run's id": (
        ["run", "flows.py:graph", "--run-id", "known"],
        2,
        ["RunExistsError: run_id 'known' belongs to a run"],
    ),
    "show no run": (["show", "nowhere"], 2, ["RunNotFoundError: no run 'nowhere'", "lockstep runs"]),
    "show no step": (["show", "known", "--step", "99"], 2, ["run known has no committed step 99"]),
    "resume no run": (["resume", "nowhere", "--graphs", "flows.py:graph"], 2, ["RunNotFoundError: no run 'nowhere'"]),
    "retry no run": (["retry", "nowhere", "--graphs", "flows.py:graph"], 2, ["RunNotFoundError: no run 'nowhere'"]),
    "retry a success": (["retry", "known", "--graphs", "flows.py:talking"], 2, ["run known is succeeded; only a failed run"]),
    "resume without graphs": (["resume", "known"], 2, ["no graph is named; use --graphs MODULE:NAME or LOCKSTEP_GRAPHS"]),
    # the rest
    "no such command": (["rnu"], 2, ["No such command 'rnu'"]),
    "a store of another kind": (
        ["runs", "--store", "redis://localhost"],
        2,
        ["ConfigurationError: no store answers to redis:"],
    ),
    "a store in a missing folder": (
        ["runs", "--store", "sqlite:///no/where.db"],
        2,
        ["ConfigurationError: there is no database file", "no/where.db"],
    ),
    "run on it": (["run", "flows.py:graph", "--store", "sqlite:///no/where.db"], 4, ["StoreUnavailableError", "folder exists"]),
    "a server that is not there": (
        ["runs", "--store", SERVER],
        4,
        ["StoreUnavailableError", "127.0.0.1", "***", "check that its server runs"],
    ),
    "a store that is no database": (["runs", "--store", "sqlite:///flows.py"], 4, ["StoreUnavailableError", "not a database"]),
}
FILES = {
    "raises.py": "raise ValueError('at import')\n",
    "exits.py": "import sys\nsys.exit('bye')\n",
    "needy.py": "import nowhere_at_all\n",
    "syntax.py": "graph = = 1\n",
    "sub/json.py": "graph = 1\n",
    "unreachable.py": (
        "from flows import State, START, Graph\n"
        "def quiet(state) -> dict: ...\n"
        "graph = Graph(State).add_node('a', quiet).add_node('b', quiet).add_edge(START, 'a')\n"
        "graph.compile()\n"
    ),
}


@pytest.fixture(scope="module")
def wrong_cli(new_cli: Callable[[], Cli]) -> Cli:
    return new_cli()


@pytest.fixture(scope="module")
def answers(wrong_cli: Cli) -> dict[str, Answer]:
    """What the wrong commands answered; they are started side by side, for the sake of time."""
    for name, text in FILES.items():
        path = wrong_cli.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (wrong_cli.folder / "latin1.json").write_bytes('{"topic": "é"}'.encode("latin-1"))
    assert wrong_cli("run", "flows.py:talking", "--run-id", "known", "--json").returncode == 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(WRONG, pool.map(lambda case: wrong_cli(*case[0]), WRONG.values()), strict=True))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_says_what_is_wrong_and_ends_with_its_code(case: str, answers: dict[str, Answer]) -> None:
    _, code, words = WRONG[case]
    answer = answers[case]
    assert "Traceback" not in answer.stderr and "secret" not in answer.stderr, answer.stderr
    assert [word for word in words if word not in answer.stderr] == [], answer.stderr
    assert answer.stderr.startswith("Usage: ") or answer.stderr.count("\n") == 1, answer.stderr
    assert (answer.returncode, answer.stdout) == (code, "")


def test_a_wrong_command_stores_nothing(answers: dict[str, Answer], wrong_cli: Cli) -> None:
    assert answers
    assert [run["run_id"] for run in parsed(wrong_cli("runs", "--json"))] == ["known"]


# --- runs, show


@pytest.fixture(scope="module")
def stored(new_cli: Callable[[], Cli]) -> Cli:
    """A folder with three runs: two succeeded, one failed."""
    cli = new_cli()
    for run_id, name in {"a-1": "graph", "a-2": "failing", "a-3": "graph"}.items():
        cli("run", f"flows.py:{name}", "--input", TOPIC if name == "graph" else "{}", "--run-id", run_id, "--json")
    return cli


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["a-1", "a-2", "a-3"]),
        (["--status", "succeeded", "--limit", "1"], ["a-1"]),
        (["--graph", "research", "--after", "a-1"], ["a-3"]),
    ],
    ids=" ".join,
)
def test_runs_lists_what_is_asked_for(options: list[str], expected: list[str], stored: Cli) -> None:
    listed = parsed(stored("runs", *options, "--json"))
    assert [run["run_id"] for run in listed] == expected
    for run in listed:
        assert set(run) == {"run_id", "graph", "status", "step_id", "created_at", "updated_at"}
        assert run["created_at"] <= run["updated_at"] and run["created_at"].endswith("+00:00")


def test_runs_shows_people_a_table(stored: Cli) -> None:
    shown = stored("runs")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in shown.stdout.splitlines() if line.startswith("│")]
    assert rows == [
        ["a-1", "research", "succeeded", "3"],
        ["a-2", "failing", "failed", "1"],
        ["a-3", "research", "succeeded", "3"],
    ]


def test_runs_shows_each_id_whole(cli: Cli) -> None:
    # It is what the other commands want; those made up by us have 32 characters.
    run_id = parsed(cli("run", "flows.py:graph", "--input", TOPIC, "--json"))["run_id"]
    assert run_id in cli("runs").stdout


def test_show_tells_people_where_a_run_stands(stored: Cli) -> None:
    shown = stored("show", "a-1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert 'topic "TEA"' in shown.stdout.splitlines()
    assert "run a-1 of graph research: succeeded after step 3" in shown.stdout


def test_show_history_lists_the_tasks_of_each_step(stored: Cli) -> None:
    shown = stored("show", "a-1", "--history")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows if row[0]] == [
        ["1", "plan"],
        ["2", "search"],
        ["2", "search"],
        ["2", "search"],
        ["3", "report"],
    ]
    assert all(row[3:5] == ["1", "done"] for row in rows if row[0])

    run = parsed(stored("show", "a-1", "--history", "--json"))
    assert set(run) == {*FIELDS, "history"}
    assert [step["step_id"] for step in run["history"]] == [0, 1, 2, 3]
    assert [[task["node_id"] for task in step["tasks"]] for step in run["history"]] == [
        [],
        ["plan"],
        ["search"] * 3,
        ["report"],
    ]
    for step in run["history"]:
        assert set(step) == {"step_id", "state_hash", "idempotency_key", "committed_at", "tasks"}
        assert [task["order_key"] for task in step["tasks"]] == sorted(task["order_key"] for task in step["tasks"])
    assert run["history"][-1]["state_hash"] == run["state_hash"]
    assert run["history"][1]["tasks"][0]["delta"] == {"topic": "TEA"}


@pytest.mark.parametrize("command", [["runs"], ["show", "a-1"]], ids=lambda command: command[0])
@pytest.mark.parametrize("form", ["sqlite:///nowhere.db", "sqlite:///file:nowhere.db?uri=true"])
def test_to_look_at_a_file_that_is_not_there_does_not_make_it(command: list[str], form: str, cli: Cli) -> None:
    answer = cli(*command, "--store", form)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"ConfigurationError: there is no database file {cli.folder}/nowhere.db; check the")
    assert "lockstep migrate" in answer.stderr and answer.stderr.count("\n") == 1
    assert not list(cli.folder.glob("*nowhere*"))


def test_show_step_gives_the_state_after_it(stored: Cli) -> None:
    state = {"topic": "TEA", "notes": []}
    run = parsed(stored("show", "a-1", "--step", "1", "--json"))
    assert set(run) == FIELDS
    assert (run["step_id"], run["state"], run["status"]) == (1, state, "succeeded")
    assert run["state_hash"] == State.of(state).hash().hex()
    assert 'topic "tea"' in stored("show", "a-1", "--step", "0").stdout


# --- resume, retry


@pytest.fixture(scope="module")
def killed(new_cli: Callable[[], Cli]) -> Cli:
    """A folder with a run whose process was killed in its second step."""
    cli = new_cli()
    with cli.hold("r") as process:
        process.kill()
    assert cli.ledger() == ["first", "second"]
    (cli.folder / "ledger.txt").unlink()
    (cli.folder / "gate").unlink()
    return cli


@pytest.fixture
def after_kill(killed: Cli, tmp_path: Path) -> Cli:
    shutil.copytree(killed.folder, tmp_path / "copy")
    return type(killed)(tmp_path / "copy")


SECOND = {"notes": ["first", "second"]}


def test_resume_goes_on_after_kill_9_from_the_last_commit(after_kill: Cli) -> None:
    # given a run that is still called running
    run = parsed(after_kill("show", "r", "--json"))
    assert (run["status"], run["step_id"], run["state"]) == ("running", 1, {"notes": ["first"]})

    # when it is resumed, then only what was not committed runs again
    run = parsed(after_kill("resume", "r", "--graphs", "flows.py:held", "--json"))
    assert set(run) == FIELDS
    assert (run["status"], run["step_id"], run["state"]) == ("succeeded", 2, SECOND)
    assert after_kill.ledger() == ["second"]

    # and to resume it once more changes nothing
    assert parsed(after_kill("resume", "r", "--graphs", "flows.py:held", "--json")) == run
    assert after_kill.ledger() == ["second"]


def test_run_with_the_same_id_goes_on_too(after_kill: Cli) -> None:
    done = after_kill("run", "flows.py:held", "--run-id", "r")
    assert (done.returncode, done.stderr.splitlines()) == (0, ["step 1  first", "step 2  second"])
    assert after_kill.ledger() == ["second"]


def test_resume_leaves_other_runs_alone(after_kill: Cli) -> None:
    # given two runs that lost their processes
    with after_kill.hold("other") as process:
        process.kill()
    (after_kill.folder / "ledger.txt").unlink()

    # when one is resumed, then nothing of the other runs, to be cut off when the first is done
    after_kill("resume", "r", "--graphs", "flows.py:held", "--json")
    assert after_kill.ledger() == ["second"]
    assert parsed(after_kill("show", "other", "--json"))["status"] == "running"


def test_settings_come_from_the_environment_and_flags_win(after_kill: Cli) -> None:
    # given a database and graphs that the environment names
    (after_kill.folder / "lockstep.db").rename(after_kill.folder / "runs.db")
    for suffix in ("-wal", "-shm"):
        with_suffix = after_kill.folder / f"lockstep.db{suffix}"
        if with_suffix.exists():
            with_suffix.rename(after_kill.folder / f"runs.db{suffix}")
    settings = {"LOCKSTEP_STORE_URL": "sqlite:///runs.db", "LOCKSTEP_GRAPHS": "flows.py:graph, flows.py:held,"}

    # then commands use them
    assert parsed(after_kill("resume", "r", "--json", **settings))["state"] == SECOND
    # and a flag wins over them
    assert after_kill("show", "r", "--store", "sqlite:///empty.db", **settings).returncode == 2
    wrong = after_kill("resume", "r", "--graphs", "nowhere.py:graph", **settings)
    assert (wrong.returncode, "no file nowhere.py" in wrong.stderr) == (2, True)


def not_waited_for(cli: Cli, *command: str, **environment: str) -> str:
    """What a command says that could only wait for ever."""
    with cli.start(*command, **environment) as process:
        try:
            stdout, stderr = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("the command waits for a run that it cannot move")
    assert (process.returncode, stdout) == (2, "")
    return stderr


@pytest.mark.parametrize(
    "command", [["resume", "r", "--graphs", "flows.py:held"], ["run", "flows.py:held", "--run-id", "r"]], ids=["resume", "run"]
)
def test_a_run_of_another_version_of_the_graph_is_an_error(command: list[str], after_kill: Cli) -> None:
    said = not_waited_for(after_kill, *command, "--json", FLOW_VERSION="2")
    assert "GraphVersionError" in said and "load that version" in said


def test_to_resume_with_another_graph_is_an_error(after_kill: Cli) -> None:
    said = not_waited_for(after_kill, "resume", "r", "--graphs", "flows.py:graph", "--json")
    assert "held" in said and ("UnknownGraphError" in said or "GraphVersionError" in said)


def test_to_retry_with_another_graph_is_an_error(cli: Cli) -> None:
    cli("run", "flows.py:failing", "--run-id", "r", "--json")
    said = not_waited_for(cli, "retry", "r", "--graphs", "flows.py:graph", "--json")
    assert "failing" in said and ("UnknownGraphError" in said or "GraphVersionError" in said)


def test_retry_goes_on_with_a_failed_run_and_keeps_what_it_has(cli: Cli) -> None:
    cli("run", "flows.py:failing", "--run-id", "r", "--json")
    # given a cause that still holds, then it fails again
    again = cli("retry", "r", "--graphs", "flows.py:failing", "--json")
    assert (again.returncode, json.loads(again.stdout)["error"]["attempt"]) == (1, 2)

    # when it is mended, then it goes on
    (cli.folder / "mended").touch()
    run = parsed(cli("retry", "r", "--graphs", "flows.py:failing", "--json"))
    assert set(run) == FIELDS
    assert (run["status"], run["state"], run["error"]) == ("succeeded", {"notes": ["first", "mended"]}, None)
    assert cli.ledger() == ["first", "broken", "broken", "broken"]


def test_retry_tells_people_how_it_goes(cli: Cli) -> None:
    cli("run", "flows.py:failing", "--run-id", "r", "--json")
    (cli.folder / "mended").touch()
    done = cli("retry", "r", LOCKSTEP_GRAPHS="flows.py:failing")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "step 2  broken"
    assert 'notes ["first", "mended"]' in done.stdout


def test_ctrl_c_says_how_to_go_on(cli: Cli) -> None:
    # given a run under way, of a graph and in a store that no variable names
    with cli.hold("r", "--store", "sqlite:///elsewhere.db") as process:
        # when it is interrupted, then it says how to go on
        process.send_signal(signal.SIGINT)
        line = read_line_with(process, "run r is unfinished; go on with: lockstep resume r")
        # and waits a little for its node, whose result is kept
        (cli.folder / "gate").write_text("go")
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, 1, 2, 3, 4), "the run has not failed"
    assert stdout == "" and "Traceback" not in stderr

    # and what it says works
    command = shlex.split(line.split("go on with: lockstep ")[1])
    assert parsed(cli(*command, "--json"))["state"] == SECOND
    assert cli.ledger() == ["first", "second"]


def read_line_with(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    return next(line for line in process.stderr if text in line)


def test_a_polite_request_to_end_leaves_the_run_for_others_at_once(cli: Cli) -> None:
    at_once = "from lockstep.embedded import Embedded; Embedded.close.__defaults__ = (0.0,)\n"
    entry = at_once + "from lockstep.cli import main; main(prog_name='lockstep')"
    os.mkfifo(cli.folder / "gate")
    with cli.start("run", "flows.py:held", "--run-id", "r", "--json", entry=entry, HOLD="1") as process:
        read_line_with(process, "holding")
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (128 + signal.SIGTERM, "", "")
    with sqlite3.connect(cli.folder / "lockstep.db") as database:
        assert database.execute("SELECT count(*) FROM leases").fetchall() == [(0,)]
    database.close()
    assert parsed(cli("resume", "r", "--graphs", "flows.py:held", "--json"))["state"] == SECOND


# --- migrate


def test_migrate_makes_the_schema_and_may_be_repeated(cli: Cli) -> None:
    for _ in range(2):
        done = cli("migrate", "--store", "sqlite:///new.db")
        assert (done.returncode, done.stdout, done.stderr) == (0, "sqlite:///new.db is up to date\n", "")
    with sqlite3.connect(cli.folder / "new.db") as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    database.close()
    assert {"runs", "steps", "journal", "outbox", "inbox", "leases"} <= tables
    assert parsed(cli("runs", "--json", LOCKSTEP_STORE_URL="sqlite:///new.db")) == []


def test_migrate_can_only_look(cli: Cli) -> None:
    # given no database, then there is nothing to look at, and none is made
    done = cli("migrate", "--check", "--store", "sqlite:///new.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert "new.db" in done.stderr and not (cli.folder / "new.db").exists()
    # given a database without a schema, one of the release before, and one of a release to come
    file = cli.folder / "lockstep.db"
    for sql, code, says in (
        ("DROP TABLE alembic_version", 1, "no schema yet"),
        ("CREATE TABLE alembic_version (version_num TEXT)", 1, "no schema yet"),
        ("INSERT INTO alembic_version VALUES ('0001')", 1, "schema 0001"),
        ("UPDATE alembic_version SET version_num = '9999'", 2, "9999"),
    ):
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(sql)
        before = file.read_bytes()
        done = cli("migrate", "--check")
        assert done.returncode == code
        assert says in done.stdout + done.stderr
        assert file.read_bytes() == before
    # and one that is up to date
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [HEAD])
    done = cli("migrate", "--check")
    assert (done.returncode, done.stdout) == (0, f"sqlite:///lockstep.db has schema {HEAD}, as this release needs\n")


@pytest.mark.parametrize("command", [["run", "flows.py:talking"], ["migrate"]], ids=lambda command: command[0])
def test_no_password_is_printed(command: list[str], cli: Cli) -> None:
    # given a database that answers, wherever it is
    entry = (
        "import lockstep.cli.migrate, lockstep.embedded; from lockstep.store.memory import MemoryStore\n"
        "from lockstep.cli import main\n"
        "for module in (lockstep.embedded, lockstep.cli.migrate):\n"
        "    module.open_store = lambda url: MemoryStore()\n"
        "main(prog_name='lockstep')"
    )
    with cli.start(*command, "--store", SERVER, entry=entry) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "127.0.0.1" in stdout and "secret" not in stdout + stderr


# --- help


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_explains_itself_and_all_its_options(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    shown = CliRunner().invoke(main, [name, "--help"], prog_name="lockstep")
    assert (shown.exit_code, shown.stderr) == (0, "")
    text = " ".join(shown.stdout.split())
    assert text.startswith(f"Usage: lockstep {name} ")
    assert command.help is not None and " ".join(command.help.split()) in text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
            assert parameter.help and " ".join(parameter.help.split()) in text
        else:
            assert parameter.make_metavar(click.Context(command)) in text


def test_the_group_lists_its_commands(stored: Cli) -> None:
    shown = stored("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    listed = shown.stdout.split("Commands:")[1].splitlines()
    assert {line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "} == set(COMMANDS)
    assert main.help is not None and main.help in shown.stdout


ASKING = """
from typing import TypedDict
from lockstep import START, Graph, interrupt


class State(TypedDict, total=False):
    said: str
    other: int


graph = Graph(State)
graph.add_node("one", lambda state: {"said": interrupt("well?")}).add_edge(START, "one")
graph.add_node("two", lambda state: {"other": interrupt({"n": 2})}).add_edge(START, "two")
"""


def test_a_run_that_asks_is_answered_from_the_command_line(cli: Any) -> None:
    (cli.folder / "asking.py").write_text(ASKING)
    # given a run that asks two things
    done = cli("run", "asking.py:graph", "--run-id", "x", "--json", "--store", "sqlite:///x.db")
    assert done.returncode == 3, done.stderr
    one, two = json.loads(done.stdout)["interrupts"]
    assert (one["node_id"], one["value"], two["value"]) == ("one", "well?", {"n": 2})
    shown = cli("show", "x", "--store", "sqlite:///x.db")
    assert f'{one["id"]} one asks "well?"' in shown.stdout
    # when answers are wrong, then it says so
    resume = ("resume", "x", "--graphs", "asking.py:graph", "--store", "sqlite:///x.db")
    for answers in (["--answer", "no json"], ["--answer", "1", "--answer", "2"], ["--answer", "1"]):
        wrong = cli(*resume, *answers)
        assert wrong.returncode == 2, wrong.stdout
    # and when one is answered, then the other is still asked
    half = cli(*resume, "--json", "--answer", f"{two['id']}=7")
    assert (half.returncode, [asked["id"] for asked in json.loads(half.stdout)["interrupts"]]) == (3, [one["id"]])
    # and with a bare answer to the last one, it ends
    end = cli(*resume, "--json", "--answer", '"fine"')
    assert (end.returncode, json.loads(end.stdout)["state"]) == (0, {"other": 7, "said": "fine"})
