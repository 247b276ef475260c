"""The public API under the type checkers that users have: mypy, strict, and pyright (in the build that needs no download)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOTS = [Path(__file__).parents[2] / root for root in ("shared", "coordinator", "worker")]


def checked(*command: object, folder: Path) -> tuple[int, str]:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["accepted.py", "rejected.py"])
def test_mypy_accepts_what_is_right_and_nothing_else(name: str, tmp_path: Path) -> None:
    settings = tmp_path / "mypy.ini"
    settings.write_text(f"[mypy]\nstrict = True\nmypy_path = {':'.join(map(str, ROOTS))}\ncache_dir = {tmp_path}/cache\n")
    code, said = checked(sys.executable, "-m", "mypy", "--config-file", settings, HERE / name, folder=tmp_path)
    assert (code, "Success: no issues found in 1 source file" in said) == (0, True), said


@pytest.mark.parametrize("name", ["accepted.py", "rejected.py"])
def test_pyright_accepts_what_is_right_and_nothing_else(name: str, tmp_path: Path) -> None:
    settings = {
        "include": [str(HERE / name)],
        "extraPaths": [str(root) for root in ROOTS],
        "typeCheckingMode": "standard",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
        "pythonVersion": "3.11",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--project", tmp_path, "--pythonpath", sys.executable]
    code, said = checked(*command, folder=tmp_path)
    assert (code, "0 errors" in said) == (0, True), said
