"""Whether a store, and what is in Redis beside it, hold together: what must be true of every run at every moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lockstep.broker.inspection import Whereabouts
from lockstep.core.lifecycle import FINISHED
from lockstep.integrity import Check, Unfit, stored_rows
from lockstep.ports import Reader
from lockstep.records import Defect, RunRow

RUNS_PER_READ = 100
"""Runs that are read from the store at a time."""

RESTORE = "restore a backup"


def check_store(reader: Reader, run_ids: Collection[str] | None = None) -> Iterator[Defect]:
    """What is wrong with the runs, of all or of these; nothing is changed.

    Of each run: its steps follow one another; each patch leads to a state with the hash that was committed; each key is that of
    the items; snapshots are the states; results belong to items; what is left to run fits its status. And of the whole: each
    unfinished run can be found by an owner, finished ones are not looked for, and nothing belongs to a run that is not there.
    """
    wanted = None if run_ids is None else set(run_ids)
    yield from (defect for defect in reader.defects() if wanted is None or defect.run_id in wanted)
    after: str | None = None
    while rows := reader.find_runs(run_ids=run_ids, after=after, limit=RUNS_PER_READ):
        for row in rows:
            yield from _check_run(reader, row)
        after = rows[-1].run_id


def _check_run(reader: Reader, row: RunRow) -> Iterator[Defect]:
    check = Check(row)
    try:
        for stored in stored_rows(reader, row):
            check.follow(stored)
        check.end()
    except Unfit as error:
        if reader.find_runs(run_ids=[row.run_id]):  # Else it was removed while it was read.
            yield Defect(row.run_id, str(error), RESTORE)


def check_tasks(reader: Reader, earlier: Whereabouts, later: Whereabouts) -> Iterator[Defect]:
    """What is wrong with the tasks in Redis, by two looks at it: what moves meanwhile is in two places only once."""
    both = earlier.queued.keys() & earlier.claimed.keys() & later.queued.keys() & later.claimed.keys()
    for run_id, path in sorted(both):
        what = f"item {path[:12]} is queued, and worker {later.claimed[run_id, path]} has it"
        yield Defect(run_id, what, "it may run twice, and one result is used; if it comes again, report it")
    runs = sorted({run_id for run_id, _ in earlier.queued.keys() & later.queued.keys()})
    rows = {row.run_id: row for row in reader.find_runs(run_ids=runs, limit=len(runs))} if runs else {}
    for run_id in runs:
        row = rows.get(run_id)
        if row is None or row.status in FINISHED:
            status = "is not there" if row is None else f"is {row.status}"
            yield Defect(run_id, f"tasks of it are queued, and it {status}", "workers drop what is not wanted; nothing to do")
