"""Costs: what calls to models have used is journalled whatever becomes of their node, adds up exactly, and bounds a run."""

from __future__ import annotations

import dataclasses
import json
import operator
import threading
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Annotated, Any, TypedDict

import pytest

from lockstep import (
    PRICES,
    START,
    BudgetExceededError,
    ConfigurationError,
    Context,
    Engine,
    Graph,
    NodeFailedError,
    Options,
    Price,
    PriceBook,
    RetryPolicy,
    RunInterruptedError,
    Send,
    StateError,
    Usage,
    interrupt,
    usage_of,
)
from lockstep.cli.load import load_prices
from lockstep.costs import as_text, decode_usage
from lockstep.fsck import check_store
from lockstep.prices import NO_COUNTS, UNKNOWN_MODEL, priced


class State(TypedDict, total=False):
    seed: int
    calls: int
    done: Annotated[list[int], operator.add]


def one_node(function: Any, **options: Any) -> Graph:
    return Graph(State).add_node("node", function, **options).add_edge(START, "node")


# Prices


def test_a_call_costs_what_its_tokens_cost() -> None:
    usage = Usage("gpt-4o-mini", 1_000_003, 7, tokens_cached=3)
    # 1,000,000 * 0.15 + 3 * 0.075 + 7 * 0.60, for a million
    assert PRICES(usage) == Decimal("0.150004425")


def test_reading_and_writing_a_cache_have_prices_of_their_own() -> None:
    usage = Usage("claude-sonnet-4-5-20250929", 10_000, 0, tokens_cached=4_000, tokens_cache_written=1_000)
    assert PRICES(usage) == Decimal("0.015") + Decimal("0.0012") + Decimal("0.00375")


@pytest.mark.parametrize(("tokens", "dollars"), [(200_000, "0.25"), (200_001, "0.5000025")])
def test_above_a_volume_another_price_holds_for_the_whole_call(tokens: int, dollars: str) -> None:
    assert PRICES(Usage("models/gemini-2.5-pro", tokens, 0)) == Decimal(dollars)


def test_what_cannot_be_priced_says_why() -> None:
    assert priced(Usage("a model of ours", 1, 1), PRICES).unpriced == UNKNOWN_MODEL
    assert priced(Usage("gpt-5", None, None), PRICES).unpriced == NO_COUNTS

    def raises(usage: Usage) -> Decimal:
        raise KeyError(usage.model)

    assert priced(Usage("m", 1, 1), raises).unpriced == "pricing raised KeyError: 'm'"
    for wrong in (1.5, Decimal("NaN"), Decimal(-1)):
        found = priced(Usage("m", 1, 1), lambda usage, wrong=wrong: wrong)  # type: ignore[misc]
        assert found.cost_usd is None and "a finite Decimal" in (found.unpriced or "")


def test_the_book_names_its_source_and_date_and_takes_other_prices() -> None:
    assert PRICES.source and PRICES.date == "2026-07-24"
    ours = PRICES.with_prices({"gpt-5": Price(input=Decimal(1), output=Decimal(2))}, source="our contract", date="2026-11-01")
    assert ours(Usage("gpt-5", 1_000_000, 1_000_000)) == 3
    assert ours(Usage("o3", 1_000_000, 0)) == 2
    assert "our contract, 2026-11-01" in ours.source
    assert PRICES(Usage("gpt-5", 1_000_000, 1_000_000)) == Decimal("11.25")


