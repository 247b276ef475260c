"""Audit the Python distributions installed here: the licence and size of each, and one SHA256 over its files.

    list_distributions --a Send for each--> audit --> report

    python docs/examples/audit.py
    lockstep run docs/examples/audit.py:graph --input '{"only": ["pip", "sqlalchemy"]}'

The same environment gives the same report, byte for byte, however many audits run at once: what Sends bring back is folded in
the order in which the router lists them, and no node reads a clock or reports where a file lies.
"""

import csv
import hashlib
import json
import operator
import re
from email import message_from_string
from email.message import Message
from importlib.metadata import Distribution, distribution, distributions
from typing import Annotated, Any, TypedDict

from lockstep import END, START, Graph, Send


class Content(TypedDict):
    files: int
    bytes: int
    sha256: str | None  # None where there is nothing to hash; the findings say why.
    findings: list[str]


class Audit(Content):
    name: str
    version: str
    licence: str


class State(TypedDict, total=False):
    only: list[str]  # Audit these alone; not given: all.
    names: list[str]
    unnamed: int
    audits: Annotated[list[Audit], operator.add]
    report_markdown: str
    report_json: dict[str, Any]


graph = Graph(State, name="audit")


@graph.node
def list_distributions(state: State) -> State:
    """Sorted names, each once: where sys.path has several of one name, the first counts, as it does for import."""
    found = [normalized(metadata_of(each).get("Name", "")) for each in distributions()]
    names = {name for name in found if name}
    only = {normalized(name) for name in state.get("only", names)}
    if only - names:
        raise LookupError(f"not installed: {', '.join(sorted(only - names))}; correct 'only'")
    return {"names": sorted(only), "unnamed": found.count("")}


def fan_out(state: State) -> list[Send] | str:
    return [Send("audit", {"name": name}) for name in state["names"]] or "report"


@graph.node
def audit(target: dict[str, str]) -> State:
    found = distribution(target["name"])
    metadata = metadata_of(found)
    version, licence = metadata.get("Version", "unknown"), licence_of(metadata)
    return {"audits": [{"name": target["name"], "version": version, "licence": licence, **content_of(found)}]}


@graph.node
def report(state: State) -> State:
    audits, unnamed = state["audits"], state["unnamed"]
    files, size = sum(one["files"] for one in audits), sum(one["bytes"] for one in audits)
    totals = {"distributions": len(audits), "files": files, "bytes": size, "unnamed": unnamed}
    lines = ["# Installed distributions", "", f"{len(audits)} distributions, {files} files, {size} bytes.", ""]
    lines += ["| name | version | licence | files | bytes | sha256 |", "|---|---|---|---:|---:|---|"]
    for one in audits:
        cells = [one["name"], one["version"], one["licence"], one["files"], one["bytes"], (one["sha256"] or "none")[:12]]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    findings = [f"- {one['name']}: {finding}" for one in audits for finding in one["findings"]]
    findings += [f"- left out, because their metadata has no name: {unnamed}"] if unnamed else []
    lines += ["", "## Findings", "", *findings] if findings else []
    return {"report_markdown": "\n".join(lines) + "\n", "report_json": {"totals": totals, "distributions": audits}}


graph.add_edge(START, "list_distributions")
graph.add_conditional_edges("list_distributions", fan_out, ["audit", "report"])
graph.add_edge("audit", "report")
graph.add_edge("report", END)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def metadata_of(found: Distribution) -> Message:
    """Its metadata file, in a dist-info or egg-info directory or a lone egg-info file; empty where there is none."""
    return message_from_string(found.read_text("METADATA") or found.read_text("PKG-INFO") or found.read_text("") or "")


def licence_of(metadata: Message) -> str:
    """The expression, a one-line text, the classifiers, or the title of a whole licence pasted in: the first that is there."""
    expression, text = metadata.get("License-Expression", ""), metadata.get("License", "").strip().removeprefix("UNKNOWN")
    classifiers = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License :: ")]
    title, _, rest = text.partition("\n")
    return expression or (title if not rest else "") or ", ".join(classifiers) or title or "not declared"


# What installers note about how, when and from where they installed, not what; the hash of RECORD covers .pyc files as well.
BOOKKEEPING = re.compile(r"[^/]+\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|uv_cache\.json)")


def content_of(found: Distribution) -> Content:
    """What RECORD lists, without .pyc and bookkeeping; the hash is the SHA256 of what `sha256sum` prints for the sorted paths.

    Scripts count, and their first line names the interpreter: compare hashes of one environment, or of copies at one place.
    RECORD is read here, because Distribution.files leaves out missing files on newer Pythons.
    """
    record = found.read_text("RECORD")
    if record is None:
        return {"files": 0, "bytes": 0, "sha256": None, "findings": ["not hashed: there is no RECORD of its files"]}
    if json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        return {"files": 0, "bytes": 0, "sha256": None, "findings": ["not hashed: editable, its code is not in RECORD"]}
    recorded = sorted({row[0] for row in csv.reader(record.splitlines()) if row})
    lines, size, missing = [], 0, []
    for path in recorded:
        if path.endswith(".pyc") or BOOKKEEPING.fullmatch(path):
            continue
        try:
            with open(str(found.locate_file(path)), "rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path}\n")
                size += file.tell()
        except FileNotFoundError:
            missing.append(f"missing: {path}")
    total = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"files": len(lines), "bytes": size, "sha256": total, "findings": missing}


if __name__ == "__main__":
    from lockstep import Engine  # Here, because workers import this file too, and need no engine.

    with Engine(graph, "memory://") as engine:
        print(engine.invoke({})["report_markdown"])
