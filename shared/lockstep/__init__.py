"""Lockstep: graph workflows that give the same bytes every time.

Build a `Graph`, run it with an `Engine`. Names that load the engine are resolved on first use: `import lockstep` stays light.
"""

from typing import TYPE_CHECKING, Any

from lockstep.core.ordering import END, START
from lockstep.core.policy import ConflictPolicy, RetryPolicy
from lockstep.costs import Costs, Usage
from lockstep.errors import (
    ArchiveError,
    BackpressureError,
    BrokerUnavailableError,
    BudgetExceededError,
    ConfigurationError,
    ConflictError,
    GraphVersionError,
    LockstepError,
    MaxStepsExceededError,
    NodeFailedError,
    NodeTimeoutError,
    NoProgressError,
    ParentEndedError,
    PoisonError,
    PublishError,
    ReducerError,
    ReplayMismatchError,
    RouteError,
    RunCancelledError,
    RunExistsError,
    RunInterruptedError,
    RunNotFoundError,
    StateError,
    StoreUnavailableError,
    SubgraphError,
    ThreadBusyError,
    UnknownGraphError,
    WaitTimeoutError,
)
from lockstep.graph import Command, Graph, Overwrite, Send, StateGraph
from lockstep.interrupts import Interrupt, interrupt, sleep
from lockstep.messages import add_messages
from lockstep.options import (
    Options,
    with_conflict_policy,
    with_default_timeout,
    with_max_concurrent,
    with_queue_depth,
)
from lockstep.ports import Context, Observer
from lockstep.prices import PRICES, Price, PriceBook
from lockstep.providers import usage_of
from lockstep.records import PublishedEvent

if TYPE_CHECKING:
    from lockstep.backend import ReplayReport
    from lockstep.client import Client
    from lockstep.engine import Engine
    from lockstep.history import StepRecord, TaskRecord
    from lockstep.run import Run
    from lockstep.streaming import StreamEvent
else:
    _LAZY = {
        "Client": "lockstep.client",
        "Engine": "lockstep.engine",
        "ReplayReport": "lockstep.backend",
        "Run": "lockstep.run",
        "StepRecord": "lockstep.history",
        "StreamEvent": "lockstep.streaming",
        "TaskRecord": "lockstep.history",
    }

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'lockstep' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)


__all__ = [
    "END",
    "PRICES",
    "START",
    "ArchiveError",
    "BackpressureError",
    "BrokerUnavailableError",
    "BudgetExceededError",
    "Client",
    "Command",
    "ConfigurationError",
    "ConflictError",
    "ConflictPolicy",
    "Context",
    "Costs",
    "Engine",
    "Graph",
    "GraphVersionError",
    "Interrupt",
    "LockstepError",
    "MaxStepsExceededError",
    "NoProgressError",
    "NodeFailedError",
    "NodeTimeoutError",
    "Observer",
    "Options",
    "Overwrite",
    "ParentEndedError",
    "PoisonError",
    "Price",
    "PriceBook",
    "PublishError",
    "PublishedEvent",
    "ReducerError",
    "ReplayMismatchError",
    "ReplayReport",
    "RetryPolicy",
    "RouteError",
    "Run",
    "RunCancelledError",
    "RunExistsError",
    "RunInterruptedError",
    "RunNotFoundError",
    "Send",
    "StateError",
    "StateGraph",
    "StepRecord",
    "StoreUnavailableError",
    "StreamEvent",
    "SubgraphError",
    "TaskRecord",
    "ThreadBusyError",
    "UnknownGraphError",
    "Usage",
    "WaitTimeoutError",
    "add_messages",
    "interrupt",
    "sleep",
    "usage_of",
    "with_conflict_policy",
    "with_default_timeout",
    "with_max_concurrent",
    "with_queue_depth",
]
