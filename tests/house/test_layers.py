"""Who may import whom, and who may read the environment."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGES = {"shared": "lockstep", "coordinator": "lockstep_coordinator", "worker": "lockstep_worker"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


def test_the_import_contracts_are_kept(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # given a copy of sys.path, since the linter adds to it
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(ROOT)

    broken = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)

    assert not broken, capfd.readouterr().out


def test_the_environment_is_read_in_one_place() -> None:
    sources = [source for root, package in PACKAGES.items() for source in (ROOT / root / package).rglob("*.py")]
    assert len(sources) > 10

    readers = {source.relative_to(ROOT).as_posix() for source in sources if reads_environment(source)}

    assert readers <= {"shared/lockstep/config.py"}


def reads_environment(source: Path) -> bool:
    """Whether any name of the os module's environment is touched; under whatever name os was imported."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and ENVIRONMENT & {alias.name for alias in node.names})
        for node in ast.walk(ast.parse(source.read_text()))
    )


@pytest.mark.parametrize(("root", "package"), PACKAGES.items())
def test_a_source_root_holds_its_package_alone(root: str, package: str) -> None:
    # An editable install puts the root on sys.path: whatever else lies there would be importable, and missing from the wheel.
    python = {path.name for path in (ROOT / root).iterdir() if path.suffix == ".py" or next(path.rglob("*.py"), None)}

    assert python == {package}
