"""`Run`: one run as its user sees it. Reads the store; asks the run's owner through the inbox; executes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from lockstep.backend import Backend, ReplayReport
from lockstep.core.canonical import canonical_bytes
from lockstep.core.lifecycle import FINISHED, SETTLED, RunStatus
from lockstep.costs import Costs, as_text
from lockstep.errors import (
    BudgetExceededError,
    ConfigurationError,
    LockstepError,
    RunInterruptedError,
    RunNotFoundError,
    WaitTimeoutError,
)
from lockstep.forks import ForkInput, Origin, origin_of
from lockstep.history import StepRecord, read_costs, read_history, read_interrupts, read_position, read_state
from lockstep.interrupts import Interrupt, answers_for
from lockstep.models import values_of
from lockstep.options import DEFAULTS, Options, decode_options, encode_options
from lockstep.records import Command, NewRun, RunRow
from lockstep.streaming import Follower, StreamEvent, StreamMode, check_modes, typed
from lockstep.subgraphs import call_input_of, children_of
from lockstep.submission import check_same, checked_id, encoded_input, new_run_id
from lockstep.wire import ENGINE_EVENTS

UPDATE_SECONDS = 30.0
"""How long `update_state` waits for the run's owner."""
FIRST_POLL_SECONDS = 0.005
CHUNKS_POLL_SECONDS = 0.02
"""How often a coroutine looks for what nodes stream, where it has to look."""
POLL_SECONDS = 0.5
"""How often a waiting call looks into the store when nobody wakes it: the run may belong to another process."""


