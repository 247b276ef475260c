"""isolation="process": nodes that can be killed, that may end their process, and that see no settings of ours."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from tests.contract.brokers import task

from lockstep import (
    START,
    Command,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    NodeTimeoutError,
    Options,
    RetryPolicy,
    RunCancelledError,
)
from lockstep_worker.context import NodeContext
from lockstep_worker.isolation import Children, Loan

WAIT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def this_module_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    folder: str


class OddError(Exception):
    """Cannot be made again from its arguments, as pickle would."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("odd")


def pid(state: State, ctx: Context) -> Command:
    ctx.emit("ran", ctx.attempt)
    sys.stdout.write("This does not get into the socket.\n")
    return Command(update={"log": [os.getpid()]})


async def apid(state: State) -> State:
    return {"log": [os.getpid()]}


def environment(state: State) -> State:
    return {"log": [name for name in os.environ if name.startswith(("LOCKSTEP_", "OURS"))]}


def raises(state: State) -> State:
    raise ValueError("no")


def raises_oddly(state: State) -> State:
    raise OddError(1, 2)


def exits(state: State) -> State:
    os._exit(3)


def dies(state: State, ctx: Context) -> State:
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"log": ["alive"]}


def hangs(state: State) -> State:
    Path(state["folder"], "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


def returns_a_thread(state: State) -> Any:
    return threading.current_thread()


def single(node: Callable[..., Any], **options: Any) -> Graph:
    name = node.__name__
    return Graph(State).add_node(name, node, isolation="process", **options).add_edge(START, name)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_isolated_node_runs_in_a_process_of_its_own_that_is_used_again_and_ends(store_url: str) -> None:
    with Engine([single(pid), single_of("other", apid)], store_url) as engine:
        run = engine.submit({}, graph="graph")
        [one] = run.result()["log"]
        assert [(event.type, event.data) for event in run.backend.reader.events(run.run_id)] == [("ran", b"1")]
        assert one != os.getpid()
        assert engine.invoke({}, graph="other")["log"] == [one]
        assert is_alive(one)
    assert not is_alive(one)


def single_of(name: str, node: Callable[..., Any]) -> Graph:
    return Graph(State, name=name).add_node("node", node, isolation="process").add_edge(START, "node")


def test_it_sees_no_variables_of_ours(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_SIGNING_KEY", "secret")
    monkeypatch.setenv("OURS", "seen")
    with Engine(single(environment), store_url) as engine:
        assert engine.invoke({})["log"] == ["OURS"]


def test_what_it_raises_arrives(store_url: str) -> None:
    with Engine(single(raises), store_url) as engine, pytest.raises(NodeFailedError) as caught:
        engine.invoke({})
    assert caught.value.error_type == "ValueError"
    assert "in raises" in str(caught.value.traceback)
    assert isinstance(caught.value.__cause__, ValueError)
    with Engine(single(raises_oddly), store_url) as engine, pytest.raises(NodeFailedError, match="OddError: odd"):
        engine.invoke({})
    with Engine(single(returns_a_thread), store_url) as engine, pytest.raises(NodeFailedError, match="pickle"):
        engine.invoke({})


def test_a_node_that_ends_its_process_fails_alone_and_is_retried(store_url: str) -> None:
    ended = r"node 'exits' ended its process \(exit code 3\)"
    with Engine(single(exits), store_url) as engine, pytest.raises(NodeFailedError, match=ended):
        engine.invoke({})
    with Engine(single(dies, retry=RetryPolicy(initial_seconds=0)), store_url) as engine:
        run = engine.submit({})
        assert run.result()["log"] == ["alive"]
        assert run.history()[1].tasks[0].attempt == 2


def await_pid(folder: Path) -> int:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (text := (folder / "pid").read_text() if (folder / "pid").exists() else ""):
        assert time.monotonic() < deadline, "the node has not started"
        time.sleep(0.01)
    return int(text)


def test_a_node_past_its_time_is_killed_and_not_abandoned(store_url: str, tmp_path: Path, parts: Any, eventually: Any) -> None:
    with Engine(single(hangs, timeout_seconds=2), store_url, options=Options(max_concurrent=1)) as engine:
        with pytest.raises(NodeTimeoutError):
            engine.invoke({"folder": str(tmp_path)})
        number = await_pid(tmp_path)
        eventually(lambda: not is_alive(number))
        assert parts(engine).executor.abandoned == 0


def test_a_node_of_a_cancelled_run_is_killed(store_url: str, tmp_path: Path, eventually: Any) -> None:
    with Engine(single(hangs), store_url) as engine:
        run = engine.submit({"folder": str(tmp_path)})
        number = await_pid(tmp_path)
        run.cancel("enough")
        with pytest.raises(RunCancelledError):
            run.result()
        eventually(lambda: not is_alive(number))


def test_an_engine_that_is_closed_kills_what_still_runs(store_url: str, tmp_path: Path, eventually: Any) -> None:
    engine = Engine(single(hangs), store_url)
    engine.submit({"folder": str(tmp_path)})
    number = await_pid(tmp_path)
    engine._running().close(drain_seconds=0.0)
    engine.close()
    eventually(lambda: not is_alive(number))


def test_a_kill_that_comes_too_late_hits_nobody_else() -> None:
    # given a call that is over, and another one in the same process
    children, loans = Children(), list[Loan]()
    spec = single(apid).compile().nodes["apid"]
    context = NodeContext(task("one", node_id="apid"))
    with closing(children):
        first = children.call(spec, {}, context, loans.append)
        # when the first one is killed, then the process lives, and takes the next call
        loans[0].kill()
        assert children.call(spec, {}, context, loans.append) == first
        # and when a call under way is killed, then the process is not used again
        with pytest.raises(NodeFailedError, match="killed by SIGKILL"):
            children.call(single(hangs).compile().nodes["hangs"], {"folder": "/tmp"}, context, lambda loan: loan.kill())
        assert children.call(spec, {}, context, loans.append) != first


SCRIPT = """
import os
from dataclasses import dataclass, field
from lockstep import START, Engine, Graph

@dataclass
class State:
    pids: list[int] = field(default_factory=list)

def work(state: State) -> State:
    return State(pids=[*state.pids, os.getpid()])

graph = Graph(State).add_node("work", work, isolation="process").add_edge(START, "work")
"""


def script(folder: Path, rest: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT + rest)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=WAIT_SECONDS * 3)


INVOKE = "Engine(graph, 'memory://').invoke({})['pids'] != [os.getpid()]"


def test_nodes_of_a_script_are_found_and_the_script_is_not_run_again(tmp_path: Path) -> None:
    done = script(tmp_path, f"if __name__ == '__main__':\n    print({INVOKE})\n")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_script_that_would_run_again_says_so(tmp_path: Path) -> None:
    done = script(tmp_path, f"print({INVOKE})\n")
    assert done.returncode == 1
    assert "put that under if __name__ == '__main__'" in done.stderr


def test_a_process_ends_with_its_worker_whatever_its_node_does(tmp_path: Path, eventually: Any) -> None:
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tests.engine.test_isolation import *\nEngine(single(hangs), 'memory://').invoke({'folder': '.'})",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    number = await_pid(tmp_path)
    worker.kill()
    worker.wait()
    eventually(lambda: not is_alive(number))


def test_what_cannot_be_isolated_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be at the top level of a module"):
        single(lambda state: {})
    with pytest.raises(ConfigurationError, match="isolation='thread' is not"):
        Graph(State).add_node("node", pid, isolation="thread")  # type: ignore[arg-type]

    async def route(state: State) -> str:
        return "pid"

    with pytest.raises(ConfigurationError, match="must not be async"):
        single(pid).add_conditional_edges("pid", route, ["pid"]).compile()