def test_a_file_or_an_object_may_have_the_prices(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.json"
    file.write_text(
        json.dumps(
            {
                "source": "us",
                "date": "2026-11-01",
                "prices": {"m": {"input": "1", "output": 2, "above": {"10": {"input": "3", "output": "4"}}}},
            }
        )
    )
    book = load_prices(str(file))
    assert book(Usage("m", 10, 0)) == Decimal("0.00001") and book(Usage("m", 11, 0)) == Decimal("0.000033")
    (tmp_path / "their_prices.py").write_text("def free(usage):\n    return None\n\nnothing = 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_prices("their_prices:free")(Usage("m", 1, 1)) is None
    assert load_prices(None) is PRICES
    file.write_text('{"source": "us"}')
    for wrong in (str(file), str(tmp_path / "none.json"), "their_prices:nothing"):
        with pytest.raises(ConfigurationError, match="LOCKSTEP_PRICES"):
            load_prices(wrong)


# Providers


@pytest.mark.parametrize(
    ("reply", "usage"),
    [
        (
            {
                "model": "gpt-4o-2024-08-06",
                "usage": {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
            },
            Usage("gpt-4o-2024-08-06", 10, 3, tokens_cached=4),
        ),
        ({"model": "local", "usage": {"prompt_tokens": 10, "completion_tokens": 3}}, Usage("local", 10, 3)),
        (
            {
                "object": "response",
                "model": "gpt-5",
                "usage": {"input_tokens": 10, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}},
            },
            Usage("gpt-5", 10, 3, tokens_cached=4),
        ),
        (
            {
                "type": "message",
                "model": "claude-haiku-4-5",
                "usage": {
                    "input_tokens": 10,
                    "output_tokens": 3,
                    "cache_read_input_tokens": 100,
                    "cache_creation_input_tokens": 20,
                },
            },
            Usage("claude-haiku-4-5", 130, 3, tokens_cached=100, tokens_cache_written=20),
        ),
        (
            {
                "modelVersion": "gemini-2.5-pro",
                "usageMetadata": {
                    "promptTokenCount": 10,
                    "toolUsePromptTokenCount": 1,
                    "candidatesTokenCount": 3,
                    "thoughtsTokenCount": 5,
                    "cachedContentTokenCount": 4,
                },
            },
            Usage("gemini-2.5-pro", 11, 8, tokens_cached=4),
        ),
        (
            {"model_version": "g", "usage_metadata": {"prompt_token_count": 10, "candidates_token_count": 3}},
            Usage("g", 10, 3),
        ),
        ({"model": "m", "choices": []}, Usage("m", None, None)),
        ({}, Usage("unknown", None, None)),
    ],
)
def test_the_counts_of_a_reply_are_read(reply: dict[str, Any], usage: Usage) -> None:
    class Reply:
        def model_dump(self) -> dict[str, Any]:
            return reply

    assert Usage(**usage_of(reply)) == Usage(**usage_of(Reply())) == usage


@pytest.mark.parametrize(
    "numbers",
    [
        {"tokens_in": -1, "tokens_out": 1},
        {"tokens_in": 1.0, "tokens_out": 1},
        {"tokens_in": True, "tokens_out": 1},
        {"tokens_in": 1, "tokens_out": 2**60},
        {"tokens_in": 1, "tokens_out": 1, "tokens_cached": 2},
        {"tokens_in": 1, "tokens_out": 1, "cost_usd": "-1"},
        {"tokens_in": 1, "tokens_out": 1, "cost_usd": "much"},
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, Any]) -> None:
    def node(state: State, ctx: Context) -> State:
        ctx.llm_usage("m", **numbers)
        return {}

    with Engine(one_node(node)) as engine, pytest.raises(StateError, match="llm_usage"):
        engine.invoke({})


@pytest.mark.parametrize("data", [b"{}", b'[{"model":"m","cost_usd":"1e9"}]', b'[{"model":"m","tokens_in":-1}]', b"[[[["])
def test_what_a_worker_cannot_have_sent_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_usage(data)


# Runs


def test_usage_counts_whatever_becomes_of_its_node(store_url: str) -> None:
    def node(state: State, ctx: Context) -> State:
        ctx.llm_usage("gpt-5", 1_000_000, 0)
        if ctx.attempt < 3:
            raise ConnectionError("after it was paid")
        ctx.llm_usage("ours", 10, 10)
        ctx.llm_usage("ours", 10, 10, cost_usd="0.05")
        return {}

    with Engine(one_node(node, retry=RetryPolicy(max_attempts=3, initial_seconds=0.0)), store_url) as engine:
        run = engine.submit({}, run_id="run")
        run.result()
        costs = run.costs()
        assert (costs.calls, costs.unpriced, costs.cost_usd) == (5, 1, Decimal("3.80"))
        assert costs.reasons == {UNKNOWN_MODEL: 1}
        assert (costs.tokens_in, costs.tokens_out) == (3_000_020, 20)
        assert {name: sum_.cost_usd for name, sum_ in costs.by_model.items()} == {
            "gpt-5": Decimal("3.75"),
            "ours": Decimal("0.05"),
        }
        assert costs.by_node["node"].calls == 5
        [task] = run.history()[1].tasks
        assert [usage.model for usage in task.usage] == ["gpt-5"] * 3 + ["ours"] * 2
        assert list(check_store(run.backend.reader)) == []


def test_usage_counts_of_a_node_that_fails_for_good_takes_too_long_or_asks() -> None:
    def fails(state: State, ctx: Context) -> State:
        ctx.llm_usage("gpt-5", 1_000_000, 0)
        raise ValueError("no")

    async def hangs(state: State, ctx: Context) -> State:
        import asyncio

        ctx.llm_usage("gpt-5", 1_000_000, 0)
        await asyncio.sleep(60)
        return {}

    def asks(state: State, ctx: Context) -> State:
        ctx.llm_usage("gpt-5", 1_000_000, 0)
        interrupt("?")
        return {}

    for node, options, ending in (
        (fails, {}, NodeFailedError),
        (hangs, {"timeout_seconds": 0.1}, NodeFailedError),
        (asks, {}, None),
    ):
        with Engine(one_node(node, **options)) as engine:
            run = engine.submit({})
            with pytest.raises(ending or RunInterruptedError):
                run.result()
            assert run.costs().cost_usd == Decimal("1.25")
            if ending is None:
                run.resume("yes")  # The node runs again, and pays again: it did not record the call.
                run.result()
                assert run.costs().cost_usd == Decimal("2.5")


def uses_apart(state: State, ctx: Context) -> State:
    ctx.llm_usage("special", 10, 20)
    if ctx.attempt == 1:
        raise ValueError("no")
    return {}


def test_usage_of_an_isolated_node_is_priced_outside_of_it() -> None:
    graph = one_node(uses_apart, isolation="process", retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))
    with Engine(graph, prices=lambda usage: Decimal("0.5") if usage.model == "special" else None) as engine:
        run = engine.submit({})
        run.result()
        assert (run.costs().calls, run.costs().cost_usd) == (2, Decimal("1.0"))


def test_1000_mixed_calls_add_up_as_an_oracle_in_fractions_says(store_url: str) -> None:
    # given prices as fractions, apart from the library's
    book = {
        "gpt-4o-mini": (Fraction(15, 100), Fraction(60, 100), Fraction(75, 1000)),
        "gpt-5-nano": (Fraction(5, 100), Fraction(40, 100), Fraction(5, 1000)),
        "claude-haiku-4-5": (Fraction(1), Fraction(5), Fraction(1, 10)),
        "o3": (Fraction(2), Fraction(8), Fraction(1, 2)),
    }
    calls: list[tuple[str, int, int, int]] = []
    lock = threading.Lock()

    def spread(state: State) -> list[Send]:
        return [Send("work", {"seed": number}) for number in range(250)]

    def work(sent: dict[str, Any], ctx: Context) -> dict[str, Any]:
        rng = Random(f"{sent['seed']} {ctx.attempt}")
        for _ in range(3):
            model, tokens_in, tokens_out = rng.choice([*book, "unknown"]), rng.randrange(200_000), rng.randrange(20_000)
            cached = rng.randrange(tokens_in + 1)
            ctx.llm_usage(model, tokens_in, tokens_out, tokens_cached=cached)
            with lock:
                calls.append((model, tokens_in, tokens_out, cached))
        time.sleep(rng.random() / 1000)
        if sent["seed"] % 3 == 0 and ctx.attempt == 1:
            raise ConnectionError("after it was paid")
        return {"done": [sent["seed"]]}

    graph = Graph(State).add_node("work", work, retry=RetryPolicy(max_attempts=2, initial_seconds=0.0))
    graph.add_conditional_edges(START, spread, ["work"])
    with Engine(graph, store_url, options=Options(max_concurrent=8)) as engine:
        run = engine.submit({}, run_id="run")
        run.result()
        costs = run.costs()
    # then the sums are exactly those
    assert len(calls) == costs.calls == 1002
    by_model: Counter[str] = Counter()
    exact = Fraction(0)
    for model, tokens_in, tokens_out, cached in calls:
        by_model[model] += 1
        if model in book:
            price_in, price_out, price_cached = book[model]
            exact += ((tokens_in - cached) * price_in + cached * price_cached + tokens_out * price_out) / 1_000_000
    assert Fraction(costs.cost_usd) == exact
    assert {name: sum_.calls for name, sum_ in costs.by_model.items()} == by_model
    assert costs.unpriced == by_model["unknown"] == costs.reasons[UNKNOWN_MODEL]


# Budgets


def spends(**options: Any) -> Graph:
    """A chain of 4 nodes, each of which spends 1 USD."""
    graph = Graph(State, name="spends")

    def node(state: State, ctx: Context) -> State:
        ctx.llm_usage("m", 1, 1, cost_usd=1)
        return {"done": [ctx.step_id]}

    return graph.add_sequence([(f"n{number}", node) for number in range(4)]).add_edge(START, "n0")


def test_a_run_pauses_when_it_has_spent_its_budget_and_goes_on(one_store: str, abandon: Any) -> None:
    graph = spends()
    with Engine(graph, one_store) as engine:
        run = engine.submit({}, run_id="run", options=Options(max_cost_usd="2"))  # type: ignore[arg-type]
        with pytest.raises(BudgetExceededError, match="has spent 2 USD, and max_cost_usd is 2") as caught:
            run.result()
        assert (run.status, run.state(), caught.value.max_cost_usd) == ("paused", {"done": [1, 2]}, "2")
        events = [(event.type, json.loads(event.data)) for event in run.backend.reader.events("run")]
        assert events == [("lockstep.paused", {"max_cost_usd": "2", "spent_usd": "2"})]
        assert list(check_store(run.backend.reader)) == []
        abandon(engine)
    with Engine(graph, one_store) as engine:
        # when another process takes it up, then it stays so, until somebody says otherwise
        [run] = engine.recover()
        with pytest.raises(BudgetExceededError):
            run.result()
        run.resume(options=Options(max_cost_usd=Decimal("2.5")))
        with pytest.raises(BudgetExceededError, match="3 USD"):
            run.result()
        assert run.state() == {"done": [1, 2, 3]}
        # by default it may spend as much again
        run.resume()
        assert run.result() == {"done": [1, 2, 3, 4]}
        assert run.costs().cost_usd == 4
        assert run.replay().nodes == 4


def test_a_budget_that_is_still_too_small_leaves_it_paused() -> None:
    with Engine(spends()) as engine:
        run = engine.submit({}, options=Options(max_cost_usd=Decimal(2)))
        for budget in ("1", "2"):
            with pytest.raises(BudgetExceededError):
                run.result()
            run.resume(options=Options(max_cost_usd=Decimal(budget)))
        with pytest.raises(BudgetExceededError, match="has spent 2 USD"):
            run.result()


def test_in_the_middle_of_a_step_nothing_more_is_handed_out() -> None:
    started: list[int] = []

    def work(number: int, ctx: Context) -> dict[str, Any]:
        started.append(number)
        ctx.llm_usage("m", 1, 1, cost_usd="0.25")
        return {"done": [number]}

    graph = Graph(State).add_node(work)
    graph.add_conditional_edges(START, lambda state: [Send("work", n) for n in range(100)], ["work"])
    with Engine(graph, options=Options(max_concurrent=2, max_cost_usd=Decimal(1))) as engine:
        run = engine.submit({})
        with pytest.raises(BudgetExceededError):
            run.result()
        # what was under way has ended, and is kept
        assert 4 <= len(started) <= 6
        assert run.row().step_id == 1
        run.resume(options=Options(max_cost_usd=Decimal(1000)))
        assert run.result() == {"done": list(range(100))}
        assert Counter(started).most_common(1)[0][1] == 1
        assert run.costs().cost_usd == 25


def test_a_paused_run_can_be_cancelled() -> None:
    from lockstep import RunCancelledError

    with Engine(spends()) as engine:
        run = engine.submit({}, options=Options(max_cost_usd=Decimal(1)))
        with pytest.raises(BudgetExceededError):
            run.result()
        run.cancel("too dear")
        with pytest.raises(RunCancelledError, match="too dear"):
            run.result()


def test_a_run_that_waits_for_people_and_has_spent_its_budget_pauses_when_they_have_answered() -> None:
    def asks(state: State, ctx: Context) -> State:
        ctx.llm_usage("m", 1, 1, cost_usd=1)
        return {"done": [interrupt("?")]}

    with Engine(one_node(asks)) as engine:
        run = engine.submit({}, options=Options(max_cost_usd=Decimal(1)))
        with pytest.raises(RunInterruptedError):
            run.result()
        run.resume(7)
        with pytest.raises(BudgetExceededError):
            run.result()
        run.resume()
        assert run.result() == {"done": [7]}


@pytest.mark.parametrize("wrong", ["much", -1, True, float("nan"), [1]])
def test_a_budget_is_an_amount_of_money(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_cost_usd"):
        Options(max_cost_usd=wrong)


def test_amounts_are_written_without_exponent() -> None:
    assert [as_text(Decimal(text)) for text in ("1E+3", "0.10", "1E-7", "0", "100")] == ["1000", "0.1", "0.0000001", "0", "100"]
    assert isinstance(PRICES, PriceBook) and dataclasses.is_dataclass(PRICES)


def test_what_is_reported_inside_of_a_recorded_call_counts_when_it_is_made() -> None:
    def asks(state: State, ctx: Context) -> State:
        def call() -> int:
            ctx.llm_usage("m", 1, 1, cost_usd=1)
            return 7

        number = ctx.record("model", None, call)
        interrupt("?")
        return {"done": [number]}

    with Engine(one_node(asks)) as engine:
        run = engine.submit({})
        with pytest.raises(RunInterruptedError):
            run.result()
        run.resume()
        assert run.result() == {"done": [7]}
        run.replay()
        assert (run.costs().calls, run.costs().cost_usd) == (1, 1)
