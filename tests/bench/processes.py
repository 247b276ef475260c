"""The processes that measurements run in, and the environment of the peers."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.bench.catalogue import PEERS, Benchmark, Contender
from tests.bench.contenders.child import Job, Measurement

ROOT = Path(__file__).parents[2]
PEERS_HOME = ROOT / ".venv-peers"
TIMEOUT_SECONDS = 600
"""A measurement takes seconds; one that hangs must not hang the benchmark."""


def peers_python() -> str:
    """The interpreter of the peers' environment, of our own Python version; made on first use, and anew when its list changes."""
    python, marker = PEERS_HOME / "bin" / "python", PEERS_HOME / ".installed"
    wanted = "\n".join([sys.version, *PEERS])
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {', '.join(PEERS)} into {PEERS_HOME.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS_HOME], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        marker.write_text(wanted)
    return str(python)


class Processes:
    """Starts measurements. Each has a process, a directory and so a store of its own, below `directory`."""

    def __init__(self, directory: Path, peers: str) -> None:
        self._directory = directory
        self._peers = peers

    def measure(self, benchmark: Benchmark, contender: Contender, warm_up: int, runs: int) -> Measurement:
        return self._run(benchmark, contender, warm_up, runs, [])

    def waits_per_step(self, benchmark: Benchmark, contender: Contender, runs: int) -> float | None:
        """How often a step waits for the disk, counted by strace; None where there is none, or it may not trace.

        Runs twice, with `runs` and twice as many: the difference leaves out what opening and closing the store costs.
        """
        if not _can_trace():
            return None
        few, many = (self._count_waits(benchmark, contender, count) for count in (runs, 2 * runs))
        return (many - few) / (runs * benchmark.steps)

    def _count_waits(self, benchmark: Benchmark, contender: Contender, runs: int) -> int:
        with tempfile.NamedTemporaryFile("r", dir=self._directory) as trace:
            strace = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", trace.name]
            self._run(benchmark, contender, 1, runs, strace)
            return len(re.findall(r"\bf(?:data)?sync\(", trace.read()))

    def _run(self, benchmark: Benchmark, contender: Contender, warm_up: int, runs: int, prefix: list[str]) -> Measurement:
        # What a tracing service is told would count as the peer's own time.
        environment = {**os.environ, "LANGSMITH_TRACING": "false"}
        if contender.is_peer:
            environment.pop("PYTHONPATH", None)
        python = self._peers if contender.is_peer else sys.executable
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            job = Job(benchmark.shape, benchmark.steps, warm_up, runs, directory, contender.settings)
            command = [*prefix, python, "-m", f"tests.bench.contenders.{contender.module}", json.dumps(asdict(job))]
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS
            )
        if ended.returncode:
            sys.exit(f"{contender.name} failed, see above")
        return Measurement(**json.loads(ended.stdout))


def _can_trace() -> bool:
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode == 0
