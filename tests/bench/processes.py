"""The processes in which contenders are measured, and the peers' own environment."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from tests.bench.catalogue import Benchmark, Contender
from tests.bench.contenders.child import Job, Measurement
from tests.bench.services import Services

ROOT = Path(__file__).parents[2]
PEERS = [
    "langgraph",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "psycopg[binary]",
    "dbos",
    "celery[redis]",
]
WARM_UP = 3
WARM_UP_IN_FLIGHT = 24
"""Runs that don't count: the first ones fill caches and start threads; those in flight together, more threads."""
TIMEOUT_SECONDS = 600
"""A measurement takes seconds; one that hangs must not hang the benchmark."""
GRACE_SECONDS = 60
"""How long a measurement that is ended early may take to end what it has started."""


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
    """Measures each time in a new process, with a new directory below `directory`, and on servers with what is its own."""

    def __init__(self, directory: Path, peers: str, services: Services) -> None:
        self.directory = directory
        self._peers = peers
        self._services = services

    def measure(self, benchmark: Benchmark, contender: Contender, runs: int, *under: str) -> Measurement:
        """One measurement; `under` is a command to run it with."""
        with ExitStack() as stack:
            database = stack.enter_context(self._services.database()) if "postgres" in contender.needs else None
            job = Job(
                shape=benchmark.shape,
                parameters=benchmark.parameters,
                settings=contender.settings,
                in_flight=benchmark.in_flight,
                warm_up=_warm_up(benchmark),
                runs=runs,
                directory=stack.enter_context(tempfile.TemporaryDirectory(dir=self.directory)),
                postgres=database.url if database else "",
                redis=self._services.redis_url if "redis" in contender.needs else "",
                namespace=stack.enter_context(self._services.namespace()) if "redis" in contender.needs else "",
            )
            measurement = self._done(job, contender, under)
        if database is None:
            return measurement
        # Only now: leaving the database counts what was done in it.
        return replace(measurement, sql={name: count - measurement.own_statements for name, count in database.counts.items()})

    def _done(self, job: Job, contender: Contender, under: tuple[str, ...]) -> Measurement:
        environment = {**os.environ, "LANGSMITH_TRACING": "false"}  # Else the peer would also pay for its telemetry.
        if not contender.ours:
            environment.pop("PYTHONPATH", None)
        python = sys.executable if contender.ours else self._peers
        command = [*under, python, "-m", f"tests.bench.contenders.{contender.module}", json.dumps(asdict(job))]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        try:
            printed, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            _end(process)
            sys.exit(f"{contender.name}: no end within {TIMEOUT_SECONDS} s")
        except BaseException:
            _end(process)
            raise
        if process.returncode:
            sys.exit(f"{contender.name}: the process failed, see above")
        return Measurement(**json.loads(printed))

    def disk_waits(self, benchmark: Benchmark, contender: Contender, runs: int) -> float | None:
        """How often a run waits for the disk, by strace; None where that is not installed or not allowed, or a server waits.

        From `runs` runs and twice as many: the difference leaves out what opening and closing a store costs.
        """
        probe = ["strace", "-o", os.devnull, "true"]
        if (
            benchmark.long
            or contender.needs
            or shutil.which("strace") is None
            or subprocess.run(probe, capture_output=True).returncode
        ):
            return None
        counts = []
        for several in (runs, 2 * runs):
            with tempfile.NamedTemporaryFile("r", dir=self.directory) as trace:
                self.measure(
                    benchmark, contender, several, *("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", trace.name)
                )
                counts.append(len(re.findall(r"\bf(?:data)?sync\(", trace.read())))
        return (counts[1] - counts[0]) / runs


def _warm_up(benchmark: Benchmark) -> int:
    if benchmark.long:
        return 0
    return WARM_UP if benchmark.in_flight == 1 else min(benchmark.in_flight, WARM_UP_IN_FLIGHT)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a measurement early: politely, so that it ends what it has started; then all that is left of its session."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
