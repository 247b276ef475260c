"""The options of an engine or a run: as one object, as `with_*()` functions, or both together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import msgspec

from lockstep.core.canonical import INT_MAX, INT_MIN, canonical_bytes
from lockstep.core.policy import ConflictPolicy, RetryPolicy
from lockstep.costs import dollars
from lockstep.errors import ConfigurationError, StateError


def _is_a(value: object, kind: type) -> bool:
    """Whether a value has the type; an integer will do for a float, but True is no integer."""
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How runs are executed. An engine's options hold for all of its runs; those given with a run override them.

    Raises ConfigurationError, naming the option, for a value out of its range.
    """

    max_concurrent: int | None = None
    """Items of one run in flight at a time; embedded also the number of slots. Default 64 in flight, 16 slots."""
    queue_depth: int = 1024
    """Tasks that a queue holds at most, whoever enqueues. A setting of the engine or coordinator, not of a run."""
    default_timeout_seconds: float = 300.0
    """How long a node may run that has no timeout of its own."""
    conflict_policy: ConflictPolicy = ConflictPolicy.FAIL
    """What happens when two items of a step write a field without a reducer."""
    max_steps: int = 10_000
    """Steps of one run, at most."""
    retry: RetryPolicy | None = None
    """For nodes that have no RetryPolicy of their own; None: one attempt."""
    backpressure_timeout_seconds: float | None = None
    """How long an item may wait for room in its queue before the run fails with BackpressureError; None: for ever."""
    deadline_seconds: float | None = None
    """From submission to the end; a run that passes it is cancelled. None: no deadline."""
    seed: int | None = None
    """The seed of `ctx.rng`; None: derived from the run_id."""
    max_payload_bytes: int = 4 * 1024 * 1024
    """Canonical bytes of an input, of a Send's payload, and of all that one node returns, each."""
    max_cost_usd: Decimal | None = None
    """What the run's calls to models may cost, in US dollars; once that is spent, it pauses. Text and numbers will do, too."""
    interrupt_before: tuple[str, ...] = ()
    """Nodes before which the run waits for `resume`, for debugging: once they are due, nothing is handed out."""
    interrupt_after: tuple[str, ...] = ()
    """Nodes after whose step the run waits for `resume`."""
    context: Any = None
    """What nodes find in `ctx.context` (JSON): who asks, which tenant, and the like; no part of the state."""
    fail_fast: bool = True
    """True: the first item that fails for good ends the run. False: its siblings finish, and are kept, before the run fails."""

    def __post_init__(self) -> None:
        if self.max_cost_usd is not None:
            msgspec.structs.force_setattr(self, "max_cost_usd", dollars(self.max_cost_usd, "max_cost_usd"))
        for option in ("interrupt_before", "interrupt_after"):
            names = getattr(self, option)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise ConfigurationError(f"{option}={names!r} must be names of nodes, such as ['plan']", option=option)
            msgspec.structs.force_setattr(self, option, tuple(names))
        rules: tuple[tuple[str, str, type, Callable[[Any], bool] | None], ...] = (
            ("max_concurrent", "an integer of at least 1", int, lambda v: v >= 1),
            ("queue_depth", "an integer of at least 1", int, lambda v: v >= 1),
            ("default_timeout_seconds", "seconds above 0, finite", float, lambda v: 0 < v < math.inf),
            ("conflict_policy", "a ConflictPolicy", ConflictPolicy, None),
            ("max_steps", "an integer from 1 to 2^63-1", int, lambda v: 1 <= v <= INT_MAX),
            ("retry", "a RetryPolicy", RetryPolicy, None),
            ("backpressure_timeout_seconds", "seconds above 0, finite", float, lambda v: 0 < v < math.inf),
            ("deadline_seconds", "seconds above 0, finite", float, lambda v: 0 < v < math.inf),
            ("seed", "an integer from -2^63 to 2^63-1", int, lambda v: INT_MIN <= v <= INT_MAX),
            ("max_payload_bytes", "an integer of at least 1", int, lambda v: v >= 1),
            ("fail_fast", "True or False", bool, None),
        )
        for option, rule, kind, holds in rules:
            value = getattr(self, option)
            if value is None and _DEFAULT_VALUES[option] is None:
                continue
            if not _is_a(value, kind) or not (holds is None or holds(value)):
                raise ConfigurationError(f"{option}={value!r} must be {rule}", option=option)
        if self.context is not None:
            self._check_context()

    def _check_context(self) -> None:
        try:
            size = len(canonical_bytes(self.context, field="context"))
        except StateError as error:
            raise ConfigurationError(str(error), option="context") from None
        if size > self.max_payload_bytes:
            raise ConfigurationError(
                f"the context takes {size} bytes, more than max_payload_bytes={self.max_payload_bytes}; it goes with every "
                f"task: keep large data elsewhere and pass a reference",
                option="context",
            )

    @property
    def in_flight(self) -> int:
        """Items of one run that may be in flight at a time."""
        return DEFAULT_IN_FLIGHT if self.max_concurrent is None else self.max_concurrent

    @property
    def slots(self) -> int:
        """Nodes that an embedded engine runs at a time."""
        return DEFAULT_SLOTS if self.max_concurrent is None else self.max_concurrent

    def overridden(self, given: Options | None) -> Options:
        """These options with those of `given` that differ from the defaults. Raises ConfigurationError for queue_depth."""
        if given is None:
            return self
        if given.queue_depth not in (self.queue_depth, DEFAULTS.queue_depth):
            raise ConfigurationError(
                "queue_depth belongs to the engine or coordinator, not to a run; set it there", option="queue_depth"
            )
        return msgspec.structs.replace(self, **_differing(given))


