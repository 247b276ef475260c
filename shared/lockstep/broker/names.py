"""The names of all Redis keys, in one place: who writes each, and who deletes it."""

from __future__ import annotations

from datetime import UTC, datetime

EXECUTION = ":lockstep"
"""What follows a job's id in RQ's list of what runs, where RQ has the id of an execution."""


class Names:
    """The keys of a namespace. Those under `rq` have the names that RQ gives them, so its tools see our queues and workers."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.rq = f"{namespace}:rq"
        self.queues = f"{self.rq}:queues"
        self.suspended = f"{self.rq}:suspended"
        self.job_prefix = f"{self.rq}:job:"
        self.queue_prefix = f"{self.rq}:queue:"
        self.running_prefix = f"{self.rq}:wip:"
        self.depth_prefix = f"{namespace}:depth:"
        self.bell_prefix = f"{namespace}:bell:"
        self.refused_prefix = f"{namespace}:refused:"
        self.results_prefix = f"{namespace}:results:"
        self.claims_prefix = f"{namespace}:claims:"
        self.worker_prefix = f"{namespace}:worker:"
        self.state_prefix = f"{namespace}:state:"
        self.marker = f"{namespace}:marker"
        self.beats = f"{namespace}:beats"
        self.epochs = f"{namespace}:epochs"
        self.events = f"{namespace}:events"
        self.cancelled = f"{namespace}:cancelled"
        """Runs of which nothing more is wanted, by when that was said; has a TTL."""
        self.quarantine = f"{namespace}:quarantine"
        """A stream of messages that cannot be used; bounded, and it has a TTL."""

    def job(self, job_id: str) -> str:
        """RQ's hash of a job: made by the coordinator, deleted by the claim, or by its TTL."""
        return self.job_prefix + job_id

    def queue(self, queue: str) -> str:
        """RQ's list of a queue's job ids."""
        return self.queue_prefix + queue

    def depth(self, queue: str) -> str:
        """How many tasks a queue holds: counted up by the coordinators, down by the claim, and anew by each sweep."""
        return self.depth_prefix + queue

    def bell(self, queue: str) -> str:
        """A list that idle workers wait at, so that no job leaves its queue but by a claim. Bounded."""
        return self.bell_prefix + queue

    def refused(self, queue: str) -> str:
        """The streams of coordinators that found the queue full; the claim that makes room deletes it."""
        return self.refused_prefix + queue

    def results(self, partition_id: str) -> str:
        """The stream of results for a partition's owner, who deletes what it has stored."""
        return self.results_prefix + partition_id

    def claims(self, worker: str) -> str:
        """A hash of the jobs that a worker has taken and not answered; lives as long as the worker beats."""
        return self.claims_prefix + worker

    def worker(self, worker: str) -> str:
        """What a worker says of itself; lives as long as it beats."""
        return self.worker_prefix + worker

    def rq_worker(self, worker: str) -> str:
        """RQ's hash of a worker."""
        return f"{self.rq}:worker:{worker}"

    def events_of(self, run_id: str) -> str:
        """The stream of a run's events: made and bounded by relays, deleted by its TTL."""
        return f"{self.events}:{run_id}"

    def live(self, run_id: str) -> str:
        """The stream of what a run's nodes stream while they run: made and bounded by workers, deleted by its TTL."""
        return f"{self.namespace}:live:{run_id}"

    def permits(self, node: str) -> str:
        """The items of a node with max_concurrent that are handed out, and until when that counts; has a TTL."""
        return f"{self.namespace}:permits:{node}"

    def permits_waited_for(self, node: str) -> str:
        """The streams of coordinators that wait for a permit of the node; whoever gives one back deletes it; has a TTL."""
        return f"{self.namespace}:waiting:{node}"

    def state(self, digest: str) -> str:
        """A large state, by its SHA-256; has a TTL."""
        return self.state_prefix + digest


def rq_now() -> str:
    """The time as RQ writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rq_moment(text: str) -> float:
    """The time that RQ has written so, in seconds since 1970."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
