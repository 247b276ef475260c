"""The examples of pages that need servers are executed too, and so are the commands that pages show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.distributed.conftest import FLOWS, Cluster
from tests.house.test_docs import NEED_SERVERS
from tests.servers import free_port

from lockstep.store import open_store

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", sorted(NEED_SERVERS))
def test_examples_run(cluster: Cluster, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a coordinator, a worker, and the variables that the page names
    cluster.coordinator()
    cluster.worker()
    monkeypatch.setenv("LOCKSTEP_STORE_URL", cluster.store_url)
    monkeypatch.setenv("LOCKSTEP_REDIS_URL", cluster.redis_url)
    monkeypatch.setenv("LOCKSTEP_NAMESPACE", cluster.namespace)
    # when its blocks are executed, then what they assert holds
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec", dont_inherit=True), {})


# --- commands

ENDLESS = ("lockstep coordinator", "lockstep worker", "lockstep relay")
ELSEWHERE = {
    "make demo": "what CI and readers do first",
    "make test": "this",
    "./deploy/try.sh": "tests/containers, where a container engine answers",
    "pg_dump --format=custom --file=lockstep.dump lockstep": "tests/distributed/test_backup.py",
}
"""Commands that are executed somewhere else."""

ORDERS = """
graph = Graph(State, name="orders")
graph.add_node("work", lambda state: {"n": 1}).add_edge(START, "work")
"""


def commands() -> dict[str, list[str]]:
    """The commands of each page, without what is said of them and what they print."""
    pages = {page: page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
    found = {
        page.relative_to(ROOT).as_posix(): [
            line.removeprefix("$ ").split(" # ")[0].strip()
            for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            for line in block.splitlines()
            if line.startswith("$ ")
        ]
        for page, text in pages.items()
    }
    return {page: lines for page, lines in found.items() if lines and page != "README.md"}


def answers(port: int) -> bool:
    """Whether a process says that it can do its work."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(("page", "lines"), commands().items(), ids=commands())
def test_the_commands_of_a_page_work(cluster: Cluster, page: str, lines: list[str], tmp_path: Path) -> None:
    # given the files and runs that pages speak of: order-42 has ended, order-7 asks something
    cluster.coordinator()
    cluster.worker()
    here = tmp_path / "here"
    (here / "tests" / "runs").mkdir(parents=True)
    (here / "flows.py").write_text(FLOWS.read_text() + ORDERS)
    open_store(f"sqlite:///{here}/orders.db").close()
    asking = cluster.client.submit("asks", {"ledger": str(tmp_path / "ledger")}, run_id="order-7")
    cluster.until(lambda: asking.status == "interrupted", "it asks")
    first, _ = asking.interrupts()
    asking.resume({first.id: 1})
    cluster.until(lambda: asking.status == "interrupted" and len(asking.interrupts()) == 1, "it asks one thing")
    environment = {
        **cluster.environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOCKSTEP_STORE_URL": cluster.store_url,
        "LOCKSTEP_REDIS_URL": cluster.redis_url,
    }
    for line in ["lockstep run flows.py:graph --input '{}' --run-id order-42", *lines]:
        if line in ELSEWHERE or line.startswith("export "):
            continue
        assert line.startswith("lockstep "), line
        port = free_port()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=here,
            env={**environment, "LOCKSTEP_METRICS_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if line.startswith(ENDLESS):
            cluster.until(lambda port=port, process=process: process.poll() is not None or answers(port), "it serves")
            assert process.poll() is None, (line, process.communicate()[0])
            process.terminate()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, (line, said)
