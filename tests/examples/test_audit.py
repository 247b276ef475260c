"""The audit example: its nodes against the distributions installed here, and against ones made for the test."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lockstep.core.canonical import canonical_bytes

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "audit.py"
BOOKKEEPING = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}

Install = Callable[..., Path]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution `demo` of two modules into a directory of its own, which goes to the front of sys.path."""

    def install(
        name: str = "demo", version: str = "1.0", headers: str = "License-Expression: MIT\n", site: str = "site"
    ) -> Path:
        root = tmp_path / site
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        files = {
            root / "demo" / "__init__.py": "ANSWER = 42\n",
            root / "demo" / "data.txt": "some data\n",
            info / "METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{headers}",
            info / "INSTALLER": "test\n",
        }
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        recorded = [*files, root / "demo" / "__pycache__" / "__init__.cpython-311.pyc", info / "RECORD"]
        (info / "RECORD").write_text("".join(f"{path.relative_to(root).as_posix()},,\n" for path in recorded))
        monkeypatch.syspath_prepend(str(root))
        return root

    return install


def audit_of(example: ModuleType, name: str = "demo") -> dict[str, Any]:
    (one,) = example.audit({"name": name})["audits"]
    return dict(one)


def run_by_hand(example: ModuleType, **given: Any) -> dict[str, Any]:
    state: dict[str, Any] = {**given, "audits": []}
    state.update(example.list_distributions(state))
    routes = example.fan_out(state)
    for send in routes if isinstance(routes, list) else []:
        state["audits"] += getattr(example, send.node)(send.payload)["audits"]
    return {**state, **example.report(state)}


def test_the_graph_compiles_and_fans_out_to_one_audit_per_distribution(example: ModuleType) -> None:
    compiled = example.graph.compile()

    sends = example.fan_out({"names": ["a", "b"]})

    assert set(compiled.nodes) == {"__start__", "list_distributions", "audit", "report"}
    assert [(send.node, send.payload) for send in sends] == [("audit", {"name": "a"}), ("audit", {"name": "b"})]


def test_names_are_sorted_normalized_and_unique(example: ModuleType, install: Install) -> None:
    # given one distribution at two places on sys.path, spelled differently; the newer one comes first
    install("My.Demo", "1.0", site="second")
    install("my-demo", "2.0", site="first")

    names = example.list_distributions({})["names"]

    assert names == sorted(set(names))
    assert names.count("my-demo") == 1
    assert "pytest" in names
    assert audit_of(example, "my-demo")["version"] == "2.0"


def test_only_restricts_the_audit(example: ModuleType) -> None:
    assert example.list_distributions({"only": ["PyTest", "pluggy"]})["names"] == ["pluggy", "pytest"]


def test_only_refuses_a_name_that_is_not_installed(example: ModuleType) -> None:
    with pytest.raises(LookupError, match="not installed: no-such-thing"):
        example.list_distributions({"only": ["pytest", "no_such_thing"]})


def test_a_worker_without_the_distribution_fails_the_node(example: ModuleType) -> None:
    with pytest.raises(PackageNotFoundError):
        example.audit({"name": "no-such-thing"})