DEFAULT_IN_FLIGHT = 64
DEFAULT_SLOTS = 16
_DEFAULT_VALUES = dict(zip(Options.__struct_fields__, Options.__struct_defaults__, strict=True))
DEFAULTS = Options()


class With(msgspec.Struct, frozen=True):
    """One option, as made by a `with_*()` function."""

    option: str
    value: Any


def with_max_concurrent(items: int) -> With:
    """At most this many items of a run in flight, and embedded this many slots."""
    return With("max_concurrent", items)


def with_queue_depth(tasks: int) -> With:
    """At most this many tasks in a queue."""
    return With("queue_depth", tasks)


def with_default_timeout(seconds: float) -> With:
    """The time that a node may take which has no timeout of its own."""
    return With("default_timeout_seconds", seconds)


def with_conflict_policy(policy: ConflictPolicy) -> With:
    """What happens when two items of a step write a field without a reducer."""
    return With("conflict_policy", policy)


def combine(options: Options | None, settings: Iterable[With]) -> Options:
    """One Options from both forms.

    The same option in both is fine where the values are equal or one of them is the default; otherwise ConfigurationError names
    it.
    """
    base = options or DEFAULTS
    chosen: dict[str, Any] = _differing(base)
    for setting in settings:
        default = getattr(DEFAULTS, setting.option)
        known = chosen.get(setting.option, default)
        if known not in (default, setting.value) and setting.value != default:
            raise ConfigurationError(
                f"{setting.option} is given twice, as {known!r} and as {setting.value!r}; give it once", option=setting.option
            )
        if setting.value != default:
            chosen[setting.option] = setting.value
    return Options(**chosen)


def encode_options(options: Options) -> dict[str, Any]:
    """The options that differ from the defaults, as JSON values for the run's row."""
    record: dict[str, Any] = msgspec.to_builtins(_differing(options))
    return record


def decode_options(record: dict[str, Any]) -> Options:
    """The inverse of `encode_options`."""
    return msgspec.convert(record, Options)


def _differing(options: Options) -> dict[str, Any]:
    return {name: value for name in options.__struct_fields__ if (value := getattr(options, name)) != getattr(DEFAULTS, name)}
