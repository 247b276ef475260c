"""Hands out ready items to the bounded queues: round-robin over runs, in order within a run's step and queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from lockstep.core.records import WorkItem
from lockstep.errors import BackpressureError, LockstepError
from lockstep.ports import Broker, Clock
from lockstep.records import Task
from lockstep.telemetry.counts import Counts
from lockstep_coordinator.ready import Lane, lane_of
from lockstep_coordinator.run import ActiveRun

OFFER_TASKS = 512
"""Tasks that are offered to the broker in one call."""

Planned = tuple[ActiveRun, WorkItem, Task]

SetTimer = Callable[[float, Callable[[], None]], None]


class Dispatcher:
    """Knows the runs that have items to hand out.

    `set_timer` calls an action after some seconds; `expire` ends a run that waited too long, with the error given.
    """

    def __init__(
        self,
        broker: Broker,
        counts: Counts,
        clock: Clock,
        set_timer: SetTimer,
        expire: Callable[[str, LockstepError], None],
    ) -> None:
        self._broker = broker
        self._counts = counts
        self._clock = clock
        self._set_timer = set_timer
        self._expire = expire
        self._waiting: dict[str, ActiveRun] = {}

    def add(self, run: ActiveRun) -> None:
        """The run may have ready items."""
        self._waiting[run.run_id] = run

    def remove(self, run: ActiveRun) -> None:
        """Hand out nothing more of the run."""
        self._waiting.pop(run.run_id, None)

    def dispatch(self) -> None:
        """Hand out what there is room for: one item of each run in turn, so that a large run can't starve a small one."""
        full: set[Lane] = set()
        while plan := self._plan(full):
            plan, waiting = _split(plan, self._permitted([task for _, _, task in plan]))
            # They wait for others of their node to end: nothing is full.
            full |= {lane_of(run.graph, item) for run, item, _ in waiting}
            accepted, refused = _split(plan, self._broker.offer([task for _, _, task in plan]) if plan else [])
            for run, item, _ in accepted:
                run.refused.pop(item.path, None)
            for run, item, _ in reversed([*waiting, *refused]):
                run.take_back(item)
                self._waiting[run.run_id] = run
            # Of each run and queue only the first was really refused; the others wait behind it.
            heads = {(run.run_id, task.queue): (run, item) for run, item, task in reversed(refused)}
            for (_, queue), (run, item) in heads.items():
                self._refuse(run, item, queue)
                full.add((queue, ""))

    def _permitted(self, tasks: Sequence[Task]) -> list[bool]:
        """Of each task, whether its node's max_concurrent lets it go now."""
        limited = [task for task in tasks if task.max_concurrent is not None]
        verdicts = iter(self._broker.permit(limited) if limited else ())
        return [task.max_concurrent is None or next(verdicts) for task in tasks]

    def hold_permits(self, runs: Iterable[ActiveRun]) -> None:
        """Tasks that an earlier owner of these runs has handed out count for their nodes, too."""
        self._permitted([run.task_for(item) for run in runs for item in run.limited_in_flight()])

    def _plan(self, full: Collection[Lane]) -> list[Planned]:
        """The next items to offer, at most OFFER_TASKS: in order within a run, in turn between runs; none for full lanes."""
        plan: list[Planned] = []
        ring = deque(self._waiting.values())
        while ring and len(plan) < OFFER_TASKS:
            run = ring.popleft()
            item = run.next_item(full)
            if item is not None:
                plan.append((run, item, run.task_for(item)))
            if not run.ready:
                del self._waiting[run.run_id]
            elif item is not None:
                ring.append(run)
                # Behind the others also at the next call, or with little room the first runs would get all of it.
                self._waiting[run.run_id] = self._waiting.pop(run.run_id)
        return plan

    def _refuse(self, run: ActiveRun, item: WorkItem, queue: str) -> None:
        """The item stays in the frontier and is offered again when there is room."""
        run_id, since = run.run_id, self._clock.monotonic()
        if not run.hold_back(item, queue, since):
            return
        self._counts.backpressure_events += 1
        if run.options.backpressure_timeout_seconds is not None:
            self._set_timer(run.options.backpressure_timeout_seconds, lambda: self._give_up(run_id, item, queue, since))

    def _give_up(self, run_id: str, item: WorkItem, queue: str, since: float) -> None:
        run = self._waiting.get(run_id)
        if run is None or run.refused.get(item.path) != since:
            return
        error = BackpressureError(
            f"node {item.node_id!r} found no room in queue {queue!r} for {self._clock.monotonic() - since:.1f} s; "
            f"add workers, raise queue_depth, or raise backpressure_timeout_seconds",
            run_id=run_id,
            step_id=run.row.step_id + 1,
            node_id=item.node_id,
            queue=queue,
            queue_depth=run.options.queue_depth,
            timeout_seconds=run.options.backpressure_timeout_seconds,
        )
        self._expire(run_id, error)


def _split(plan: Sequence[Planned], verdicts: Sequence[bool]) -> tuple[list[Planned], list[Planned]]:
    """Those with True, and those with False."""
    pairs = list(zip(plan, verdicts, strict=True))
    return [entry for entry, verdict in pairs if verdict], [entry for entry, verdict in pairs if not verdict]
