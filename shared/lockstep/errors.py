"""Every error that Lockstep raises on purpose, in one tree.

    LockstepError
    ├── ConfigurationError          an option, URL, import path or variable is wrong
    ├── StateError                  a value cannot be part of a state
    ├── RouteError                  a route leads to a node that does not exist
    ├── ConflictError               two items of a step wrote one field
    ├── ReducerError                a reducer raised
    ├── NodeFailedError             a node raised on its last attempt
    │   ├── NodeTimeoutError        a node ran past its time
    │   └── SubgraphError           the run of a subgraph did not succeed
    ├── PoisonError                 a work item was lost too often to be handed out again
    ├── NoProgressError             items wait, but none can ever run
    ├── MaxStepsExceededError       a run reached its bound on steps
    ├── BackpressureError           an item waited too long for room in its queue
    ├── BudgetExceededError         a run reached its bound on cost
    ├── ReplayMismatchError         a replay differs from what was recorded
    ├── RunInterruptedError         the run awaits a person
    ├── RunCancelledError           the run was cancelled, or passed its deadline
    ├── ParentEndedError            the run of which this one is a subgraph has ended
    ├── RunExistsError              the run_id belongs to another graph or input
    ├── ThreadBusyError             another run of the thread has not ended
    ├── RunNotFoundError            no run has this run_id
    ├── UnknownGraphError           no graph of this name is loaded
    ├── GraphVersionError           the run is pinned to a version of the graph that is not loaded
    ├── WaitTimeoutError            the wait ended first; the run goes on
    ├── StoreUnavailableError       the database does not answer, or refuses
    ├── BrokerUnavailableError      Redis does not answer, or refuses
    ├── PublishError                a sink does not take an event
    └── ArchiveError                the file of a run is damaged, or what was to be written into one

A message names the culprit and the next action; the fields say where it happened. An error survives pickling and the way
through the database: `to_record()` and `LockstepError.from_record()` are inverse.
"""

from __future__ import annotations

import inspect
from typing import Any


class LockstepError(Exception):
    """The root: `except LockstepError` catches all that Lockstep raises on purpose.

    Fields are keyword arguments declared as annotations on the class; those that do not apply are None.
    """

    run_id: str | None = None
    step_id: int | None = None
    node_id: str | None = None
    attempt: int | None = None

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        unknown = fields.keys() - set(self.field_names())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {sorted(unknown)[0]!r}")
        for name, value in fields.items():
            setattr(self, name, value)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """All fields of this class, its parents' first."""
        names: dict[str, None] = {}
        for klass in reversed(cls.__mro__):
            if issubclass(klass, LockstepError):
                names.update(dict.fromkeys(inspect.get_annotations(klass)))
        return tuple(names)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name in self.field_names() if (value := getattr(self, name)) is not None}

    def located(self, **fields: Any) -> LockstepError:
        """This error, with those of the given fields filled in that were still unknown where it was raised."""
        for name, value in fields.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        return self

    def to_record(self) -> dict[str, Any]:
        """The error as JSON values, for the database and the wire; what has no JSON form becomes text."""
        fields = {name: _storable(value) for name, value in self.fields.items()}
        return {"type": type(self).__name__, "message": text_of(self), **fields}

    @staticmethod
    def from_record(record: dict[str, Any]) -> LockstepError:
        """The error that `to_record` described; fields of a newer release are left out."""
        kind = ERRORS.get(record["type"], LockstepError)
        known = kind.field_names()
        return kind(record["message"], **{k: v for k, v in record.items() if k in known})

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), str(self), self.fields))


