"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lockstep
from lockstep.errors import ERRORS

PUBLIC = {
    *(
        "Graph",
        "StateGraph",
        "START",
        "END",
        "Send",
        "Command",
        "Overwrite",
        "Context",
        "add_messages",
        "interrupt",
        "sleep",
        "Observer",
        "PublishedEvent",
    ),
    *("RetryPolicy", "ConflictPolicy"),
    *("Engine", "Client", "Run", "Costs", "Interrupt", "ReplayReport", "StreamEvent", "StepRecord", "TaskRecord"),
    *("Options", "with_max_concurrent", "with_queue_depth", "with_default_timeout", "with_conflict_policy"),
    *("PRICES", "Price", "PriceBook", "Usage", "usage_of"),
    *ERRORS,
}


def test_all_names_what_is_public() -> None:
    assert set(lockstep.__all__) == PUBLIC


def test_all_is_sorted_and_names_nothing_twice() -> None:
    # Constants, classes, functions, each by name: the order of ruff's RUF022.
    def place(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), name[0].islower(), name

    assert list(lockstep.__all__) == sorted(set(lockstep.__all__), key=place)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(lockstep, name) is not None


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Grpah"):
        lockstep.Grpah  # noqa: B018 - looking the name up is the test


@pytest.mark.parametrize("module", ["sqlalchemy", "lockstep.engine"])
def test_importing_lockstep_does_not_load(module: str) -> None:
    # A worker needs no database, and whoever only builds a graph needs no engine.
    program = "import sys, lockstep; print(sys.argv[1] in sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", program, module], check=True, capture_output=True, text=True).stdout

    assert loaded.strip() == "False"
