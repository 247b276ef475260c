"""What the documentation prints is what the library does: tables are compared, vectors recomputed, examples executed."""

from __future__ import annotations

import inspect
import json
import re
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

import pytest

import lockstep
import lockstep.cli
import lockstep.options
from lockstep.core.canonical import canonical_bytes
from lockstep.core.ordering import (
    ROOT_PATH,
    idempotency_key_of,
    item_key_of,
    item_seed_of,
    order_key_of,
    path_of,
    run_seed_of,
)
from lockstep.core.state import State
from lockstep.errors import ERRORS, ReplayMismatchError
from lockstep.telemetry.catalogue import CATALOGUE, Role

DOCS = Path(__file__).parents[2] / "docs"

Row = dict[str, str]


def table(page: str, *columns: str) -> list[Row]:
    """The rows of the one table in the page that has just these columns. Cells lose the backticks around them."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", (DOCS / page).read_text(), re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        if header == list(columns):
            found.append([dict(zip(columns, map(unquoted, row), strict=True)) for row in rows])
    assert len(found) == 1, f"{page} has {len(found)} tables with the columns {columns}"
    assert found[0], f"the table {columns} of {page} is empty"
    return found[0]


def unquoted(cell: str) -> str:
    return cell[1:-1] if re.fullmatch(r"`[^`]*`", cell) else cell


def determinism(*columns: str) -> list[Row]:
    return table("determinism.md", *columns)


def vectors() -> list[Row]:
    return determinism("parent_path", "node_id", "edge_index", "rank", "path", 'order_key `"edge"`', 'order_key `"hash"`')


def path_named(cell: str) -> bytes:
    """The page calls the path of the first golden vector P."""
    return {"32 zero bytes": ROOT_PATH, "P": bytes.fromhex(vectors()[0]["path"])}[cell]


def test_each_path_is_what_the_library_computes() -> None:
    for row in vectors():
        assert path_of(path_named(row["parent_path"]), row["node_id"], int(row["edge_index"])).hex() == row["path"]


@pytest.mark.parametrize("ordering", ["edge", "hash"])
def test_each_order_key_is_what_the_library_computes(ordering: Any) -> None:
    for row in vectors():
        key = order_key_of(ordering, int(row["rank"]), bytes.fromhex(row["path"]))
        assert key.hex() == row[f'order_key `"{ordering}"`']


def test_the_canonical_json_is_what_the_library_writes() -> None:
    for row in determinism("JSON", "canonical JSON"):
        assert canonical_bytes(json.loads(row["JSON"])).decode() == row["canonical JSON"]


def test_the_state_hash_is_what_the_library_computes() -> None:
    for row in determinism("state", "state_hash"):
        assert State.of(json.loads(row["state"])).hash().hex() == row["state_hash"]


def test_the_idempotency_key_is_what_the_library_computes() -> None:
    for row in determinism("run_id", "step", "paths", "state_hash", "idempotency_key"):
        paths = [path_named(row["paths"])]
        key = idempotency_key_of(row["run_id"], int(row["step"]), paths, bytes.fromhex(row["state_hash"]))
        assert key.hex() == row["idempotency_key"]


def test_the_key_of_an_item_is_what_the_library_computes() -> None:
    for row in determinism("run_id", "path", "ctx.idempotency_key"):
        assert item_key_of(row["run_id"], path_named(row["path"])) == row["ctx.idempotency_key"]


def test_the_run_seed_is_what_the_library_computes() -> None:
    for row in determinism("run_id", "run_seed"):
        assert run_seed_of(row["run_id"]) == int(row["run_seed"])


def test_the_item_seed_and_its_first_number_are_what_the_library_computes() -> None:
    for row in determinism("run_seed", "path", "step before", "item_seed, hex", "first `random()`"):
        seed = item_seed_of(int(row["run_seed"]), path_named(row["path"]), int(row["step before"]))
        assert (f"{seed:064x}", repr(Random(seed).random())) == (row["item_seed, hex"], row["first `random()`"])


def test_the_errors_page_lists_each_error_with_its_own_fields() -> None:
    # given the classes in the order of their declaration
    declared = [(name, list(inspect.get_annotations(kind))) for name, kind in ERRORS.items()]

    # when the page is read
    rows = table("errors.md", "error", "fields", "when", "what to do")

    # then it lists the same
    assert [(row["error"], re.findall(r"\w+", row["fields"])) for row in rows] == declared


def test_the_errors_page_says_what_to_do_about_each() -> None:
    rows = table("errors.md", "error", "fields", "when", "what to do")

    assert [row["error"] for row in rows if not (row["when"] and row["what to do"])] == []


def test_the_options_page_lists_each_option_with_its_default() -> None:
    # given the fields in the order of their declaration
    defaults = lockstep.options.DEFAULTS
    declared = [(name, literal(getattr(defaults, name))) for name in defaults.__struct_fields__]

    # when the page is read
    rows = table("options.md", "option", "default", "function", "effect")

    # then it lists the same
    assert [(row["option"], row["default"]) for row in rows] == declared


def literal(value: object) -> str:
    return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)


def test_the_options_page_names_the_function_of_each_option() -> None:
    # given the functions, each with the option it sets and the parameter it takes
    functions = [function for name, function in vars(lockstep.options).items() if name.startswith("with_")]
    signatures = {
        function(None).option: f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"
        for function in functions
    }

    # when the page is read
    rows = table("options.md", "option", "default", "function", "effect")

    # then it names the same
    assert {row["option"]: row["function"] for row in rows if row["function"]} == signatures


def test_each_guarantee_names_a_test_that_there_is() -> None:
    rows = table("guarantees.md", "promise", "boundary", "test", "last figure")
    assert len(rows) >= 20
    for row in rows:
        [path] = re.findall(r"tests/[\w/]+\.py", row["test"])
        assert (DOCS.parent / path).is_file(), path
        assert all(row.values())


def test_the_glossary_is_in_order() -> None:
    words = [row["word"] for row in table("glossary.md", "word", "what it means here")]
    assert words == sorted(set(words), key=lambda word: word.replace("_", " ").lower())


def test_the_reference_has_all_public_names() -> None:
    page = (DOCS / "api.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == sorted(lockstep.__all__, key=str.lower)


def test_the_page_on_observability_lists_all_metrics() -> None:
    order: list[Role] = ["coordinator", "worker", "relay", "engine"]
    rows = table("observability.md", "metric", "kind", "labels", "of", "what it says")
    assert [tuple(row.values()) for row in rows] == [
        (
            metric.name,
            metric.kind,
            ", ".join(metric.labels),
            ", ".join(role for role in order if role in metric.roles),
            metric.help,
        )
        for metric in CATALOGUE
    ]


def test_the_page_on_replay_lists_the_fields_of_the_error() -> None:
    assert [row["field"] for row in table("replay.md", "field", "what it says")] == list(ReplayMismatchError.field_names())


def test_each_difference_from_langgraph_names_a_test_that_there_is() -> None:
    tests = "".join(path.read_text() for path in DOCS.parent.joinpath("tests").rglob("test_*.py"))
    for row in table("migrating-from-langgraph.md", "where", "LangGraph", "Lockstep", "test"):
        for name in re.findall(r"test_\w+", row["test"]):
            assert f"def {name}(" in tests, f"{row['where']}: no test {name}"


NEED_SERVERS = {"docs/distributed.md"}
"""Pages whose examples are executed by tests/distributed/test_docs.py."""


def examples() -> dict[str, list[str]]:
    """The Python blocks of each page that has any and needs no servers."""
    files = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    pages = {page.relative_to(DOCS.parent).as_posix(): page.read_text() for page in files}
    blocks = {page: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for page, text in pages.items()}
    return {page: found for page, found in blocks.items() if found and page not in NEED_SERVERS}


@pytest.mark.parametrize(("page", "blocks"), examples().items(), ids=examples())
def test_the_examples_of_a_page_run(page: str, blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a folder of their own for the files they make, and one namespace: the blocks of a page follow each other
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page}

    for number, block in enumerate(blocks, start=1):
        # Not to be inherited: this file's `from __future__ import annotations`.
        exec(compile(block, f"{page}, example {number}", "exec", dont_inherit=True), namespace)
