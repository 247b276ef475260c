"""Spans: run > step > node in one trace, each node's with all that is promised, whatever became of it."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from lockstep import START, Context, Engine, Graph, NodeFailedError, RetryPolicy, RunInterruptedError, Send, interrupt
from lockstep.telemetry.otel import BATCH_SPANS, ExportedSpans
from lockstep.telemetry.spans import RunTrace, Span, parsed

NINE = {
    "run_id": str,
    "step_id": int,
    "node_id": str,
    "attempt": int,
    "order_key": str,
    "tokens_in": int,
    "tokens_out": int,
    "latency_ms": float,
    "cost_usd": float,
}


class State(TypedDict, total=False):
    seen: Annotated[list[Any], operator.add]


class Collected:
    """What an engine has exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.processor = SimpleSpanProcessor(self._exporter)

    def spans(self, kind: str = "") -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(kind)]

    def attributes(self, kind: str) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.spans(kind)]


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


@pytest.fixture
def collected() -> Iterator[Collected]:
    collected = Collected()
    yield collected
    # Whatever a test does, each node's span has all attributes, and hangs in one tree.
    spans = collected.spans()
    ids = {id_of(span) for span in spans}
    assert len(ids) == len(spans)
    for span in spans:
        if span.name.startswith(("node", "replay")):
            attributes = dict(span.attributes or {})
            assert {name: type(attributes.get(name)) for name in NINE} == NINE, span.name
    for kind, above in (("step", "run"), ("node", "step")):
        parents = {id_of(span) for span in collected.spans(above)}
        open_steps = {"asked", "called", "failed"}  # Of a step that is not committed yet there is no span.
        for span in collected.spans(kind):
            assert parent_of(span) in parents or (span.attributes or {}).get("outcome") in open_steps, span.name


def test_a_run_is_one_trace(store_url: str, collected: Collected) -> None:
    def leaf(n: int, ctx: Context) -> State:
        ctx.llm_usage("model", 100, 20, cost_usd="0.5")
        ctx.llm_usage("model", 1, 2, cost_usd="0.25")
        return {"seen": [n]}

    graph = Graph(State, name="traced").add_node("leaf", leaf).add_node("join", lambda state: {"seen": ["join"]})
    graph.add_conditional_edges(START, lambda state: [Send("leaf", n) for n in range(5)], ["leaf"]).add_edge("leaf", "join")
    with Engine(graph, store_url, traces=collected.processor) as engine:
        run = engine.submit({}, run_id="run")
        run.result()
        history = run.history()

    [top] = collected.spans("run")
    assert (top.name, top.parent, top.status.status_code) == ("run traced", None, StatusCode.OK)
    assert {span.context.trace_id for span in collected.spans() if span.context} == {
        int.from_bytes(RunTrace("run", None).trace_id, "big")
    }
    steps = collected.spans("step")
    assert [span.name for span in steps] == ["step 0", "step 1", "step 2", "step 3"]
    assert {parent_of(span) for span in steps} == {id_of(top)}
    # The nodes are the items of the history, with what each had used.
    expected = [task.order_key for step in history for task in step.tasks]
    nodes = sorted(collected.attributes("node"), key=lambda span: (span["step_id"], span["order_key"]))
    assert [span["order_key"] for span in nodes] == expected
    leaves = [span for span in nodes if span["node_id"] == "leaf"]
    assert {(span["tokens_in"], span["tokens_out"], span["cost_usd"]) for span in leaves} == {(101, 22, 0.75)}
    assert [(span["tokens_in"], span["cost_usd"]) for span in nodes if span["node_id"] == "join"] == [(0, 0.0)]
    for span in collected.spans("node"):
        assert span.end_time is not None and span.start_time is not None and span.end_time >= span.start_time


def test_an_attempt_links_to_the_one_before(collected: Collected) -> None:
    def node(state: State, ctx: Context) -> State:
        if ctx.attempt < 3:
            raise ConnectionError("again")
        return {}

    graph = Graph(State).add_node("node", node, retry=RetryPolicy(initial_seconds=0.01)).add_edge(START, "node")
    with Engine(graph, traces=collected.processor) as engine:
        engine.invoke({})
    first, second, third = collected.spans("node")
    assert [(span.attributes or {})["attempt"] for span in (first, second, third)] == [1, 2, 3]
    assert [span.status.status_code for span in (first, second, third)] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.OK]
    assert "again" in str(first.status.description)
    assert [links_of(span) for span in (first, second, third)] == [[], [id_of(first)], [id_of(second)]]


def test_a_failed_run_and_its_retry_are_linked(collected: Collected) -> None:
    broken = [True]

    def node(state: State) -> State:
        if broken:
            raise ValueError("broken")
        return {}

    with Engine(Graph(State).add_node(node).add_edge(START, "node"), traces=collected.processor) as engine:
        run = engine.submit({})
        with pytest.raises(NodeFailedError):
            run.result()
        broken.clear()
        run.retry()
        run.result()
    failed, retried = collected.spans("run")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "NodeFailedError")
    assert links_of(retried) == [id_of(failed)]
    assert (retried.attributes or {})["retries"] == 1


def test_a_question_and_its_answer_are_two_executions(collected: Collected) -> None:
    graph = Graph(State).add_node("asks", lambda state: {"seen": [interrupt("?")]}).add_edge(START, "asks")
    with Engine(graph, traces=collected.processor) as engine:
        run = engine.submit({})
        with pytest.raises(RunInterruptedError):
            run.result()
        run.resume(1)
        run.result()
    asked, answered = collected.spans("node")
    assert [(span.attributes or {})["outcome"] for span in (asked, answered)] == ["asked", "done"]
    assert links_of(answered) == [id_of(asked)]
    assert asked.status.status_code is StatusCode.OK