@pytest.mark.parametrize("name", ["pytest", "pluggy", "msgspec"])
def test_a_real_distribution_computed_in_another_way(example: ModuleType, name: str) -> None:
    # given the files that importlib.metadata finds for it
    found = distribution(name)
    paths = {
        str(path): Path(str(path.locate()))
        for path in found.files or []
        if path.suffix != ".pyc" and not (path.parent.suffix == ".dist-info" and path.name in BOOKKEEPING)
    }
    listing = "".join(f"{hashlib.sha256(paths[key].read_bytes()).hexdigest()}  {key}\n" for key in sorted(paths))

    one = audit_of(example, name)

    assert one["version"] == found.version
    assert one["files"] == len(paths) > 3
    assert one["bytes"] == sum(path.stat().st_size for path in paths.values())
    assert one["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert one["findings"] == []


def test_the_hash_is_that_of_what_sha256sum_prints(example: ModuleType, install: Install) -> None:
    root = install()
    paths = ["demo-1.0.dist-info/METADATA", "demo/__init__.py", "demo/data.txt"]
    lines = [f"{hashlib.sha256((root / path).read_bytes()).hexdigest()}  {path}\n" for path in paths]

    one = audit_of(example)

    assert one["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (one["files"], one["bytes"]) == (3, sum((root / path).stat().st_size for path in paths))


def test_compiling_and_the_installers_notes_change_nothing(example: ModuleType, install: Install) -> None:
    root = install()
    before = audit_of(example)

    info = root / "demo-1.0.dist-info"
    (root / "demo" / "__pycache__").mkdir()
    (root / "demo" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    (info / "INSTALLER").write_text("another\n")
    (info / "direct_url.json").write_text('{"url": "file:///somewhere", "dir_info": {}}')
    (info / "REQUESTED").write_text("")
    more = "".join(f"demo-1.0.dist-info/{name},,\n" for name in ("direct_url.json", "REQUESTED"))
    (info / "RECORD").write_text((info / "RECORD").read_text() + more)

    assert audit_of(example) == before


def test_the_order_and_repetition_of_lines_in_record_change_nothing(example: ModuleType, install: Install) -> None:
    record = install() / "demo-1.0.dist-info" / "RECORD"
    before = audit_of(example)

    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join([*reversed(lines), lines[0]]))

    assert audit_of(example) == before


def test_a_package_file_that_is_named_like_a_note_counts(example: ModuleType, install: Install) -> None:
    root = install()
    before = audit_of(example)

    (root / "demo" / "RECORD").write_text("part of the package\n")
    record = root / "demo-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "demo/RECORD,,\n")

    assert audit_of(example)["files"] == before["files"] + 1


def test_a_changed_source_changes_the_hash_alone(example: ModuleType, install: Install) -> None:
    root = install()
    before = audit_of(example)

    (root / "demo" / "__init__.py").write_text("ANSWER = 43\n")

    after = audit_of(example)
    assert after["sha256"] != before["sha256"]
    assert {**after, "sha256": None} == {**before, "sha256": None}


def test_a_missing_file_is_a_finding_and_changes_the_hash(example: ModuleType, install: Install) -> None:
    root = install()
    before = audit_of(example)

    (root / "demo" / "data.txt").unlink()

    after = audit_of(example)
    assert after["findings"] == ["missing: demo/data.txt"]
    assert after["files"] == before["files"] - 1
    assert after["sha256"] != before["sha256"]


def test_a_distribution_without_record_is_not_hashed(example: ModuleType, install: Install) -> None:
    (install() / "demo-1.0.dist-info" / "RECORD").unlink()

    one = audit_of(example)

    assert (one["files"], one["bytes"], one["sha256"]) == (0, 0, None)
    assert one["findings"] == ["not hashed: there is no RECORD of its files"]


def test_an_editable_install_is_not_hashed(example: ModuleType, install: Install) -> None:
    direct_url = {"url": "file:///somewhere", "dir_info": {"editable": True}}
    (install() / "demo-1.0.dist-info" / "direct_url.json").write_text(json.dumps(direct_url))

    one = audit_of(example)

    assert one["sha256"] is None
    assert one["findings"] == ["not hashed: editable, its code is not in RECORD"]


def test_metadata_without_a_name_is_counted_in_the_report(example: ModuleType, install: Install) -> None:
    (install() / "demo-1.0.dist-info" / "METADATA").unlink()

    state = run_by_hand(example, only=[])

    assert state["unnamed"] == state["report_json"]["totals"]["unnamed"] == 1
    assert "- left out, because their metadata has no name: 1\n" in state["report_markdown"]


@pytest.mark.parametrize(
    ("headers", "licence"),
    [
        ("License-Expression: Apache-2.0\nLicense: old words\n", "Apache-2.0"),
        ("License: MIT License\nClassifier: License :: OSI Approved :: BSD License\n", "MIT License"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: BSD License\n", "BSD License"),
        ("License: Our License\n        \n        Permission is granted\nClassifier: License :: OSI Approved :: ISC\n", "ISC"),
        ("License: Our License\n        \n        Permission is granted\n", "Our License"),
        ("Classifier: License :: A\nClassifier: License :: B\nClassifier: Topic :: C\n", "A, B"),
        ("", "not declared"),
    ],
)
def test_the_licence_is_the_most_precise_statement(example: ModuleType, install: Install, headers: str, licence: str) -> None:
    install(headers=headers)

    assert audit_of(example)["licence"] == licence


def test_the_report_of_one_distribution(example: ModuleType, install: Install) -> None:
    # given a distribution with one missing file, and a licence that would break the table
    root = install(headers="License: MIT | BSD\n")
    (root / "demo" / "data.txt").unlink()

    state = run_by_hand(example, only=["demo"])

    one = audit_of(example)
    assert state["report_markdown"] == (
        "# Installed distributions\n"
        "\n"
        f"1 distributions, 2 files, {one['bytes']} bytes.\n"
        "\n"
        "| name | version | licence | files | bytes | sha256 |\n"
        "|---|---|---|---:|---:|---|\n"
        f"| demo | 1.0 | MIT / BSD | 2 | {one['bytes']} | {one['sha256'][:12]} |\n"
        "\n"
        "## Findings\n"
        "\n"
        "- demo: missing: demo/data.txt\n"
    )
    totals = {"distributions": 1, "files": 2, "bytes": one["bytes"], "unnamed": 0}
    assert state["report_json"] == {"totals": totals, "distributions": [one]}


def test_no_distribution_at_all_still_gives_a_report(example: ModuleType) -> None:
    assert example.fan_out({"names": []}) == "report"
    assert "0 distributions, 0 files, 0 bytes." in run_by_hand(example, only=[])["report_markdown"]


def test_the_whole_environment_is_audited_alike_in_every_process(example: ModuleType) -> None:
    # given the report of this process, over everything that is installed
    here = run_by_hand(example)
    assert [one["name"] for one in here["audits"]] == here["names"]
    assert sys.prefix not in here["report_markdown"]
    assert sys.prefix not in json.dumps(here["report_json"])

    # when another process, whose sets have another order, audits the same
    program = (
        "import json, sys, runpy\n"
        "example = runpy.run_path(sys.argv[1])\n"
        "state = {'audits': []}\n"
        "state |= example['list_distributions'](state)\n"
        "for send in example['fan_out'](state): state['audits'] += example['audit'](send.payload)['audits']\n"
        "print(json.dumps(state | example['report'](state)))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    there = subprocess.run(
        [sys.executable, "-c", program, str(EXAMPLE)], env=environment, check=True, capture_output=True, text=True
    )

    # then their states have the same bytes
    assert canonical_bytes(json.loads(there.stdout)) == canonical_bytes(here)
