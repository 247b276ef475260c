"""What calls to language models have used, and what that costs, in exact decimals.

A node reports it with `ctx.llm_usage`; whoever executes the node prices it; it is journalled with the result or failure of
the execution that made the call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Context as DecimalContext
from decimal import Decimal, localcontext
from typing import Annotated, Any

import msgspec

from lockstep.core.canonical import canonical_bytes
from lockstep.errors import ConfigurationError, StateError
from lockstep.records import JournalRow

Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

EXACT = DecimalContext(prec=60)
"""Enough digits that no product or sum here is ever rounded: 2^53 tokens, and prices of 12 places."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one call has used. `tokens_in` counts all of the input, the parts read from or written to a cache included.

    `cost_usd` is a decimal as text; None: the call is `unpriced`, and that says why.
    """

    model: str
    tokens_in: Tokens | None = None
    tokens_out: Tokens | None = None
    tokens_cached: Tokens = 0
    tokens_cache_written: Tokens = 0
    cost_usd: str | None = None
    unpriced: str | None = None

    @property
    def cost(self) -> Decimal | None:
        """`cost_usd` as a Decimal."""
        return None if self.cost_usd is None else Decimal(self.cost_usd)


def checked_usage(
    model: str, tokens_in: int | None, tokens_out: int | None, cached: int, written: int, cost_usd: Decimal | str | int | None
) -> Usage:
    """What a node has reported, as a record. Raises StateError for numbers that cannot be."""
    counts = {"tokens_in": tokens_in, "tokens_out": tokens_out, "tokens_cached": cached, "tokens_cache_written": written}
    for name, count in counts.items():
        right = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= 2**53
        if not right and not (count is None and name in ("tokens_in", "tokens_out")):
            raise StateError(f"llm_usage: {name}={count!r} is no number of tokens", field=name)
    if tokens_in is not None and cached + written > tokens_in:
        raise StateError("llm_usage: tokens_in counts cached tokens, too, and is less than they are", field="tokens_in")
    try:
        cost = None if cost_usd is None else as_text(dollars(cost_usd, "cost_usd"))
    except ConfigurationError as error:
        raise StateError(f"llm_usage: {error}", field="cost_usd") from None
    return Usage(str(model), tokens_in, tokens_out, cached, written, cost)


def dollars(value: Any, what: str) -> Decimal:
    """An amount of money, exactly: of a Decimal, text, an int, or a float as it is written. Raises ConfigurationError."""
    try:
        amount = Decimal(str(value)) if isinstance(value, (Decimal, str, int, float)) and not isinstance(value, bool) else None
    except ArithmeticError:
        amount = None
    if amount is None or not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"{what}={value!r} must be US dollars of at least 0, such as Decimal('2.50')", option=what)
    return amount


def as_text(amount: Decimal) -> str:
    """An amount without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The sum, exactly."""
    with localcontext(EXACT):
        return sum(amounts, Decimal(0))


class Used(msgspec.Struct, frozen=True):
    """What one execution of a node has used: a journal row's payload."""

    node_id: str
    calls: list[Usage]

    def encoded(self) -> bytes:
        """As canonical JSON."""
        return canonical_bytes(msgspec.to_builtins(self))


_USAGE = msgspec.json.Decoder(list[Usage])
_USED = msgspec.json.Decoder(Used)


def encode_usage(usage: Sequence[Usage]) -> bytes:
    """As it travels."""
    return canonical_bytes(msgspec.to_builtins(usage))


def decode_usage(data: bytes) -> list[Usage]:
    """The inverse of `encode_usage`. Raises ValueError for anything else, amounts that are none included."""
    usage = _USAGE.decode(data)
    for one in usage:
        if one.cost_usd is not None and re.fullmatch(r"\d{1,30}(\.\d{1,30})?", one.cost_usd) is None:
            raise ValueError(f"{one.cost_usd!r} is no amount of money")
    return usage


def used_of(rows: Iterable[JournalRow]) -> list[Used]:
    """What journal rows of kind `usage` say."""
    return [_USED.decode(row.payload) for row in rows if row.kind == "usage"]


@dataclass(slots=True)
class Sum:
    """Calls, their tokens, and what they cost. Of unpriced calls, the cost is not in it."""

    calls: int = 0
    unpriced: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: Decimal = Decimal(0)

    def add(self, usage: Usage) -> None:
        """Count a call."""
        self.calls += 1
        self.unpriced += usage.cost_usd is None
        self.tokens_in += usage.tokens_in or 0
        self.tokens_out += usage.tokens_out or 0
        self.cost_usd = total([self.cost_usd, usage.cost or Decimal(0)])


@dataclass(slots=True)
class Costs(Sum):
    """What a run has used until now: whole, by node and by model.

    Its subgraphs are in it (their nodes as "node/theirs"), attempts that failed, and deliveries whose result was not needed any
    more, if their step was still under way. `reasons` says why calls are unpriced, and how many each.
    """

    by_node: dict[str, Sum] = field(default_factory=dict)
    by_model: dict[str, Sum] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    def count(self, rows: Iterable[JournalRow], within: str = "") -> None:
        """Add what a run's journal rows of kind `usage` say; `within` stands before the names of its nodes."""
        for used in used_of(rows):
            for usage in used.calls:
                node = self.by_node.setdefault(within + used.node_id, Sum())
                model = self.by_model.setdefault(usage.model, Sum())
                for one in (self, node, model):
                    Sum.add(one, usage)
                if usage.unpriced is not None:
                    self.reasons[usage.unpriced] = self.reasons.get(usage.unpriced, 0) + 1