class Run:
    """A run: ask it, wait for it, follow it. Each method has a twin for asyncio, with an `a` before its name."""

    def __init__(self, run_id: str, backend: Backend, owner: object = None) -> None:
        self.run_id = run_id
        self.backend = backend
        self._owner = owner  # An engine lives as long as it, or a run of it, is used.
        self._changing_version = -1
        self._changing_below: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    def row(self) -> RunRow:
        """The run as stored. Raises RunNotFoundError."""
        rows = self.backend.reader.find_runs(run_ids=[self.run_id])
        if not rows:
            raise RunNotFoundError(f"no run {self.run_id!r}; `lockstep runs` lists those there are", run_id=self.run_id)
        return rows[0]

    @property
    def status(self) -> RunStatus:
        """Where the run stands: pending, running, interrupted, paused, succeeded, failed or cancelled."""
        return self.row().status

    @property
    def error(self) -> LockstepError | None:
        """What ended the run, if it failed or was cancelled."""
        return _error_of(self.row())

    def error_record(self) -> dict[str, Any] | None:
        """`error` as JSON values, with the fields that every error has."""
        error = self.error
        if error is None:
            return None
        located = {name: getattr(error, name) for name in ("run_id", "step_id", "node_id", "attempt")}
        return {**located, **error.to_record()}

    def result(self, timeout_seconds: float | None = None) -> dict[str, Any]:
        """The final state, once the run has succeeded; waits for its end. Where the graph is loaded, its `output_schema`.

        Raises what failed the run: NodeFailedError, with the node's exception as its `__cause__` where that was raised in this
        process, or another LockstepError; RunCancelledError, RunInterruptedError; BudgetExceededError for one that is paused;
        WaitTimeoutError after `timeout_seconds`.
        """
        changed = threading.Event()
        unsubscribe = self.backend.subscribe(self.run_id, changed.set, each_step=False)
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pauses = self._pauses()
        try:
            while not self.is_settled(row := self.row()):
                self.backend.check(self.run_id)
                pause = next(pauses)
                left = pause if deadline is None else min(pause, deadline - time.monotonic())
                if left <= 0:
                    raise self._timeout(timeout_seconds)
                changed.wait(left)
                changed.clear()
        finally:
            unsubscribe()
        return self._result_of(row)

    def _pauses(self) -> Iterator[float]:
        """How long to wait before looking again; where nobody announces changes, a tenth of what was waited until now."""
        started = time.monotonic()
        while True:
            waited = (time.monotonic() - started) / 10
            yield POLL_SECONDS if self.backend.announces else min(max(waited, FIRST_POLL_SECONDS), POLL_SECONDS)

    async def aresult(self, timeout_seconds: float | None = None) -> dict[str, Any]:
        """`result` without blocking the event loop; waiting takes no thread."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        unsubscribe = self.backend.subscribe(self.run_id, lambda: _set_from_thread(loop, changed), each_step=False)
        pauses = self._pauses()
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                while not self.is_settled(row := await asyncio.to_thread(self.row)):
                    self.backend.check(self.run_id)
                    await _wait_for(changed, next(pauses))
                return await asyncio.to_thread(self._result_of, row)
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._timeout(timeout_seconds) from None
        finally:
            unsubscribe()

    def _timeout(self, timeout_seconds: float | None) -> WaitTimeoutError:
        return WaitTimeoutError(
            f"run {self.run_id} is not done after {timeout_seconds:g} s; it goes on: wait again, or cancel it",
            run_id=self.run_id,
            timeout_seconds=timeout_seconds,
        )

    def _result_of(self, row: RunRow) -> dict[str, Any]:
        if row.status is RunStatus.SUCCEEDED:
            schema = self.backend.schema_of(row)
            state = read_state(self.backend.reader, self.run_id, row.step_id)
            return typed(schema, state if schema is None else schema.result(state))
        if row.status is RunStatus.PAUSED:
            spent, bound = as_text(self.costs().cost_usd), decode_options(json.loads(row.options)).max_cost_usd
            text = f"run {self.run_id} is paused: it has spent {spent} USD, and max_cost_usd is {bound}; go on with resume()"
            raise BudgetExceededError(text, run_id=self.run_id, max_cost_usd=str(bound))
        if row.status is RunStatus.INTERRUPTED:
            asked = [dataclasses.asdict(one) for one in self.interrupts()]
            how = f"answer what it asks with resume(): {asked}" if asked else "it stands at a breakpoint, go on with resume()"
            text = f"run {self.run_id} is {row.status}; {how}"
            raise RunInterruptedError(text, run_id=self.run_id, interrupts=asked)
        error = _error_of(row)
        assert error is not None, "a run that failed or was cancelled has its error"
        raise error from self.backend.cause_of(self.run_id)

    def state(self, step_id: int | None = None) -> dict[str, Any]:
        """The state after a step, or after the last committed one; typed where the run's graph is loaded, else JSON values.

        Raises StateError if that step is not committed.
        """
        row = self.row()
        return self.typed(row, read_state(self.backend.reader, self.run_id, row.step_id if step_id is None else step_id))

    def json_state(self) -> dict[str, Any]:
        """The state after the last committed step, as JSON values."""
        return read_state(self.backend.reader, self.run_id, self.row().step_id)

    async def astate(self, step_id: int | None = None) -> dict[str, Any]:
        """`state` without blocking the event loop."""
        return await asyncio.to_thread(self.state, step_id)

    def history(self) -> list[StepRecord]:
        """The committed steps, oldest first."""
        return list(read_history(self.backend.reader, self.run_id, 0, self.row().step_id))

    async def ahistory(self) -> list[StepRecord]:
        """`history` without blocking the event loop."""
        return await asyncio.to_thread(self.history)

    def stream(self, modes: Sequence[StreamMode] = ("values",), *, after: str | None = None) -> Iterator[StreamEvent]:
        """What the run does, as it does it, from its beginning on; ends with the run, raising what `result` would raise.

        `modes` says what, see `StreamEvent`. `after` is the offset of the last event that was seen of an earlier stream with
        these modes: this one goes on behind it. Steps and events are read from the store, so a slow reader holds nothing up
        and misses nothing of them. Raises ConfigurationError for modes that there are not, or not here.
        """
        check_modes(modes)
        return self._stream(Follower(self.backend, self.run_id, modes, after))

    def _stream(self, follower: Follower) -> Iterator[StreamEvent]:
        changed = threading.Event()
        unsubscribe = self.backend.subscribe(self.run_id, changed.set, each_step=True)
        pauses = self._pauses()
        try:
            while not follower.ended:
                row = self.row()
                yield from (events := follower.read(row, self.is_settled(row)))
                if events:
                    pauses = self._pauses()
                elif not follower.ended:
                    self.backend.check(self.run_id)
                    pause = next(pauses)
                    if follower.waits_for_chunks:
                        yield from follower.chunks(pause)
                    else:
                        changed.wait(pause)
                        changed.clear()
        finally:
            unsubscribe()
            follower.close()
        self._result_of(self.row())

    def astream(self, modes: Sequence[StreamMode] = ("values",), *, after: str | None = None) -> AsyncIterator[StreamEvent]:
        """`stream` without blocking the event loop."""
        check_modes(modes)
        return self._astream(Follower(self.backend, self.run_id, modes, after))

    async def _astream(self, follower: Follower) -> AsyncIterator[StreamEvent]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        unsubscribe = self.backend.subscribe(self.run_id, lambda: _set_from_thread(loop, changed), each_step=True)
        pauses = self._pauses()
        try:
            while not follower.ended:
                row = await asyncio.to_thread(self.row)
                events = await asyncio.to_thread(follower.read, row, self.is_settled(row))
                for event in events:
                    yield event
                if events:
                    pauses = self._pauses()
                elif not follower.ended:
                    self.backend.check(self.run_id)
                    until = time.monotonic() + next(pauses)
                    while not changed.is_set() and (left := until - time.monotonic()) > 0:
                        if not follower.waits_for_chunks:
                            await _wait_for(changed, left)
                            break
                        # Without blocking: who waits must not take a thread from those that do something.
                        for event in await asyncio.to_thread(follower.chunks, 0.0):
                            yield event
                        if follower.is_behind:
                            break
                        await asyncio.sleep(min(left, CHUNKS_POLL_SECONDS))
                    changed.clear()
        finally:
            unsubscribe()
            await asyncio.to_thread(follower.close)
        await asyncio.to_thread(lambda: self._result_of(self.row()))

    def interrupts(self) -> list[Interrupt]:
        """What the run's nodes ask and nobody has answered, in ascending order_key; also while other nodes still run."""
        row = self.row()
        if row.status in FINISHED or row.step_id < 0:
            return []
        return read_interrupts(self.backend.reader, row)

    async def ainterrupts(self) -> list[Interrupt]:
        """`interrupts` without blocking the event loop."""
        return await asyncio.to_thread(self.interrupts)

    def resume(self, answer: Any = None, *, options: Options | None = None) -> None:
        """Answer what the run's nodes ask: any value if it is one question, else a dict of values by the ids of `interrupts`.

        Only the nodes whose questions are answered run again, each from its top. A run at a breakpoint goes on. One that is
        paused because it has spent its max_cost_usd goes on with `options`, in which that is the new bound for the whole run;
        by default, it may spend as much again. Raises ConfigurationError if nothing is asked, or several things are and the
        answer does not say which; StateError for what is no JSON.
        """
        row = self.row()
        if row.status is RunStatus.PAUSED:
            self._changing_version = row.version
            self._command("unpause", encode_options(DEFAULTS.overridden(options)))
            return
        pending = self.interrupts()
        if not pending and row.status is RunStatus.INTERRUPTED:
            self._changing_version = row.version
            self._send_to_each([(run.run_id, {}) for run in self._at_rest()])  # It stands at a breakpoint.
            return
        if not pending:
            raise ConfigurationError(
                f"run {self.run_id} is {row.status} and asks nothing; there is nothing to resume", option="resume"
            )
        answers = answers_for(pending, answer)
        for one, value in answers.items():
            canonical_bytes(value, field=f"the answer to {one}")
        if answers.keys() == {one.id for one in pending} or row.status is RunStatus.INTERRUPTED:
            self._changing_version = row.version
        by_run: dict[str, dict[str, Any]] = {}
        for question in pending:
            if question.id in answers:
                by_run.setdefault(question.run_id, {})[question.id] = answers[question.id]
        self._send_to_each(list(by_run.items()))

    def _send_to_each(self, answers: list[tuple[str, dict[str, Any]]]) -> None:
        """Answer what this run and its subgraphs ask. While some of them still waits, this one is not at rest."""
        rows = self.backend.reader.find_runs(run_ids=[run_id for run_id, _ in answers], limit=len(answers))
        self._changing_below = {row.run_id: row.version for row in rows if row.status is RunStatus.INTERRUPTED}
        for run_id, of_run in answers:
            Run(run_id, self.backend, owner=self._owner)._command("resume", of_run)

    def _at_rest(self) -> Iterator[Run]:
        """Which runs stand at a breakpoint: some of its subgraphs, or else this one."""
        if self.status is RunStatus.INTERRUPTED:
            below = [run for child in self.children() for run in child._at_rest()]
            yield from below or [self]

    async def aresume(self, answer: Any = None, *, options: Options | None = None) -> None:
        """`resume` without blocking the event loop."""
        await asyncio.to_thread(self.resume, answer, options=options)

    def costs(self) -> Costs:
        """What the run's calls to models have used and cost until now, see `Context.llm_usage`: whole, by node and by model."""
        return read_costs(self.backend.reader, self.row())

    async def acosts(self) -> Costs:
        """`costs` without blocking the event loop."""
        return await asyncio.to_thread(self.costs)

    def update_state(self, update: Any, as_node: str | None = None, *, timeout_seconds: float = UPDATE_SECONDS) -> int:
        """Change the state of a run that is interrupted, paused or failed, and return the step that does so.

        The fields go through their reducers. What was due begins anew on the new state, and a question is asked again; with
        `as_node`, the run goes on as if that node had just returned this, its routers included. An interrupted or failed run
        goes on at once, unless it stands at a breakpoint. Raises StateError for another status, or what does not fit the
        state, ConflictError, ReducerError, and WaitTimeoutError if nobody has taken it in by then.
        """
        row = self.row()
        payload = {"update": self._dumped(row, update, "the update"), "as_node": as_node}
        self._changing_version = row.version
        command_id = self._command("update", payload)
        changed = threading.Event()
        unsubscribe = self.backend.subscribe(self.run_id, changed.set, each_step=True)
        deadline, pauses = time.monotonic() + timeout_seconds, self._pauses()
        try:
            while (answer := self._answer_to(command_id, row.version)) is None:
                self.backend.check(self.run_id)
                if (left := min(next(pauses), deadline - time.monotonic())) <= 0:
                    raise self._timeout(timeout_seconds)
                changed.wait(left)
                changed.clear()
        finally:
            unsubscribe()
        if isinstance(answer, LockstepError):
            raise answer
        return answer

    def _answer_to(self, command_id: str, since: int) -> int | LockstepError | None:
        """The step that carried out a command, or why it was refused; None: neither is committed."""
        for event in self.backend.reader.events(self.run_id, since):
            if event.type in (f"{ENGINE_EVENTS}updated", f"{ENGINE_EVENTS}refused"):
                said = json.loads(event.data)
                if said["command_id"] == command_id:
                    return LockstepError.from_record(said["error"]) if "error" in said else event.step_id
        return None

    def _dumped(self, row: RunRow, update: Any, what: str) -> dict[str, Any]:
        values = values_of(update, what)
        schema = self.backend.schema_of(row)
        plain = values if schema is None else schema.dumped(values)
        encoded_input(plain, decode_options(json.loads(row.options)), what)
        return plain

    async def aupdate_state(self, update: Any, as_node: str | None = None) -> int:
        """`update_state` without blocking the event loop."""
        return await asyncio.to_thread(self.update_state, update, as_node)

    def fork(
        self,
        step_id: int | None = None,
        update: Any = None,
        *,
        as_node: str | None = None,
        run_id: str | None = None,
        options: Options | None = None,
    ) -> Run:
        """Begin a new run with what this one had come to after a step (the last one), changed as by `update_state`.

        Its step 0 is that; the nodes that were due then run, on the version of the graph that this run is pinned to now, with
        its options, where `options` does not change them. This run stays as it is. Raises StateError if that step is not
        committed, or the update does not fit.
        """
        row = self.row()
        at = row.step_id if step_id is None else step_id
        position = read_position(self.backend.reader, self.run_id, at)
        [step] = self.backend.reader.steps(self.run_id, at, at)
        begun = ForkInput(
            run_id=self.run_id,
            step_id=at,
            state=position.state.values,
            frontier=json.loads(step.frontier),
            update=self._dumped(row, update if update is not None else {}, "the update"),
            as_node=as_node,
        )
        chosen = decode_options(json.loads(row.options)).overridden(options)
        new = NewRun(
            run_id=checked_id("run_id", run_id) if run_id is not None else new_run_id(),
            graph=row.graph,
            graph_hash=row.graph_hash,
            input=begun.encoded(),
            options=canonical_bytes(encode_options(chosen)),
            partition_id="",
            shard=row.shard,
            parent_run_id=self.run_id,
        )
        stored = self.backend.begin(new)
        check_same(stored, new.graph, new.input)
        return Run(stored.run_id, self.backend, owner=self._owner)

    async def afork(self, step_id: int | None = None, update: Any = None, **choices: Any) -> Run:
        """`fork` without blocking the event loop."""
        return await asyncio.to_thread(self.fork, step_id, update, **choices)

    @property
    def origin(self) -> Origin | None:
        """Where this run was forked from: run and step; None: it was not."""
        return origin_of(self.row())

    def forks(self) -> Iterator[Run]:
        """The runs that were forked from this one, ascending by run_id."""
        after = None
        while rows := self.backend.reader.find_runs(parent=self.run_id, after=after):
            yield from (Run(row.run_id, self.backend, owner=self._owner) for row in rows if origin_of(row) is not None)
            after = rows[-1].run_id

    @property
    def parent(self) -> Run | None:
        """The run of which this one is a subgraph; None: it is none."""
        row = self.row()
        if call_input_of(row) is None or row.parent_run_id is None:
            return None
        return Run(row.parent_run_id, self.backend, owner=self._owner)

    def children(self) -> Iterator[Run]:
        """The runs of its subgraphs, ascending by run_id: each has a state, a history and children of its own."""
        for row in children_of(self.backend.reader, self.run_id):
            yield Run(row.run_id, self.backend, owner=self._owner)

    def replay(self) -> ReplayReport:
        """Execute the run's nodes again, as journalled, and compare all that they do; nothing is stored, and no call is made.

        Each node gets its state, its random numbers, its answers and what `ctx.record` got, and must ask for the same and
        return the same; the steps must merge to the same bytes. It goes by the nodes that have a result; of failed attempts
        nothing is repeated. Raises ReplayMismatchError at the first difference; GraphVersionError where the graph is not
        loaded; ConfigurationError from a client, which has no graphs: use an Engine on the same store, or `lockstep replay`.
        """
        return self.backend.replay(self.row())

    async def areplay(self) -> ReplayReport:
        """`replay` without blocking the event loop."""
        return await asyncio.to_thread(self.replay)

    def cancel(self, reason: str = "requested") -> None:
        """Ask the run's owner to end it; `result` then raises RunCancelledError. One that has ended stays as it is."""
        row = self.row()
        if row.status in SETTLED - FINISHED:
            self._changing_version = row.version
        self._command("cancel", reason)

    def is_settled(self, row: RunRow) -> bool:
        """Whether nothing more comes without somebody's doing; not while its retry, resume or cancel is under way."""
        if row.status not in SETTLED or row.version <= self._changing_version:
            return False
        if row.status is RunStatus.INTERRUPTED and len(below := self._changing_below) > 1:
            rows = self.backend.reader.find_runs(run_ids=list(below), limit=len(below))
            # Each has its answer, and there is something else for which this run waits.
            return all(one.version > below[one.run_id] for one in rows) and (
                bool(self.interrupts()) or any(child.status is RunStatus.INTERRUPTED for child in self.children())
            )
        return True

    def retry(self, options: Options | None = None) -> None:
        """Ask the owner to go on with a failed run from its last commit; items that had a result keep it.

        `options` override the run's from now on: another conflict_policy, more max_steps. Of a run that has not failed, nothing
        is changed. Raises ConfigurationError for queue_depth, which is not a run's.
        """
        changes = encode_options(DEFAULTS.overridden(options))
        row = self.row()
        if row.status is RunStatus.FAILED:
            self._changing_version = row.version
            self._command("retry", changes)

    def _command(self, kind: str, payload: Any) -> str:
        command_id = uuid.uuid4().hex
        self.backend.send(Command(run_id=self.run_id, command_id=command_id, kind=kind, payload=canonical_bytes(payload)))
        return command_id

    def typed(self, row: RunRow, values: dict[str, Any]) -> dict[str, Any]:
        """Values as their annotations say, where the run's graph is loaded."""
        return typed(self.backend.schema_of(row), values)


def runs_of(
    backend: Backend, owner: object, status: RunStatus | str | None, graph: str | None, thread_id: str | None = None
) -> Iterator[Run]:
    """All runs that are such, ascending by run_id, in pages. Raises ConfigurationError for an unknown status."""
    try:
        wanted = RunStatus(status) if status is not None else None
    except ValueError:
        known = ", ".join(RunStatus)
        raise ConfigurationError(f"status {status!r} is not one of {known}", option="status") from None
    return _pages(backend, owner, wanted, graph, thread_id)


def _pages(
    backend: Backend, owner: object, status: RunStatus | None, graph: str | None, thread_id: str | None
) -> Iterator[Run]:
    after = None
    while rows := backend.reader.find_runs(status=status, graph=graph, thread_id=thread_id, after=after):
        yield from (Run(row.run_id, backend, owner=owner) for row in rows)
        after = rows[-1].run_id


def _error_of(row: RunRow) -> LockstepError | None:
    return LockstepError.from_record(json.loads(row.error)) if row.error is not None else None


async def _wait_for(changed: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most this long, and take it back."""
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()
    changed.clear()


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    # A loop that is closed has nobody waiting; it may close at any moment.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)
