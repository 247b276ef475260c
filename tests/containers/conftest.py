"""Only where a container engine answers: these tests add other servers to those that all tests have, and replace none."""

from __future__ import annotations

import shutil
import subprocess


def engine_answers() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


collect_ignore_glob = [] if engine_answers() else ["test_*.py"]
