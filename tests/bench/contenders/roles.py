"""The processes that a contender consists of beside its client: started, watched, asked to end, and waited for."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.contenders.child import Job

GRACE_SECONDS = 20
"""How long a process may take to end when it is asked to."""


@contextmanager
def running(job: Job, environment: Mapping[str, str] | None = None, **commands: Sequence[str]) -> Iterator["Roles"]:
    """Processes by name, each with its output in a file. They end in the reverse of this order; if anything fails, their output
    is shown."""
    roles = Roles()
    try:
        for name, command in commands.items():
            log = Path(job.directory, f"{name}.log")
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            roles.processes[name], roles.logs[name] = process, log
        yield roles
    except BaseException:
        for name, log in roles.logs.items():
            print(f"--- {name}:\n{log.read_text(errors='replace')}", file=sys.stderr)
        raise
    finally:
        roles.stop()


class Roles:
    """Processes that are running."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, Path] = {}

    def check(self) -> None:
        """End this process if one of them has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                sys.exit(f"the {name} has ended with exit code {process.returncode}")

    def stop(self) -> None:
        """Ask each to end, and wait for it; one that does not is killed, and named."""
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"the {name} did not end within {GRACE_SECONDS} s, and was killed", file=sys.stderr)
                process.kill()
                process.wait()
