"""A look at Redis from outside, for people: which workers live, and where tasks are."""

from __future__ import annotations

from typing import Any

import msgspec

from lockstep.broker.connection import connect, translated
from lockstep.broker.names import Names
from lockstep.broker.presence import WorkerInfo, read_presence, tasks_of


class Whereabouts(msgspec.Struct, frozen=True):
    """What Redis knows at one moment. `queued` and `claimed` tell a task, as (run_id, path in hex), its queue or its worker."""

    workers: list[WorkerInfo]
    suspended: bool
    queued: dict[tuple[str, str], str]
    claimed: dict[tuple[str, str], str]


def whereabouts(url: str, namespace: str) -> Whereabouts:
    """The workers, and the tasks in queues and with workers. Raises BrokerUnavailableError."""
    names, client = Names(namespace), connect(url)
    try:
        with translated(url):
            suspended = bool(client.exists(names.suspended))
            # Queues first: a task that moves from one to the other meanwhile is then seen twice rather than never.
            queued = _queued(client, names)
            presence = read_presence(client, names)
    finally:
        client.close()
    claimed = {
        (run_id, path.hex()): presence.claimed_by[job_id]
        for job_id, tasks in presence.tasks.items()
        for run_id, path, _ in tasks_of(tasks)
    }
    return Whereabouts(presence.workers, suspended, queued, claimed)


def _queued(client: Any, names: Names) -> dict[tuple[str, str], str]:
    found = {}
    for key in client.smembers(names.queues):
        queue = key.decode().removeprefix(names.queue_prefix)
        pipe = client.pipeline(transaction=False)
        for job_id in client.lrange(names.queue(queue), 0, -1):
            pipe.hget(names.job(job_id.decode()), "tasks")
        for tasks in pipe.execute():
            found.update({(run_id, path.hex()): queue for run_id, path, _ in tasks_of(tasks)})
    return found
