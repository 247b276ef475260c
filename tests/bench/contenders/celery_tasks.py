"""The tasks that Celery's worker runs. Where its broker is, the environment tells: worker and client import this module."""

import os

from celery import Celery
from tests.bench import shapes
from tests.bench.shapes import State

REDIS, NAMESPACE = os.environ["BENCH_CELERY_REDIS"], os.environ["BENCH_CELERY_NAMESPACE"]

app = Celery("bench", broker=REDIS, backend=REDIS)
prefix = {"global_keyprefix": f"{NAMESPACE}:"}
app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)


@app.task
def count(state: State) -> State:
    return shapes.count(state)


@app.task
def split(state: State) -> State:
    return shapes.split(state)


@app.task
def leaf(number: int) -> State:
    return shapes.leaf(number)


@app.task
def join(leaves: list[State]) -> State:
    state = {"found": [number for one in leaves for number in one["found"]]}
    return {**state, **shapes.join(state)}
