"""The command line under settings that are as hard as they can be: `strict.py SETTINGS ARGUMENTS...`, with commas between them.

redeliver   a worker hands each task back that it gets for the first time
lease       a coordinator's lease holds for a second
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from msgspec.structs import replace

SHORT_LEASE_SECONDS = 1.0


def hand_back_at_first() -> None:
    from lockstep.broker.worker import ClaimedJob
    from lockstep_worker.process import WorkerProcess

    start = WorkerProcess.start

    def starting(process: WorkerProcess, jobs: Sequence[ClaimedJob]) -> None:
        """Only what comes again is started."""
        first = [[task.handed_back("for the first time") for task in job.tasks if task.delivery == 1] for job in jobs]
        start(process, [replace(job, refused=[*job.refused, *some]) for job, some in zip(jobs, first, strict=True)])

    WorkerProcess.start = starting  # type: ignore[method-assign]


def shorten_leases() -> None:
    from lockstep_coordinator import lease

    lease.LEASE_SECONDS = SHORT_LEASE_SECONDS


def main() -> None:
    settings, *arguments = sys.argv[1:]
    from lockstep.cli import main as command_line
    from lockstep.config import set_rq_prefix

    if arguments[0] == "worker":
        set_rq_prefix(f"{os.environ['LOCKSTEP_NAMESPACE']}:rq")
    for setting in filter(None, settings.split(",")):
        {"redeliver": hand_back_at_first, "lease": shorten_leases}[setting]()
    command_line(arguments, prog_name="lockstep")


if __name__ == "__main__":
    main()
