"""`fsck`: whether what is stored holds together."""

from __future__ import annotations

import sys
import time
from contextlib import closing

import click
import msgspec

from lockstep.broker.inspection import whereabouts
from lockstep.cli.errors import RUN_FAILED
from lockstep.cli.options import json_option, redis_option, store_option
from lockstep.cli.output import print_json
from lockstep.config import read_settings
from lockstep.errors import RunNotFoundError
from lockstep.fsck import check_store, check_tasks
from lockstep.store import open_store

LOOKS_APART_SECONDS = 2.0
"""Between two looks at Redis: longer than a task takes from a queue to a worker."""


@click.command()
@click.argument("run_ids", metavar="[RUN_ID]...", nargs=-1)
@store_option
@redis_option
@json_option
def fsck(run_ids: tuple[str, ...], store: str | None, redis: str | None, as_json: bool) -> None:
    """Check that what is stored of all runs, or of some, is what was committed; exits with 1 if it is not. Changes nothing."""
    settings = read_settings(store=store, redis=redis)
    with closing(open_store(settings.store_url, create=False)) as opened:
        known = {row.run_id for row in opened.find_runs(run_ids=run_ids, limit=len(run_ids))} if run_ids else set()
        for run_id in run_ids:
            if run_id not in known:
                raise RunNotFoundError(f"no run {run_id!r}; `lockstep runs` lists those there are", run_id=run_id)
        defects = list(check_store(opened, run_ids or None))
        if settings.redis_url and not run_ids:
            earlier = whereabouts(settings.redis_url, settings.namespace)
            time.sleep(LOOKS_APART_SECONDS)
            defects += check_tasks(opened, earlier, whereabouts(settings.redis_url, settings.namespace))
    if as_json:
        print_json({"defects": msgspec.to_builtins(defects)})
    else:
        for defect in defects:
            click.echo(f"run {defect.run_id}: {defect.what}; {defect.remedy}")
        click.echo(f"{len(defects)} defects found" if defects else "all is as it was committed", err=True)
    sys.exit(RUN_FAILED if defects else 0)
