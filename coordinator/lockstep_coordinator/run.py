"""One run in a coordinator's memory: what is committed, what has arrived since, and the transition that follows from both.

Nothing here talks to a store, a broker or a clock, and nothing is lost with it: `recovery` makes it again from the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import msgspec

from lockstep.compiled import CompiledGraph
from lockstep.core.canonical import MAX_DEPTH, canonical_bytes
from lockstep.core.frontier import decode_frontier
from lockstep.core.lifecycle import FINISHED, RunStatus, may_move
from lockstep.core.outside import fork, migrate, update
from lockstep.core.records import Frontier, Write
from lockstep.core.state import State
from lockstep.core.superstep import Step, advance, begin
from lockstep.costs import as_text, total
from lockstep.errors import GraphVersionError, LockstepError, RunCancelledError, StateError, text_of
from lockstep.forks import fork_input_of
from lockstep.interrupts import question_id
from lockstep.options import Options, decode_options, encode_options
from lockstep.records import Command, Event, JournalRow, RunRow, RunUpdate, StepRow, Transition
from lockstep.subgraphs import begins_with
from lockstep.wire import ENGINE_EVENTS
from lockstep_coordinator.items import ItemsUnderWay, Retry
from lockstep_coordinator.questions import Due

SNAPSHOT_MIN_BYTES = 16 * 1024
"""Below this many bytes of patches since the last snapshot, no new one is taken, however small the state."""

CHANGEABLE = frozenset({RunStatus.INTERRUPTED, RunStatus.PAUSED, RunStatus.FAILED})
"""The statuses in which a run's state is changed from outside: nothing of it is under way, and it can go on."""

FRONTIER_DEPTH = MAX_DEPTH + 3
"""Levels in a frontier's JSON: those of a Send's payload, and its own."""

BACKPRESSURE = f"{ENGINE_EVENTS}backpressure"
"""The event of a step some of whose items had to wait for room in a queue: how many, and for which."""


