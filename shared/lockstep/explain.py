"""Why a run is where it is: what each of its due items waits for, and what somebody can do about it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from lockstep.broker.inspection import Whereabouts
from lockstep.core.frontier import decode_frontier
from lockstep.core.lifecycle import FINISHED, RunStatus
from lockstep.core.records import WorkItem
from lockstep.history import is_done, items_in_place
from lockstep.interrupts import open_question, question_id, timer_of
from lockstep.ports import Reader
from lockstep.records import JournalRow, RunRow
from lockstep.subgraphs import child_run_id, open_call
from lockstep.wire import asked_at, decode_meta


class ItemExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One due item.

    `state`: done, answer (it has asked what `where` says), subgraph (its work is the run `where`), queued, claimed, timer (it
    waits for its next attempt), or owner (it waits for the run's owner). `failures` so far, and the `error` of the last one.
    The item of an error handler `stands_for` the node that failed.
    """

    node_id: str
    path: str
    order_key: str
    state: str
    where: str | None
    failures: int
    error: str | None = None
    stands_for: str | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands: its owner, the items of the step under way, and what keeps it from moving, each with the remedy."""

    run_id: str
    graph: str
    graph_hash: str
    status: str
    step_id: int
    owner: str | None
    items: Sequence[ItemExplanation]
    findings: Sequence[str]


def explain(reader: Reader, row: RunRow, seen: Whereabouts | None, now: float | None = None) -> Explanation:
    """Explain a run from what is stored and, where Redis was looked at, from what was `seen` there; `now` since 1970."""
    now = time.time() if now is None else now
    owner = reader.holder_of(row.partition_id)
    items = [] if row.status in FINISHED or row.step_id < 0 else _items(reader, row, seen, now)
    return Explanation(
        run_id=row.run_id,
        graph=row.graph,
        graph_hash=row.graph_hash,
        status=row.status.value,
        step_id=row.step_id,
        owner=owner,
        items=items,
        findings=_findings(row, owner, items, seen),
    )


def _items(reader: Reader, row: RunRow, seen: Whereabouts | None, now: float) -> list[ItemExplanation]:
    [step] = reader.steps(row.run_id, row.step_id, row.step_id)
    items, journal = items_in_place(reader, row.run_id, decode_frontier(step.frontier, row.step_id).items, row.retries)
    return [_item(row, item, journal.get(item.path, []), seen, now) for item in items]


def _item(row: RunRow, item: WorkItem, journal: Sequence[JournalRow], seen: Whereabouts | None, now: float) -> ItemExplanation:
    key = (row.run_id, item.path.hex())
    state, where = "owner", None
    failures = [entry for entry in journal if entry.kind == "failed"]
    if is_done(journal):
        state = "done"
    elif (question := open_question(journal)) and (timer := timer_of(journal, question)) and timer.sleeps:
        until = asked_at(question) + timer.seconds * 1000
        state, where = ("timer", f"until {_moment(until)}") if until > now * 1000 else (state, where)
    elif question:
        state, where = "answer", question_id(item.path, question.n)
    elif open_call(journal) is not None:
        state, where = "subgraph", child_run_id(row.run_id, item.path)
    elif seen is not None and key in seen.claimed:
        state, where = "claimed", seen.claimed[key]
    elif seen is not None and key in seen.queued:
        state, where = "queued", seen.queued[key]
    elif failures and (until := decode_meta(failures[-1].meta).next_attempt_at) > now * 1000:
        state, where = "timer", f"until {_moment(until)}"
    return ItemExplanation(
        node_id=item.node_id,
        path=item.path.hex(),
        order_key=item.order_key.hex(),
        state=state,
        where=where,
        failures=len(failures),
        error=_said(failures[-1].payload) if failures else None,
        stands_for=item.stands_for,
    )


def _moment(milliseconds: float) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _said(payload: bytes) -> str:
    error: dict[str, Any] = json.loads(payload)
    return f"{error.get('type')}: {error.get('message')}"


def _findings(row: RunRow, owner: str | None, items: Sequence[ItemExplanation], seen: Whereabouts | None) -> list[str]:
    if row.status is RunStatus.SUCCEEDED:
        return []
    if row.status in FINISHED:
        error: dict[str, Any] = json.loads(row.error or b"{}")
        again = f"; after a fix: lockstep retry {row.run_id}" if row.status is RunStatus.FAILED else ""
        return [f"it ended with {error.get('type')}: {error.get('message')}{again}"]
    findings = []
    if asked := [item.where for item in items if item.state == "answer"]:
        findings.append(f"it waits for answers to {', '.join(map(str, asked))}: lockstep resume {row.run_id} --answer ...")
    if below := [item.where for item in items if item.state == "subgraph"]:
        findings.append(f"it waits for its subgraphs: lockstep explain {' '.join(map(str, below))}")
    if row.status is RunStatus.PAUSED:
        findings.append(f"it has spent its max_cost_usd: lockstep resume {row.run_id} --max-cost-usd USD")
        return findings
    if owner is None:
        findings.append(f"nobody owns its partition {row.partition_id}: start `lockstep coordinator`")
    elif row.status is RunStatus.PENDING:
        findings.append(
            f"its owner {owner} has not begun it; if that lasts, it needs version {row.graph_hash[:12]} of graph {row.graph!r}"
        )
    if seen is None:
        if items:
            findings.append("what is queued or running is in Redis: give --redis to see it")
    elif any(item.state in ("queued", "owner") for item in items):
        findings += _findings_of_workers(row, items, seen)
    return findings


def _findings_of_workers(row: RunRow, items: Sequence[ItemExplanation], seen: Whereabouts) -> list[str]:
    if seen.suspended:
        return ["workers are suspended: `rq resume`"]
    findings = []
    if waiting := sum(item.state == "owner" for item in items):
        depths = ", ".join(f"{queue!r} holds {tasks}" for queue, tasks in sorted(Counter(seen.queued.values()).items()))
        findings.append(
            f"{waiting} items are not handed out: if that lasts, they wait for room in their queue "
            f"({depths or 'all are empty'}), for the max_concurrent of the run, or for that of their node"
        )
    for queue in sorted({item.where for item in items if item.state == "queued" and item.where is not None}):
        serving = [worker for worker in seen.workers if queue in worker.queues]
        if not serving:
            findings.append(f"no worker serves queue {queue!r}: start `lockstep worker --queue {queue}`")
    if not seen.workers:
        findings.append("no worker is alive: start `lockstep worker`")
    elif not any(row.graph_hash in worker.graphs for worker in seen.workers):
        names = ", ".join(worker.name for worker in seen.workers)
        findings.append(
            f"no worker has loaded version {row.graph_hash[:12]} of graph {row.graph!r}; {names} refuse its tasks, "
            f"which costs no attempt: start `lockstep worker --graphs` with it"
        )
    return findings
