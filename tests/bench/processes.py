"""The processes in which contenders are measured, and the peers' own environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.bench.catalogue import Benchmark, Contender
from tests.bench.contenders.child import Job, Measurement

ROOT = Path(__file__).parents[2]
PEERS = ["langgraph", "langgraph-checkpoint-sqlite"]
WARM_UP = 3
"""Runs that don't count: the first ones fill caches and start threads."""
TIMEOUT_SECONDS = 600
"""A measurement takes seconds; one that hangs must not hang the benchmark."""


def peers_python() -> str:
    """The interpreter of .venv-peers, of our own Python version. Made on first use, and anew when PEERS or Python change."""
    home, wanted = ROOT / ".venv-peers", "\n".join([sys.version, *PEERS])
    python, marker = home / "bin" / "python", home / ".installed"
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {', '.join(PEERS)} into {home.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        marker.write_text(wanted)
    return str(python)


class Processes:
    """Measures each time in a new process, with a new directory below `directory`."""

    def __init__(self, directory: Path, peers: str) -> None:
        self._directory = directory
        self._peers = peers

    def measure(self, benchmark: Benchmark, contender: Contender, runs: int, *under: str) -> Measurement:
        """One measurement; `under` is a command to run it with."""
        environment = {**os.environ, "LANGSMITH_TRACING": "false"}  # Else the peer would also pay for its telemetry.
        if is_peer := contender.module != "lockstep":
            environment.pop("PYTHONPATH", None)
        with tempfile.TemporaryDirectory(dir=self._directory) as own:
            job = Job(benchmark.shape, benchmark.parameters, contender.settings, WARM_UP, runs, own)
            module = f"tests.bench.contenders.{contender.module}"
            command = [*under, self._peers if is_peer else sys.executable, "-m", module, json.dumps(asdict(job))]
            ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS)
        if ended.returncode:
            sys.exit(f"{contender.name}: the process failed, see above")
        return Measurement(**json.loads(ended.stdout))

    def disk_waits(self, benchmark: Benchmark, contender: Contender, runs: int) -> float | None:
        """How often a run waits for the disk, by strace; None where that is not installed or not allowed.

        From `runs` runs and twice as many: the difference leaves out what opening and closing a store costs.
        """
        probe = ["strace", "-o", os.devnull, "true"]
        if shutil.which("strace") is None or subprocess.run(probe, capture_output=True).returncode:
            return None
        counts = []
        for several in (runs, 2 * runs):
            with tempfile.NamedTemporaryFile("r", dir=self._directory) as trace:
                self.measure(
                    benchmark, contender, several, *("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", trace.name)
                )
                counts.append(len(re.findall(r"\bf(?:data)?sync\(", trace.read())))
        return (counts[1] - counts[0]) / runs
