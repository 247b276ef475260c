"""The worker process: RQ is the transport, the registry and the operators' view; taking and executing tasks is ours.

What is overridden of RQ's worker is a small seam: dequeue, execute, stop, heartbeat, maintenance, teardown. RQ reads its prefix
of keys from the environment when it is imported: call `lockstep.config.set_rq_prefix` before importing this module.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import redis
import structlog
from redis.exceptions import RedisError
from rq.suspension import WORKERS_SUSPENDED
from rq.worker import BaseWorker, WorkerStatus

from lockstep.broker.beat import RQ_WORKER_TTL_SECONDS, start_beating
from lockstep.broker.connection import check_server, connect
from lockstep.broker.presence import WorkerInfo
from lockstep.broker.signing import Signer
from lockstep.broker.worker import ClaimedJob, WorkerLink
from lockstep.compiled import CompiledGraph
from lockstep.prices import PRICES, Pricing
from lockstep.records import Chunk, HandedBack, Task, TaskResult
from lockstep.telemetry.pulse import Pulse
from lockstep.telemetry.spans import Spans
from lockstep_worker.claims import Claims
from lockstep_worker.executor import Executor
from lockstep_worker.sender import Outgoing, ResultSender

LOOK_SECONDS = 1
"""How often the worker looks whether it is suspended or has to stop, while there is nothing to do."""

WAIT_FOR_SLOT_SECONDS = 1.0
"""How long a claimed task may wait for a slot; then it is handed back, for others may have one."""

OUTAGE_PAUSE_SECONDS = 0.5
"""The pause before Redis is asked again after it did not answer."""

RQ_TTL_SECONDS = 30
"""From it, RQ derives how long its own connection waits for an answer."""

log = structlog.get_logger()


def execute(*_: object) -> None:
    """What a job names to RQ's own workers, which cannot execute it."""
    raise RuntimeError("tasks of Lockstep are executed by `lockstep worker`, not by an RQ worker")


