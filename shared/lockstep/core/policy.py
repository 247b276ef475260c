"""The rules an author may choose: what happens on a conflict, and when a failed item is tried again."""

from __future__ import annotations

import hashlib
import math
from enum import StrEnum
from typing import Any

import msgspec

from lockstep.core.records import Failure
from lockstep.errors import ConfigurationError


class ConflictPolicy(StrEnum):
    """What happens when two items of one step write a field that has no reducer."""

    FAIL = "fail"
    """ConflictError: the run fails, its results are kept."""
    LAST_WRITER_WINS = "last_writer_wins"
    """The item with the highest order_key wins."""
    MERGE = "merge"
    """The field's function given to `Graph(merges={field: function})` joins the values (a CRDT's join); without one, FAIL."""


NEVER_RETRIED = frozenset({"ConfigurationError", "StateError", "RouteError", "GraphVersionError", "UnknownGraphError"})
"""Our own errors that a second attempt cannot cure: the same input gives the same error."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed item runs again, and after how long.

    The pause before attempt n+1 is `initial_seconds * factor ** (n - 1)`, at most `max_seconds`, then lengthened by up to
    `jitter` of itself (a fraction seeded from the item and attempt, so it is the same after a restart). `retry_on` holds
    exception classes or their names; an exception of one of them, or of a subclass, is retried; empty means every exception.
    """

    max_attempts: int = 3
    initial_seconds: float = 0.5
    factor: float = 2.0
    max_seconds: float = 60.0
    jitter: float = 0.1
    retry_on: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for option, ok, rule in (
            ("max_attempts", self.max_attempts >= 1, "at least 1"),
            ("initial_seconds", 0 <= self.initial_seconds < math.inf, "at least 0 and finite"),
            ("factor", 1 <= self.factor < math.inf, "at least 1 and finite"),
            ("max_seconds", 0 <= self.max_seconds < math.inf, "at least 0 and finite"),
            ("jitter", 0 <= self.jitter <= 1, "from 0 to 1"),
        ):
            if not ok:
                raise ConfigurationError(f"RetryPolicy({option}={getattr(self, option)!r}) must be {rule}", option=option)
        names = tuple(kind if isinstance(kind, str) else kind.__name__ for kind in self.retry_on)
        msgspec.structs.force_setattr(self, "retry_on", names)

    def pause_seconds(self, failure: Failure, attempt: int, path: bytes) -> float | None:
        """How long to wait before the attempt that follows `attempt`, the one that failed; None: give up."""
        if attempt >= self.max_attempts or failure.error["type"] in NEVER_RETRIED:
            return None
        if self.retry_on and not set(self.retry_on) & set(failure.kinds):
            return None
        try:
            pause = min(self.max_seconds, self.initial_seconds * self.factor ** (attempt - 1))
        except OverflowError:
            pause = self.max_seconds if self.initial_seconds else 0.0
        digest = hashlib.sha256(b"jitter" + path + attempt.to_bytes(4, "big")).digest()
        return pause * (1 + self.jitter * int.from_bytes(digest[:8], "big") / 2**64)


ONCE = RetryPolicy(max_attempts=1)
"""One attempt, and no other."""