class ActiveRun(ItemsUnderWay):
    """A run that this coordinator owns, with the items of its step under way."""

    def __init__(self, row: RunRow, graph: CompiledGraph, options: Options) -> None:
        super().__init__(row, graph, options)
        self.cause: BaseException | None = None
        self.base: State | None = None
        self.parent: ActiveRun | None = None
        self.children: dict[bytes, ActiveRun] = {}
        self.called_at = b""
        self._asking_children: set[bytes] = set()
        self._fatal: LockstepError | None = None
        self._migrated: Step | None = None
        self._consumed: list[str] = []
        self._revived = False
        self._unpaused = False
        self._updating: Command | None = None
        self._patch_bytes = 0
        self._snapshot_bytes = 0

    @property
    def error_type(self) -> str:
        """The type of the error that ended the run; "" for none."""
        return str(json.loads(self.row.error)["type"]) if self.row.error is not None else ""

    def resume(
        self, state: State, frontier: Frontier, patch_bytes: int, journal: Iterable[JournalRow], now: float
    ) -> list[Retry]:
        """Go on from what the store holds of a run that was begun before; the items whose pause has not ended at `now`."""
        self._snapshot_bytes, self._patch_bytes = len(state.to_bytes()), patch_bytes
        return self._go_on(state, frontier, journal, now)

    def migrate(self, state: State, frontier: Frontier) -> None:
        """Go on from here with another version of the graph, once that is committed. What fails now, fails the run."""
        migration = self.graph.migrations[self.row.graph_hash]
        self._snapshot_bytes = len(state.to_bytes())
        if self.row.status is not RunStatus.RUNNING:
            return  # A failed one is not changed before it is retried.
        try:
            values = migration.function(json.loads(state.to_bytes()))
            args = (self.graph.program, self.run_id, self.row.step_id + 1, state, frontier)
            self._migrated = migrate(*args, values, migration.nodes)
        except Exception as raised:  # of a function that is the user's
            self.cause = raised
            text = (
                f"the migration of run {self.run_id} from version {self.row.graph_hash[:12]} to {self.graph.hash[:12]} "
                f"of graph {self.graph.name!r} raised {type(raised).__name__}: {text_of(raised)}; "
                f"mend it, then `lockstep retry`"
            )
            self.fail(GraphVersionError(text, graph=self.graph.name, graph_hash=self.row.graph_hash))

    def fail(self, error: LockstepError) -> None:
        """End the run with this error at the next transition, whatever its items do."""
        self._fatal = self._fatal or error

    def obey(self, command: Command) -> None:
        """Take in a command; one that the run's status does not allow is answered by doing nothing."""
        if command.kind == "update":
            # One at a time; the others stay where they are until the next look.
            self._updating = self._updating or command
            return
        self._consumed.append(command.command_id)
        match command.kind:
            case "cancel" if may_move(self.row.status, RunStatus.CANCELLED):
                reason = json.loads(command.payload)
                self.fail(RunCancelledError(f"run {self.run_id} was cancelled: {reason}", run_id=self.run_id, reason=reason))
            case "resume" if self.row.status in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
                self._answer(json.loads(command.payload))
                # At a breakpoint nobody is asked anything.
                self._answered = self._answered or (self.row.status is RunStatus.INTERRUPTED and not self._asking)
            case "unpause" if self.row.status is RunStatus.PAUSED:
                self._unpaused = True
                given = decode_options(json.loads(command.payload))
                allowed = total([self.spent_usd, self.options.max_cost_usd or Decimal(0)])
                self._go_by(self.options.overridden(Options(max_cost_usd=allowed)).overridden(given))
            case "retry" if self.row.status is RunStatus.FAILED:
                self.revive()
                self._go_by(self.options.overridden(decode_options(json.loads(command.payload))))
            case _:
                pass

    def revive(self) -> None:
        """Go on, of a run that has failed."""
        self._revived = True

    def adopt(self, path: bytes, child: ActiveRun) -> None:
        """An item of this run waits for the end of that one."""
        child.parent, child.called_at = self, path
        self.children[path] = child
        self.hear_of(child)

    def part(self) -> None:
        """This run is not in memory any more: its parent and its children do not know it."""
        if self.parent is not None and self.parent.children.get(self.called_at) is self:
            del self.parent.children[self.called_at]
            self.parent._asking_children.discard(self.called_at)
        for child in self.children.values():
            child.parent = None
        self.parent, self.children = None, {}

    def hear_of(self, child: ActiveRun) -> None:
        """The run of a subgraph goes on, or waits for people."""
        self._answered = self._answered or child.row.status is RunStatus.RUNNING
        if child.row.status is RunStatus.INTERRUPTED:
            self._asking_children.add(child.called_at)
        else:
            self._asking_children.discard(child.called_at)

    def abandoned(self) -> list[ActiveRun]:
        """The runs of subgraphs that no item of this run waits for any more: somebody has changed what is due."""
        return [child for path, child in self.children.items() if path not in self.questions.open]

    def ancestors(self) -> Iterator[ActiveRun]:
        """The run of which this is a subgraph, and so on."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    def spend(self, amounts: list[Decimal]) -> None:
        """Count what was paid, also for the runs of which this is a subgraph."""
        super().spend(amounts)
        if self.parent is not None:
            self.parent.spend(amounts)

    @property
    def is_halted(self) -> bool:
        """Whether nothing is to be handed out: this run has spent what it may, or one above it has."""
        return self.is_over_budget or (self.parent is not None and self.parent.is_halted)

    @property
    def _asking(self) -> list[bytes]:
        """The items that wait for people: with a question of theirs, or as subgraphs."""
        return [*self.questions.to_people, *(path for path in self._asking_children if path in self.questions.open)]

    def answer_by_timer(self, due: Due) -> None:
        """The time of a question has passed: unless somebody has answered, that is the answer."""
        if self.row.status in (RunStatus.RUNNING, RunStatus.INTERRUPTED, RunStatus.PAUSED):
            self._answer({due.question: due.answer})

    def transition(self) -> tuple[Transition, Step | None]:
        """What this run has to store now, and the step that this completes, if any."""
        journal, self._journal = tuple(self._journal), []
        consumed, self._consumed = tuple(self._consumed), []
        common = Transition(run_id=self.row.run_id, journal=journal, consumed=consumed)
        if self._updating is not None:
            return self._from_outside(common, self._updating)
        if self._revived:
            update = self._update(RunStatus.RUNNING, retries=self.row.retries + 1)
            return msgspec.structs.replace(common, update=msgspec.structs.replace(update, revives=True)), None
        if self.row.status in FINISHED:
            return common, None
        if self._unpaused:
            return self._go_on_after_pause(common), None
        self._let_handlers_stand_in()
        error = self._fatal or self._first_dead()
        try:
            step = None if error else self._migrated or self._step()
        except LockstepError as raised:
            self.cause = self.cause or raised.__cause__
            error, step = raised.located(step_id=self.row.step_id + 1), None
        except Exception as raised:  # of types and functions that are the user's: it concerns this run alone
            self.cause = raised
            error, step = LockstepError(f"merging the step raised {type(raised).__name__}: {text_of(raised)}"), None
            error.located(step_id=self.row.step_id + 1)
        if error is not None:
            status = RunStatus.CANCELLED if isinstance(error, RunCancelledError) else RunStatus.FAILED
            located = error.located(run_id=self.run_id)
            update = self._update(status, error=canonical_bytes(located.to_record()))
            return msgspec.structs.replace(common, update=update, events=(self._end_event(status, located),)), None
        if step is None:
            return self._waiting(common), None
        status = RunStatus.SUCCEEDED if step.done else RunStatus.PAUSED if self.is_over_budget else RunStatus.RUNNING
        events = self._events_in_order()
        if status is RunStatus.PAUSED:
            events += (self._pause_event(len(events), step.step_id),)
        elif status is RunStatus.RUNNING and (stops := self._breakpoints(step)):
            status = RunStatus.INTERRUPTED
            events += (self._event(len(events), step.step_id, "", f"{ENGINE_EVENTS}interrupted", {"ids": [], **stops}),)
        pinned = self.graph.hash if self.graph.hash != self.row.graph_hash else None
        changed = msgspec.structs.replace(self._update(status, step=step), graph_hash=pinned)
        return msgspec.structs.replace(self._transition_of(common, step, changed), events=events), step

    def _breakpoints(self, step: Step) -> dict[str, list[str]]:
        """The nodes before and after which the run is to wait here."""
        due = {item.place for item in step.frontier.items} & set(self.options.interrupt_before)
        done = {item.place for item in self.frontier.items} & set(self.options.interrupt_after)
        found = {"before": sorted(due), "after": sorted(done)}
        return {name: nodes for name, nodes in found.items() if nodes}

    def _transition_of(self, common: Transition, step: Step, changed: RunUpdate) -> Transition:
        row = StepRow(
            run_id=self.row.run_id,
            step_id=step.step_id,
            idempotency_key=step.idempotency_key,
            state_hash=step.state_hash,
            patch=step.patch,
            frontier=step.encoded_frontier,
        )
        return msgspec.structs.replace(common, step=row, snapshot=self._snapshot_if_due(step), update=changed)

    def _from_outside(self, common: Transition, command: Command) -> tuple[Transition, Step | None]:
        """Change the state as somebody asks, or say why not; who asked finds the event by the command's id."""
        self._updating = None
        common = msgspec.structs.replace(common, consumed=(*common.consumed, command.command_id))
        asked = json.loads(command.payload)
        status = self.row.status
        step_id = self.row.step_id + 1
        try:
            if status not in CHANGEABLE or self.row.step_id < 0:
                names = ", ".join(sorted(CHANGEABLE))
                text = f"run {self.run_id} is {status} after step {self.row.step_id}; only one that is {names} can be changed"
                raise StateError(f"{text}: fork it, or wait until it rests")
            writes = [Write(name, value) for name, value in asked["update"].items()]
            args = (self.graph.program, self.options.conflict_policy, self.run_id, step_id, self.state, self.frontier)
            step = update(*args, writes, asked["as_node"])
        except LockstepError as refused:
            said = {"command_id": command.command_id, "error": refused.to_record()}
            event = self._event(0, self.row.step_id, "", f"{ENGINE_EVENTS}refused", said)
            same = self._update(status, error=self.row.error)
            return msgspec.structs.replace(common, update=same, events=(event,)), None
        said = {"command_id": command.command_id, "as_node": asked["as_node"], "fields": sorted(asked["update"])}
        at_breakpoint = status is RunStatus.INTERRUPTED and not self._asking
        goes_on = status if at_breakpoint or status is RunStatus.PAUSED else RunStatus.RUNNING
        revives = status is RunStatus.FAILED
        changed = self._update(goes_on, step=step, retries=self.row.retries + 1 if revives else None)
        transition = msgspec.structs.replace(
            self._transition_of(common, step, changed),
            events=(self._event(0, step_id, "", f"{ENGINE_EVENTS}updated", said),),
        )
        if revives:
            transition = msgspec.structs.replace(transition, update=msgspec.structs.replace(changed, revives=True))
        return transition, step

    def _go_on_after_pause(self, common: Transition) -> Transition:
        self._unpaused = False
        status = RunStatus.PAUSED if self.is_over_budget else RunStatus.RUNNING
        update = msgspec.structs.replace(self._update(status), options=canonical_bytes(encode_options(self.options)))
        return msgspec.structs.replace(common, update=update)

    def _pause_event(self, position: int, step_id: int) -> Event:
        """What says that the run has spent what it may."""
        said = {"max_cost_usd": as_text(self.options.max_cost_usd or Decimal(0)), "spent_usd": as_text(self.spent_usd)}
        return self._event(position, step_id, "", f"{ENGINE_EVENTS}paused", said)

    def _waiting(self, common: Transition) -> Transition:
        """The transition of a run whose step goes on: its status says whether it waits for people alone."""
        answered, self._answered = self._answered, False
        if self.row.status is RunStatus.INTERRUPTED and answered and not self.is_over_budget:
            return msgspec.structs.replace(common, update=self._update(RunStatus.RUNNING))
        asks = self._asking
        waits = bool(asks) and len(self._outcomes) + len(asks) == len(self._items)
        runs_or_may = self.row.status is RunStatus.RUNNING or (self.row.status is RunStatus.INTERRUPTED and answered)
        if self.is_over_budget and not waits and not self.in_flight and runs_or_may:
            event = self._pause_event(0, self.row.step_id)
            return msgspec.structs.replace(common, update=self._update(RunStatus.PAUSED), events=(event,))
        if self.row.status is not RunStatus.RUNNING or not waits:
            return common
        asked = [
            question_id(item.path, self.questions.open[item.path])
            for item in self.frontier.items
            if item.path in self.questions.to_people
        ]
        event = self._event(0, self.row.step_id, "", f"{ENGINE_EVENTS}interrupted", {"ids": asked})
        return msgspec.structs.replace(common, update=self._update(RunStatus.INTERRUPTED), events=(event,))

    def _first_dead(self) -> LockstepError | None:
        """The error that ends the run: of the item lowest in order, once all are accounted for or fail_fast does not wait."""
        if not self._dead:
            return None
        running = len(self.questions.calls) - sum(path in self.children for path in self._asking)
        ended = len(self._outcomes) + len(self._dead) + len(self.questions.open) - running
        if not self.options.fail_fast and ended < len(self._items):
            return None
        error, self.cause = next(self._dead[item.path] for item in self.frontier.items if item.path in self._dead)
        return error

    def _step(self) -> Step | None:
        """The next step, if no result is missing. Computed once: before, results just accumulate."""
        program, policy, run_id = self.graph.program, self.options.conflict_policy, self.row.run_id
        if self.row.step_id < 0 and (begun := fork_input_of(self.row)) is not None:
            frontier = decode_frontier(canonical_bytes(begun.frontier, depth=FRONTIER_DEPTH), begun.step_id)
            writes = [Write(name, value) for name, value in begun.update.items()]
            return fork(program, policy, run_id, State.of(begun.state), frontier, writes, begun.as_node)
        if self.row.step_id < 0:
            values, root = begins_with(self.row)
            return begin(program, policy, run_id, [Write(name, value) for name, value in values.items()], self.base, root)
        if len(self._outcomes) < len(self._items):
            return None
        step_id = self.row.step_id + 1
        return advance(program, policy, self.options.max_steps, run_id, step_id, self.state, self.frontier, self._outcomes)

    def _update(
        self,
        status: RunStatus,
        *,
        step: Step | None = None,
        error: bytes | None = None,
        retries: int | None = None,
    ) -> RunUpdate:
        return RunUpdate(
            run_id=self.row.run_id,
            expected_version=self.row.version,
            status=status,
            step_id=self.row.step_id if step is None else step.step_id,
            state_hash=self.row.state_hash if step is None else step.state_hash,
            error=error,
            options=self.row.options if retries is None else canonical_bytes(encode_options(self.options)),
            retries=self.row.retries if retries is None else retries,
        )

    def _snapshot_if_due(self, step: Step) -> bytes | None:
        patches = self._patch_bytes + len(step.patch)
        if patches <= max(self._snapshot_bytes, SNAPSHOT_MIN_BYTES):
            return None
        return step.state.to_bytes()

    def _events_in_order(self) -> tuple[Event, ...]:
        if not self._held_back and not any(self._events.values()):
            return ()
        emitted = [(item.node_id, event) for item in self.frontier.items for event in self._events[item.path]]
        waits = [("", (BACKPRESSURE, {"items": n, "queue": name})) for name, n in sorted(self._held_back.items())]
        step_id = self.row.step_id + 1
        return tuple(
            self._event(position, step_id, node_id, kind, data)
            for position, (node_id, (kind, data)) in enumerate([*emitted, *waits])
        )

    def _end_event(self, status: RunStatus, error: LockstepError) -> Event:
        """What says that the run ends here, and why; of the last step that it committed."""
        record = error.to_record()
        said = {name: record.get(name) for name in ("attempt", "message", "node_id", "step_id", "type")}
        said |= {name: getattr(error, name) for name in ("attempt", "node_id", "step_id")}
        return self._event(0, self.row.step_id, error.node_id or "", f"{ENGINE_EVENTS}{status}", said)

    def _event(self, position: int, step_id: int, node_id: str, kind: str, data: Any) -> Event:
        return Event(
            run_id=self.run_id,
            sequence=self.row.version + 1,
            position=position,
            step_id=step_id,
            node_id=node_id,
            type=kind,
            data=canonical_bytes(data),
        )

    def accept(self, transition: Transition, step: Step | None) -> None:
        """The transition is committed: stand on its ground."""
        update = transition.update
        if update is None:
            return
        self.row = self.row.updated(update)
        if step is not None:
            self._patch_bytes += len(step.patch)
            if transition.snapshot is not None:
                self._patch_bytes, self._snapshot_bytes = 0, len(transition.snapshot)
            self._stand_at(step.state, step.frontier)