class WorkerProcess:
    """Takes tasks from queues, executes them in its slots, and sends the results; needs Redis and nothing else.

    `graphs` are the graphs it knows, by hash. With `signing_keys`, it takes only signed tasks. Raises BrokerUnavailableError or
    ConfigurationError if Redis can't be used.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        graphs: Mapping[str, CompiledGraph],
        *,
        queues: Sequence[str],
        slots: int,
        drain_seconds: float,
        signing_keys: Sequence[str] = (),
        pricing: Pricing = PRICES,
        spans: Spans | None = None,
    ) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.info = WorkerInfo(
            name=name, host=socket.gethostname(), pid=os.getpid(), slots=slots, queues=tuple(queues), graphs=tuple(graphs)
        )
        self._url = url
        self._namespace = namespace
        self._graphs = graphs
        self._drain_seconds = drain_seconds
        self._beating: subprocess.Popen[bytes] | None = None
        self.stopping = False
        """Whether a signal has said to stop, or something has failed."""
        self.failure: Exception | None = None
        self.takes = False
        """Whether it has begun to take tasks; from then on it also drains when it is told to stop."""
        self.pulse = Pulse()
        self.redis_errors = 0
        self.link = WorkerLink(url, namespace, self.info, Signer(namespace, signing_keys) if signing_keys else None)
        self._rq_connection = connect(url)
        check_server(self._rq_connection, url)
        self.claims = Claims(lambda: slots - self.executor.running)
        self.executor = Executor(graphs, slots, name, self.claims.take, self._answer, self._stream, pricing, spans=spans)
        self.sender = ResultSender(self.link, lambda: self.link.reclaim(self.claims.described()), self.fail)

    def run(self) -> None:
        """Work until a signal says to stop. An error of our own making ends it, too: what it has is then done elsewhere."""
        try:
            while not self.stopping:
                self._work()
        finally:
            self._stop_beating()
            self._close()
        if self.failure is not None:
            raise self.failure

    def fail(self, error: Exception) -> None:
        """End `run` with this error, and finish nothing."""
        self.failure = self.failure or error
        self.stopping = True

    def _work(self) -> None:
        """RQ's loop, until a signal says to stop, or it ends for another reason."""
        self.keep_beating()
        self.pulse.beat()
        try:
            RqWorker(self, self._rq_connection).work(logging_level="WARNING")
        except (RedisError, OSError) as error:
            self.redis_errors += 1
            log.warning("Redis does not answer", error=str(error))
        if not self.stopping:
            log.error("the worker's loop has ended; it begins anew", worker=self.info.name)
            time.sleep(OUTAGE_PAUSE_SECONDS)

    def keep_beating(self) -> None:
        """Start the process that says that this one is alive, unless it runs: a silent worker loses all its tasks."""
        if self._beating is not None and self._beating.poll() is None:
            return
        if self._beating is not None:
            log.warning("the process that beats has ended; another one is started", code=self._beating.returncode)
            self._stop_beating()
        self._beating = start_beating(self._url, self._namespace, self.info)

    def _stop_beating(self) -> None:
        if self._beating is not None:
            assert self._beating.stdin is not None
            self._beating.stdin.close()
            self._beating.kill()  # It may wait for Redis, and has nothing to finish.
            self._beating.wait()

    def request_stop(self, number: int) -> None:
        """Make `run` finish what there is and return; asked once more, end the process at once."""
        if self.stopping:
            os._exit(128 + number)
        log.info("stopping", signal=signal.Signals(number).name, worker=self.info.name)
        self.stopping = True

    def _knows(self, task: Task) -> bool:
        graph = self._graphs.get(task.graph_hash)
        return graph is not None and task.place in graph.nodes

    def start(self, jobs: Sequence[ClaimedJob]) -> None:
        """Execute the tasks of jobs that this process has claimed."""
        for job in jobs:
            unknown = [task for task in job.tasks if not self._knows(task)]
            strange = [
                task.handed_back(f"no {task.node_id} of graph {task.graph_hash} on {self.info.name}") for task in unknown
            ]
            refused = [*job.refused, *strange]
            self.claims.add(job, refused)
            for answer in refused:
                self._answer(answer)
        self.executor.pump()

    def _answer(self, answer: TaskResult | HandedBack) -> None:
        settled = self.claims.settle(answer)
        if settled is not None:
            self.sender.put(Outgoing(settled.partition_id, answer, settled.finished))

    def _stream(self, chunk: Chunk) -> None:
        self.sender.stream(chunk)

    def hand_back_waiting(self, after_seconds: float, reason: str) -> None:
        """Hand back the tasks that wait for a slot for so long."""
        for handed_back in self.claims.give_up_waiting(after_seconds, reason):
            self._answer(handed_back)

    def end_cancelled(self) -> None:
        """Cancel the nodes of runs of which nothing more is wanted."""
        if not len(self.claims):
            return
        for run_id, seconds_ago in self.link.newly_cancelled():
            for handed_back in self.claims.give_up_run(run_id, "its run was cancelled"):
                self._answer(handed_back)
            # What has started since belongs to a retry of the run.
            self.executor.cancel(run_id, time.perf_counter() - seconds_ago)

    def reading(self) -> Mapping[str, Any]:
        """What is to be said to Prometheus; without the queues where Redis does not answer."""
        reading = {
            **self.executor.reading(),
            "lockstep_dropped_chunks_total": self.sender.dropped_chunks,
            "lockstep_quarantined_messages_total": self.link.quarantined,
            "lockstep_redis_errors_total": self.redis_errors,
        }
        try:
            return {**reading, "langgraph_queue_depth": self.link.depths()}
        except (RedisError, OSError):
            return reading

    def not_ready(self) -> str | None:
        """Why this worker takes nothing at the moment; None: it does."""
        if self.stopping or not self.takes:
            return "it is stopping" if self.stopping else "it has not begun to take tasks"
        try:
            self.link.depths()
        except (RedisError, OSError) as error:
            return f"Redis does not answer: {error}"
        return None

    def drain(self) -> None:
        """Take nothing more: hand back what waits, finish what runs, or hand that back too when it takes too long."""
        self.hand_back_waiting(0.0, "the worker is stopping")
        deadline = time.monotonic() + self._drain_seconds
        if not self.claims.wait_until_empty(self._drain_seconds):
            for handed_back in self.claims.unanswered("the worker has stopped"):
                self._answer(handed_back)
        self.sender.flush(max(1.0, deadline - time.monotonic()))

    def _close(self) -> None:
        self.executor.close()
        self.sender.close()
        try:
            self.link.leave()
        except (RedisError, OSError) as error:
            log.warning("the worker cannot take its keys away; they expire", error=str(error))
        self.link.close()
        self._rq_connection.close()