def test_a_subgraph_is_in_the_trace_of_its_parent(collected: Collected) -> None:
    inner = Graph(State, name="inner").add_node("low", lambda state: {"seen": ["low"]}).add_edge(START, "low")
    graph = Graph(State, name="top").add_node("inner", inner).add_edge(START, "inner")
    with Engine(graph, traces=collected.processor) as engine:
        engine.invoke({})
    above, below = (next(span for span in collected.spans("run") if span.name == f"run {n}") for n in ("top", "top/inner"))
    assert len({span.context.trace_id for span in collected.spans() if span.context}) == 1
    [step] = [span for span in collected.spans("step 1") if parent_of(span) == id_of(above)]
    assert parent_of(below) == id_of(step)


def test_a_replay_has_spans_beside_those_of_the_run(collected: Collected) -> None:
    def node(state: State, ctx: Context) -> State:
        ctx.llm_usage("model", 3, 4, cost_usd="1")
        return {}

    with Engine(Graph(State).add_node(node).add_edge(START, "node"), traces=collected.processor) as engine:
        run = engine.submit({})
        run.result()
        run.replay()
    [executed], [replayed] = collected.spans("node"), collected.spans("replay")
    assert links_of(replayed) == [id_of(executed)]
    assert parent_of(replayed) == parent_of(executed)


def test_who_submits_and_what_nodes_do_are_in_the_same_trace(collected: Collected) -> None:
    provider = TracerProvider()
    provider.add_span_processor(collected.processor)
    tracer = provider.get_tracer("mine")
    logged: list[Any] = []

    def sync(state: State, ctx: Context) -> State:
        logged.append(ctx.logger._context["trace_id"])
        with tracer.start_as_current_span("inside sync"):
            return {}

    async def later(state: State) -> State:
        with tracer.start_as_current_span("inside later"):
            return {}

    graph = Graph(State).add_node(sync).add_node(later).add_edge(START, "sync").add_edge(START, "later")
    with Engine(graph, traces=collected.processor) as engine, tracer.start_as_current_span("caller") as caller:
        engine.invoke({})
    [top] = collected.spans("run")
    assert parent_of(top) == caller.get_span_context().span_id
    assert len({span.context.trace_id for span in collected.spans() if span.context}) == 1
    assert logged == [f"{caller.get_span_context().trace_id:032x}"]
    nodes = {(span.attributes or {})["node_id"]: id_of(span) for span in collected.spans("node")}
    for name in ("sync", "later"):
        [mine] = collected.spans(f"inside {name}")
        assert parent_of(mine) == nodes[name]
    assert trace.get_current_span().get_span_context().is_valid is False


def test_what_the_caller_does_not_sample_is_not_exported(collected: Collected) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    tracer = TracerProvider(sampler=ALWAYS_OFF).get_tracer("mine")
    graph = Graph(State).add_node("n", lambda state: {}).add_edge(START, "n")
    with Engine(graph, traces=collected.processor) as engine, tracer.start_as_current_span("caller"):
        run = engine.submit({})
        run.result()
        assert parsed(run.row().trace_context) is not None
    assert collected.spans() == []


@pytest.mark.parametrize("header", [None, "", "00-zz", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "01-" + "a" * 32])
def test_a_header_that_is_none_begins_a_trace(header: str | None) -> None:
    assert parsed(header) is None
    assert RunTrace("run", header).trace_id == RunTrace("run", None).trace_id


def test_a_header_survives() -> None:
    context = RunTrace("run", None).step(3)
    assert parsed(context.traceparent) == context
    assert json.dumps(context.traceparent)


def test_a_processor_that_raises_fails_no_run() -> None:
    class Broken(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError("the processor is broken")

    graph = Graph(State).add_node("n", lambda state: {"seen": [1]}).add_edge(START, "n")
    with Engine(graph, traces=Broken()) as engine:
        assert engine.invoke({})["seen"] == [1]
        assert engine._running()._spans is not None
        assert engine._running()._spans.dropped == 4  # The run, its two steps, and the node.


def test_an_export_that_raises_costs_its_batch_alone() -> None:
    class Moody(InMemorySpanExporter):
        tries = 0

        def export(self, spans: Any) -> Any:
            self.tries += 1
            if self.tries == 1:
                raise RuntimeError("not now")
            return super().export(spans)

    def span(number: int) -> Span:
        context = RunTrace(f"run{number}", None).run(0)
        return Span(name=f"{number}", context=context, parent=None, start_ns=1, end_ns=2, attributes={})

    exporter = Moody()
    spans = ExportedSpans(exporter, "test")
    for number in range(BATCH_SPANS + 3):
        spans.emit(partial(span, number))
    spans.close()
    assert spans.dropped == BATCH_SPANS
    assert [one.name for one in exporter.get_finished_spans()] == [str(BATCH_SPANS + n) for n in range(3)]


def test_an_exporter_that_raises_fails_no_run() -> None:
    class Broken(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            raise RuntimeError("the exporter is broken")

    graph = Graph(State).add_node("n", lambda state: {"seen": [1]}).add_edge(START, "n")
    with Engine(graph, traces=SimpleSpanProcessor(Broken())) as engine:
        assert engine.invoke({})["seen"] == [1]
