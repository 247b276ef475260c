"""What the installed RQ says and does, as JSON on stdout. RQ reads its prefix once, so each question is a process of its own.

rq_seam.py REDIS_URL NAMESPACE QUESTION
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import redis

from lockstep.broker.names import Names
from lockstep.config import set_rq_prefix

QUEUE = "default"


def keys(connection: redis.Redis) -> dict[str, str]:
    """The keys of which ours must be the same."""
    from rq import Queue
    from rq.job import Job
    from rq.registry import StartedJobRegistry
    from rq.suspension import WORKERS_SUSPENDED
    from rq.worker import BaseWorker
    from rq.worker_registration import REDIS_WORKER_KEYS

    return {
        "queues": Queue.redis_queues_keys,
        "queue": Queue(QUEUE, connection=connection).key,
        "job": Job.key_for("id"),
        "workers": REDIS_WORKER_KEYS,
        "worker": BaseWorker.redis_worker_namespace_prefix + "w",
        "suspended": WORKERS_SUSPENDED,
        "running": StartedJobRegistry(QUEUE, connection=connection).key,
    }


def jobs(connection: redis.Redis) -> dict[str, Any]:
    """The queue and its jobs, as RQ's tools see them."""
    from rq import Queue
    from rq.job import Job
    from rq.registry import StartedJobRegistry

    queue = Queue(QUEUE, connection=connection, serializer="json")
    fetched = [Job.fetch(job_id, connection=connection, serializer="json") for job_id in queue.job_ids]
    return {
        "queues": [each.name for each in Queue.all(connection=connection)],
        "count": queue.count,
        "running": StartedJobRegistry(QUEUE, connection=connection).get_job_ids(),
        "jobs": [
            {
                "id": job.id,
                "function": job.func_name,
                "arguments": job.args,
                "keywords": job.kwargs,
                "status": job.get_status(refresh=False),
                "origin": job.origin,
                "description": job.description,
                "created_at": job.created_at and job.created_at.isoformat(),
                "enqueued_at": job.enqueued_at and job.enqueued_at.isoformat(),
            }
            for job in fetched
        ],
    }


def empty(connection: redis.Redis) -> int:
    """Do what `rq empty` does."""
    from rq import Queue

    queue: Any = Queue(QUEUE, connection=connection)
    removed: int = queue.empty()
    return removed


def suspend(connection: redis.Redis) -> None:
    """Do what `rq suspend` does."""
    from rq.suspension import suspend

    suspend(connection)


def resume(connection: redis.Redis) -> None:
    """Do what `rq resume` does."""
    from rq.suspension import resume

    resume(connection)


def work_by_mistake(connection: redis.Redis) -> dict[str, Any]:
    """Let a worker of RQ take a job, and say what becomes of it."""
    from rq import Queue, SimpleWorker
    from rq.job import Job

    queue = Queue(QUEUE, connection=connection, serializer="json")
    [job_id] = queue.job_ids
    SimpleWorker([queue], connection=connection, serializer="json").work(burst=True, logging_level="CRITICAL")
    job: Any = Job.fetch(job_id, connection=connection, serializer="json")
    return {
        "status": job.get_status(),
        "said": job.latest_result().exc_string,
        "failed": queue.failed_job_registry.get_job_ids(),
    }


def seam(_: redis.Redis) -> dict[str, list[str]]:
    """What our worker overrides: RQ's signature and ours. A property has none."""
    from rq.worker import BaseWorker

    from lockstep_worker.process import RqWorker

    def shape(owner: type, name: str) -> str:
        attribute = inspect.getattr_static(owner, name)
        if isinstance(attribute, property):
            return "property"
        parameters = inspect.signature(attribute).parameters.values()
        return ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)

    overridden = [name for name in vars(RqWorker) if not name.startswith("__") and hasattr(BaseWorker, name)]
    return {name: [shape(BaseWorker, name), shape(RqWorker, name)] for name in overridden}


def loop(connection: redis.Redis, ending: str = "None") -> dict[str, Any]:
    """How RQ's loop calls what we override. It ends when there is no job, by a signal while one is executed, or by an error."""
    from rq.worker import BaseWorker

    from lockstep_worker.process import RqWorker

    calls: list[list[Any]] = []
    given = [("job 1", "queue 1"), ("job 2", "queue 2"), None]

    def recorded(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def record(self: Any, *arguments: Any) -> Any:
            calls.append([name, *[argument for argument in arguments if isinstance(argument, str)]])
            return answer(self, *arguments)

        return record

    def execute(self: Any, job: Any, queue: Any) -> None:
        if ending == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if ending == "error":
            raise ValueError("an error of ours")

    def stop(self: Any, *_: Any) -> None:
        self._stop_requested = True

    answers: dict[str, Callable[..., Any]] = {
        "dequeue_job_and_maintain_ttl": lambda self, *_: given.pop(0),
        "execute_job": execute,
        "request_stop": stop,
        "register_birth": BaseWorker.register_birth,
        "teardown": BaseWorker.teardown,
        "heartbeat": BaseWorker.heartbeat,
        "check_for_suspension": lambda self, burst: None,
    }
    methods: dict[str, Any] = {name: recorded(name, answer) for name, answer in answers.items()}
    methods["should_run_maintenance_tasks"] = property(lambda self: False)
    assert methods.keys() == {name for name in vars(RqWorker) if not name.startswith("__") and hasattr(BaseWorker, name)}
    recorder = type("Recorder", (BaseWorker,), methods)
    recorder([QUEUE], connection=connection, serializer="json").work(logging_level="CRITICAL")
    return {"calls": calls, "left": len(given), "workers": BaseWorker.count(connection=connection)}


def workers(connection: redis.Redis) -> list[dict[str, Any]]:
    """The workers, as RQ's tools see them."""
    from rq import Worker

    everyone = Worker.all(connection=connection)
    return [{"name": one.name, "pid": one.pid, "queues": one.queue_names(), "state": one.get_state()} for one in everyone]


QUESTIONS: list[Callable[..., Any]] = [keys, jobs, empty, suspend, resume, work_by_mistake, workers, seam, loop]


def main() -> None:
    url, namespace, question, *more = sys.argv[1:]
    set_rq_prefix(Names(namespace).rq)
    ask = {one.__name__: one for one in QUESTIONS}[question]
    sys.stdout.write(json.dumps(ask(redis.Redis.from_url(url), *more)))


if __name__ == "__main__":
    main()