def text_of(value: object) -> str:
    """`str(value)` as text that can be stored: lone surrogates are escaped, and a __str__ that raises is said to do so."""
    try:
        text = str(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose text cannot be made: {type(error).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def _storable(value: Any) -> Any:
    """A value as JSON: numbers, lists and dicts stay, all else becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value if abs(value) < 2**63 else text_of(value)
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {text_of(key): _storable(item) for key, item in value.items()}
    return text_of(value)


def _rebuild(kind: type[LockstepError], message: str, fields: dict[str, Any]) -> LockstepError:
    return kind(message, **fields)


class ConfigurationError(LockstepError):
    """An option, URL, import path or variable is wrong; `option` names it."""

    option: str | None = None


class StateError(LockstepError):
    """A value cannot be part of a state: not JSON, out of range, too large, or no such field. `field` names it."""

    field: str | None = None


class RouteError(LockstepError):
    """A router, Command or Send names `target`, which is no node of the graph."""

    target: str | None = None


class ConflictError(LockstepError):
    """Several items of one step wrote `field`, which has no reducer; `writers` are their node ids in order."""

    field: str | None = None
    writers: list[str] | None = None


class ReducerError(LockstepError):
    """The reducer or merge function of `field` raised; `reducer` is its name."""

    field: str | None = None
    reducer: str | None = None


class NodeFailedError(LockstepError):
    """A node raised on its last attempt: `error_type` and `traceback` are the original's, also its `__cause__` if embedded."""

    error_type: str | None = None
    traceback: str | None = None


class NodeTimeoutError(NodeFailedError):
    """A node ran longer than `timeout_seconds`."""

    timeout_seconds: float | None = None


class SubgraphError(NodeFailedError):
    """The run of a node that is a graph has failed, or was cancelled. `child_run_id` is that run."""

    child_run_id: str | None = None


class PoisonError(LockstepError):
    """A work item was handed out `delivery` times and never came back."""

    delivery: int | None = None


class NoProgressError(LockstepError):
    """No item is left to run, yet some wait for what can never come; `waiting` names them."""

    waiting: list[str] | None = None


class MaxStepsExceededError(LockstepError):
    """The run is not done after `max_steps` steps."""

    max_steps: int | None = None


class BackpressureError(LockstepError):
    """An item found no room in `queue` (bound `queue_depth`) for `timeout_seconds`."""

    queue: str | None = None
    queue_depth: int | None = None
    timeout_seconds: float | None = None


class BudgetExceededError(LockstepError):
    """The run's cost reached `max_cost_usd`."""

    max_cost_usd: str | None = None


class ReplayMismatchError(LockstepError):
    """A replay differs from the record: `differs` names what, `expected` and `actual` are both sides."""

    differs: str | None = None
    expected: str | None = None
    actual: str | None = None


class RunInterruptedError(LockstepError):
    """The run awaits a person; `interrupts` lists what is asked."""

    interrupts: list[Any] | None = None


class RunCancelledError(LockstepError):
    """The run was cancelled; `reason` says why."""

    reason: str | None = None


class ParentEndedError(LockstepError):
    """The run of a subgraph ends with its parent, `parent_run_id`, and goes on when that is retried."""

    parent_run_id: str | None = None


class RunExistsError(LockstepError):
    """The run_id is taken by a run of another graph or input."""


class ThreadBusyError(LockstepError):
    """Another run (`run_id`) of the thread `thread_id` has not ended, and the submission did not want to wait."""

    thread_id: str | None = None


class RunNotFoundError(LockstepError):
    """No run has this run_id."""


class UnknownGraphError(LockstepError):
    """No graph named `graph` is loaded; `known` lists those that are."""

    graph: str | None = None
    known: list[str] | None = None


class GraphVersionError(LockstepError):
    """The run is pinned to `graph_hash` of `graph`, which is not loaded."""

    graph: str | None = None
    graph_hash: str | None = None


class WaitTimeoutError(LockstepError, TimeoutError):
    """The wait ended after `timeout_seconds`; the run itself goes on."""

    timeout_seconds: float | None = None


class StoreUnavailableError(LockstepError):
    """The database does not answer or refuses; `url` has its password masked."""

    url: str | None = None


class BrokerUnavailableError(LockstepError):
    """Redis does not answer or refuses; `url` has its password masked."""

    url: str | None = None


class PublishError(LockstepError):
    """A sink has not taken all events: `arrived` of them did. `permanent`: the next one would be refused again and again.

    `retry_after_seconds` is how long the sink asks to be left alone.
    """

    arrived: int | None = None
    permanent: bool | None = None
    retry_after_seconds: float | None = None


class ArchiveError(LockstepError):
    """The file of an exported run is cut, changed or of another release, at `line`; or what is stored of a run is damaged."""

    line: int | None = None


ERRORS: dict[str, type[LockstepError]] = {
    name: value for name, value in list(globals().items()) if isinstance(value, type) and issubclass(value, LockstepError)
}