class RqWorker(BaseWorker):
    """RQ's worker, with the seam overridden."""

    def __init__(self, process: WorkerProcess, connection: redis.Redis) -> None:
        super().__init__(
            list(process.info.queues),
            name=process.info.name,
            connection=connection,
            worker_ttl=RQ_TTL_SECONDS,
            serializer="json",
        )
        self._process = process
        self._next_look = 0.0
        self._found_all = False
        self._shown = ""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT. The process knows it, not this object: the next one must stop, too."""
        self._process.request_stop(signum)

    def check_for_suspension(self, burst: bool) -> None:
        """Nothing: the claim itself looks, so that a suspended worker takes nothing."""

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Never: RQ would fail jobs that it believes to be lost. Coordinators hand them out again."""
        return False

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """The next jobs, as soon as slots are free; None when the worker is to stop."""
        self._process.takes = True
        while not self._process.stopping:
            self._process.pulse.beat()
            try:
                self._look()
                self._process.hand_back_waiting(WAIT_FOR_SLOT_SECONDS, "it waited for a slot")
                room = self._process.claims.wait_for_room(LOOK_SECONDS)
                if self._process.sender.is_full:
                    time.sleep(OUTAGE_PAUSE_SECONDS)
                elif room > 0:
                    if self._found_all:
                        self._process.link.wait(LOOK_SECONDS)
                    jobs = self._process.link.claim(room)
                    # Fewer than there was room for: then the queues were empty, and who adds to one rings.
                    self._found_all = len(jobs) < room
                    if jobs:
                        return jobs, None
            except (RedisError, OSError) as error:
                self._process.redis_errors += 1
                log.warning("Redis does not answer; trying again", error=str(error))
                time.sleep(OUTAGE_PAUSE_SECONDS)
            except Exception as error:
                self._process.fail(error)
        return None

    def execute_job(self, job: Any, queue: Any) -> None:
        """Hand the jobs to the executor."""
        try:
            self._process.start(job)
        except Exception as error:
            self._process.fail(error)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Nothing: an error here would end RQ's loop. Between jobs, the worker looks."""

    def _look(self) -> None:
        """Once a second: tell RQ's registry how this worker is; after it has forgotten, register anew."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        self._process.keep_beating()
        self._process.end_cancelled()
        known, suspended = self.connection.exists(self.key), self.connection.exists(WORKERS_SUSPENDED)
        if not known:
            self.register_birth()
            self._shown = ""
        state = WorkerStatus.SUSPENDED if suspended else WorkerStatus.BUSY if len(self._process.claims) else WorkerStatus.IDLE
        if state != self._shown:
            self.set_state(state)
            self._shown = state
        super().heartbeat(RQ_WORKER_TTL_SECONDS)

    def register_birth(self) -> None:
        """Appear on RQ's lists. The name is this process's alone: what stands there under it is from before an outage."""
        self.connection.delete(self.key)
        super().register_birth()  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        """Finish first; then RQ takes the worker off its lists."""
        if self._process.stopping and self._process.failure is None:
            self._process.drain()
        super().teardown()  # type: ignore[no-untyped-call]
