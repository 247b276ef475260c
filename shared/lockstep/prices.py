"""What calls to language models cost: a book of list prices, and how to have others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import msgspec

from lockstep.costs import EXACT, Usage, as_text
from lockstep.errors import text_of

MILLION = Decimal(1_000_000)
NO_COUNTS, UNKNOWN_MODEL = "the provider gave no token counts", "the price book has no such model"

DATED = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")
"""What some vendors put behind a model's name: the day of its version."""

Pricing = Callable[[Usage], Decimal | None]
"""What a call costs in US dollars; None: unknown. A PriceBook is one, and a function of yours may be."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars for a million tokens. Where the price of a cache is None, it is that of input.

    `above` are volume prices, by the number of input tokens above which they hold for the whole call.
    """

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    cache_written: Decimal | None = None
    above: dict[int, Price] = {}

    def cost_of(self, usage: Usage) -> Decimal | None:
        """What a call costs, exactly; None if it has no token counts."""
        if usage.tokens_in is None or usage.tokens_out is None:
            return None
        bounds = [bound for bound in self.above if usage.tokens_in > bound]
        if bounds:
            return self.above[max(bounds)].cost_of(usage)
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_written is None else self.cache_written
        plain = usage.tokens_in - usage.tokens_cached - usage.tokens_cache_written
        with localcontext(EXACT):
            total = plain * self.input + usage.tokens_cached * cached + usage.tokens_cache_written * written
            return (total + usage.tokens_out * self.output) / MILLION


def _price(input: str, output: str, cached: str | None = None, written: str | None = None, **more: Any) -> Price:
    dollars = [None if text is None else Decimal(text) for text in (cached, written)]
    return Price(input=Decimal(input), output=Decimal(output), cached=dollars[0], cache_written=dollars[1], **more)


@dataclass(frozen=True)
class PriceBook:
    """Prices by model, with their source and the day they are of. Call it to price a call.

    A model is looked up under its name, and under that without the day at its end.
    """

    prices: Mapping[str, Price]
    source: str
    date: str

    def __call__(self, usage: Usage) -> Decimal | None:
        """The cost of a call, None for a model that is not in the book."""
        name = usage.model.removeprefix("models/")
        price = self.prices.get(name) or self.prices.get(DATED.sub("", name))
        return price.cost_of(usage) if price is not None else None

    def with_prices(self, prices: Mapping[str, Price], *, source: str, date: str) -> PriceBook:
        """This book with some prices of yours in place of its own, or beside them."""
        return PriceBook({**self.prices, **prices}, f"{source}, {date}; else {self.source}", self.date)


PRICES = PriceBook(
    {
        "gpt-4o": _price("2.50", "10", "1.25"),
        "gpt-4o-mini": _price("0.15", "0.60", "0.075"),
        "gpt-4.1": _price("2", "8", "0.50"),
        "gpt-4.1-mini": _price("0.40", "1.60", "0.10"),
        "gpt-4.1-nano": _price("0.10", "0.40", "0.025"),
        "gpt-5": _price("1.25", "10", "0.125"),
        "gpt-5-mini": _price("0.25", "2", "0.025"),
        "gpt-5-nano": _price("0.05", "0.40", "0.005"),
        "gpt-5.1": _price("1.25", "10", "0.125"),
        "gpt-5.2": _price("1.75", "14", "0.175"),
        "gpt-5.4": _price("2.50", "15", "0.25", above={272_000: _price("5", "22.50", "0.50")}),
        "o3": _price("2", "8", "0.50"),
        "o3-mini": _price("1.10", "4.40", "0.55"),
        "o4-mini": _price("1.10", "4.40", "0.275"),
        "claude-opus-4-1": _price("15", "75", "1.50", "18.75"),
        "claude-opus-4-5": _price("5", "25", "0.50", "6.25"),
        "claude-opus-4-6": _price("5", "25", "0.50", "6.25"),
        "claude-sonnet-4": _price("3", "15", "0.30", "3.75", above={200_000: _price("6", "22.50", "0.60", "7.50")}),
        "claude-sonnet-4-5": _price("3", "15", "0.30", "3.75", above={200_000: _price("6", "22.50", "0.60", "7.50")}),
        "claude-sonnet-4-6": _price("3", "15", "0.30", "3.75"),
        "claude-haiku-4-5": _price("1", "5", "0.10", "1.25"),
        "gemini-2.0-flash": _price("0.10", "0.40", "0.025"),
        "gemini-2.5-pro": _price("1.25", "10", "0.125", above={200_000: _price("2.50", "15", "0.25")}),
        "gemini-2.5-flash": _price("0.30", "2.50", "0.03"),
        "gemini-2.5-flash-lite": _price("0.10", "0.40", "0.01"),
        "gemini-3-pro-preview": _price("2", "12", "0.20", above={200_000: _price("4", "18", "0.40")}),
        "gemini-3-flash-preview": _price("0.50", "3", "0.05"),
    },
    source="list prices of OpenAI, Anthropic and Google for text, as LiteLLM's public price list had them",
    date="2026-07-24",
)
"""List prices, without the discounts of batches, priorities and contracts. Yours may be others: give `prices=` then."""


def priced(usage: Usage, pricing: Pricing) -> Usage:
    """What a call has used, with its cost or the reason why it has none. A price that was given with it stays."""
    if usage.cost_usd is not None:
        return usage
    try:
        cost = pricing(usage)
        if cost is not None and (not isinstance(cost, Decimal) or not cost.is_finite() or cost < 0):
            raise TypeError(f"a cost is a finite Decimal of at least 0, not {cost!r}")
    except Exception as error:  # of a function that is the user's: the call is made and paid, so its result is kept
        return msgspec.structs.replace(usage, unpriced=f"pricing raised {type(error).__name__}: {text_of(error)}")
    if cost is not None:
        return msgspec.structs.replace(usage, cost_usd=as_text(cost))
    counted = usage.tokens_in is not None and usage.tokens_out is not None
    return msgspec.structs.replace(usage, unpriced=UNKNOWN_MODEL if counted else NO_COUNTS)
