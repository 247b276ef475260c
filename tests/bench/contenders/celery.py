"""Celery: a chain, or a chord, of tasks over Redis, as broker and as result backend, with one worker process.

Not durable: Redis keeps what it keeps, and the worker acknowledges a task before it runs. The pool is threads: for nodes that
do nothing it is the fastest of prefork, solo and threads.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import chain, group
from celery.result import AsyncResult
from tests.bench.contenders import roles
from tests.bench.contenders.child import THREADS, Job, Runner, measure
from tests.bench.shapes import State


@contextmanager
def opened(job: Job) -> Iterator[Runner]:
    os.environ.update(BENCH_CELERY_REDIS=job.redis, BENCH_CELERY_NAMESPACE=job.namespace)  # For the worker too.
    from tests.bench.contenders import celery_tasks as tasks

    def canvas() -> Any:
        if job.shape == "chain":
            return chain(*[tasks.count.s() for _ in range(job.parameters["steps"])])
        return tasks.split.s() | group(tasks.leaf.si(number) for number in range(job.parameters["width"])) | tasks.join.s()

    def begin(run_id: str) -> AsyncResult:
        return canvas().apply_async((job.begin,))

    def ended(results: Sequence[AsyncResult]) -> list[State]:
        return [result.get() for result in results]

    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", tasks.__name__, "worker", "--loglevel", "WARNING"]
    with roles.running(job, worker=[*command, "--pool", "threads", "--concurrency", str(THREADS)]):
        yield Runner(begin, ended)


if __name__ == "__main__":
    measure(opened, ["celery", "kombu", "redis"])
    sys.stdout.flush()
    os._exit(0)  # All is closed. What Python would collect now are results, which then complain that Python is ending.
