"""What type checkers must refuse. Each line says so, and a line that they accept is an error, too."""

from __future__ import annotations

from typing import TypedDict

from lockstep import START, Command, Context, Engine, Graph, Options, RetryPolicy, Send


class State(TypedDict, total=False):
    topic: str


def node(state: State, ctx: Context) -> State:
    ctx.run_id = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.missing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    return {"topik": "t"}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportReturnType]


Graph(State, ordering="random")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Graph(State, nmae="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
graph = Graph(State).add_node("node", node, isolation="thread")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
graph.add_node("node", node, timeout_seconds="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
graph.add_edge(START, node)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Options(max_steps="many")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Options(max_step=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
RetryPolicy(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Send("node")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Command(goto=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with Engine(graph) as engine:
    engine.submit({}, if_busy="wait")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    engine.submit({}).stream(["tokens"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    text: str = engine.invoke({})  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
