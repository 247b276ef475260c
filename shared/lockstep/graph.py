"""`Graph`: what authors write. `compile()` turns it into what the engine runs, or says what is wrong with it."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args, overload

import msgspec

from lockstep.compiled import (
    CompiledGraph,
    Handler,
    Isolation,
    Migration,
    NodeFunction,
    NodeSpec,
    OpenResources,
    Router,
    Subgraph,
)
from lockstep.core.canonical import canonical_bytes
from lockstep.core.merge import Reducer
from lockstep.core.ordering import END, ORDERINGS, START, Ordering
from lockstep.core.policy import ONCE, RetryPolicy
from lockstep.core.superstep import Program
from lockstep.core.topology import Barrier, Edge, Node, Topology
from lockstep.errors import ConfigurationError
from lockstep.functions import is_async, labels_of, may_return_command, takes_context
from lockstep.schema import name_of, schema_of

F = TypeVar("F", bound=NodeFunction)


class Send(msgspec.Struct, frozen=True):
    """Run `node` in the next step on `payload` instead of the state. Each Send is a work item of its own."""

    node: str
    payload: Any


class Command(msgspec.Struct, frozen=True):
    """A delta together with where to go next, beside the static edges: a node name, a Send, or a list of them.

    With `graph=Command.PARENT`, both are meant for the graph of which this one is a subgraph, whose run ends with this step:
    they are all that its node comes to.
    """

    PARENT: ClassVar[str] = "__parent__"

    update: Any = None
    goto: str | Send | Sequence[str | Send] = ()
    graph: str | None = None

    def __post_init__(self) -> None:
        if self.graph not in (None, self.PARENT):
            raise ConfigurationError(f"Command(graph={self.graph!r}) is not Command.PARENT", option="graph")


class Overwrite(msgspec.Struct, frozen=True):
    """Replace a reduced field's value; the other writes of the step to this field are discarded."""

    value: Any


class Graph:
    """A graph of nodes over one state type; `StateGraph` is the same class.

    `state` is a TypedDict, dataclass, msgspec.Struct or pydantic model; `Annotated[T, f]` gives a field the reducer
    f(current, update). `reducer` replaces the field reducers by one f(state, delta) for the whole. `merges` gives fields a join
    for ConflictPolicy.MERGE. `ordering` is "edge" (declaration order), "hash" or "langgraph". `version` is part of the graph's
    hash: change it when nodes change their meaning.

    `input_schema` and `output_schema` are states with some of the fields: those that an input may have, and those that
    `result()` has. `resources` is called once in each worker's process, and makes a context manager, sync or async (then for
    async nodes); what that gives is `ctx.resources`.
    """

    def __init__(
        self,
        state: type,
        name: str = "graph",
        *,
        ordering: Ordering = "edge",
        reducer: Reducer | None = None,
        merges: Mapping[str, Reducer] | None = None,
        version: str = "",
        input_schema: type | None = None,
        output_schema: type | None = None,
        resources: OpenResources | None = None,
    ) -> None:
        if ordering not in ORDERINGS:
            raise ConfigurationError(f"ordering={ordering!r} is not one of {', '.join(ORDERINGS)}", option="ordering")
        self.name = name
        self.state = state
        self._ordering: Ordering = ordering
        self._version = version
        self._schema = schema_of(state, reducer, merges or {}, inputs=input_schema, outputs=output_schema)
        self._resources = resources
        self._nodes: dict[str, dict[str, Any]] = {}
        self._edges: dict[str, list[Edge]] = {START: []}
        self._routers: dict[str, list[Router]] = {START: []}
        self._barriers: list[Barrier] = []
        self._migrations: dict[str, Migration] = {}
        self._compiled: CompiledGraph | None = None

    @overload
    def node(self, function: F, /) -> F: ...
    @overload
    def node(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        retry: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
        defer: bool = False,
        error_handler: NodeFunction | None = None,
        isolation: Isolation = "none",
        max_concurrent: int | None = None,
    ) -> Callable[[F], F]: ...
    def node(self, function: Any = None, /, **options: Any) -> Any:
        """Add the decorated function as a node, under its own name or `name`; takes `add_node`'s options."""

        def add(function: F) -> F:
            self.add_node(chosen or function, function if chosen else None, **options)
            return function

        chosen = options.pop("name", None)
        return add if function is None else add(function)

    def add_node(
        self,
        name: str | NodeFunction,
        function: NodeFunction | Graph | None = None,
        *,
        queue: str = "default",
        retry: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
        defer: bool = False,
        error_handler: NodeFunction | None = None,
        isolation: Isolation = "none",
        max_concurrent: int | None = None,
        input: Mapping[str, str] | NodeFunction | None = None,
        output: Mapping[str, str] | NodeFunction | None = None,
    ) -> Graph:
        """Add a node: `add_node("plan", plan)` or `add_node(plan)`. Returns the graph.

        The function takes the state (or a Send's payload) and, if it has a second parameter, the Context; sync or async. It
        returns a dict of changes, a Command, None, or a list of these. `queue` names the queue its tasks go to, `retry` its
        own RetryPolicy, `timeout_seconds` its own bound; `defer` holds it back until nothing else is left to run.

        `error_handler` is a function like a node's. It runs in the node's place, in the same step and on the same input, when
        the node has failed for good, and finds the error in `ctx.error`; what it returns counts as what the node returned.

        `isolation="process"` runs the function in a process of its own, without LOCKSTEP_* variables: it is killed when it
        takes too long or its run is cancelled, and may end its process without harm to other nodes. The function must be at
        the top level of a module, and what it takes and returns must be picklable.

        `max_concurrent` bounds how many tasks of the node, of whatever runs, are handed out at a time, on all workers together.

        A Graph as the function is a subgraph: the node's work is a run of its own. It gets the fields that both states have,
        and what its nodes write to them counts as written by the node. `input={"theirs": "ours"}` and
        `output={"theirs": "ours"}` name other fields; or `input` is a function of what a node gets that returns the subgraph's
        input, `output` one of the subgraph's final state that returns what a node may. A failed subgraph that is tried again
        (`retry`, `Run.retry`) goes on from its last commit.
        """
        if isinstance(function, Graph):
            self._check_subgraph(str(name), timeout_seconds, isolation, max_concurrent)
            self._add(
                str(name),
                nested=Nested(function, input, output),
                queue=queue,
                retry=retry or ONCE,
                defer=defer,
                error_handler=error_handler,
            )
            return self
        if input is not None or output is not None:
            raise ConfigurationError(f"node {name!r}: input and output are for a Graph as a node", option="input")
        if not isinstance(name, str):
            function, name = name, str(getattr(name, "__name__", type(name).__name__))
        if function is None or not callable(function):
            raise ConfigurationError(f"node {name!r} needs a function: add_node({name!r}, function)", option="node")
        self._add(
            name,
            function,
            takes_context=takes_context(function, f"node {name!r}"),
            queue=queue,
            retry=retry,
            timeout_seconds=timeout_seconds,
            defer=defer,
            error_handler=error_handler,
            isolation=_checked_isolation(isolation, function, name),
            max_concurrent=_checked_max_concurrent(max_concurrent, name),
        )
        return self

    def _add(
        self,
        name: str,
        function: NodeFunction | None = None,
        *,
        nested: Nested | None = None,
        takes_context: bool = False,
        queue: str,
        retry: RetryPolicy | None,
        timeout_seconds: float | None = None,
        defer: bool,
        error_handler: NodeFunction | None,
        isolation: Isolation = "none",
        max_concurrent: int | None = None,
    ) -> None:
        if not name or name.startswith("__") or "/" in name:
            raise ConfigurationError(
                f"node {name!r}: a name is not empty, does not start with '__' and has no '/'; rename it", option="node"
            )
        if name in self._nodes:
            raise ConfigurationError(f"node {name!r} is there already; give one of the two another name", option="node")
        if timeout_seconds is not None and not 0 < timeout_seconds < math.inf:
            raise ConfigurationError(
                f"node {name!r}: timeout_seconds={timeout_seconds} must be above 0 and finite", option="timeout_seconds"
            )
        self._compiled = None
        self._nodes[name] = {
            "function": function,
            "nested": nested,
            "takes_context": takes_context,
            "queue": queue,
            "retry": retry,
            "timeout_seconds": timeout_seconds,
            "defer": defer,
            "handler": _handler(error_handler, name) if error_handler is not None else None,
            "max_concurrent": max_concurrent,
            "isolation": isolation,
        }
        self._edges[name] = []
        self._routers[name] = []

    def add_edge(self, source: str | Sequence[str], target: str) -> Graph:
        """Run `target` after `source`. With a list, once after all of them (a barrier, which re-arms). Returns the graph."""
        sources = [source] if isinstance(source, str) else list(dict.fromkeys(source))
        if not sources:
            raise ConfigurationError(f"add_edge([], {target!r}) needs at least one source", option="edge")
        for name in sources:
            self._check_source(name, f"add_edge({source!r}, {target!r})")
        if target == START:
            raise ConfigurationError(f"add_edge({source!r}, START): START has no incoming edges", option="edge")
        self._compiled = None
        if len(sources) == 1:
            self._edges[sources[0]].append(Edge(target))
            return self
        if START in sources:
            raise ConfigurationError(f"add_edge({source!r}, {target!r}): START cannot be waited for", option="edge")
        self._barriers.append(Barrier(tuple(sources), target))
        for name in sources:
            self._edges[name].append(Edge(target, barrier=len(self._barriers) - 1))
        return self

    def add_conditional_edges(
        self, source: str, router: NodeFunction, path_map: Mapping[Any, str] | Sequence[str] | None = None
    ) -> Graph:
        """After `source`, go where `router(state)` says: a node name, END, a Send, or a list of them. Returns the graph.

        `path_map` maps what the router returns to nodes, or lists the nodes it may name. The router sees the state that the
        node saw, plus the node's own changes; it may take the Context as a second parameter.
        """
        name = getattr(router, "__name__", type(router).__name__)
        self._check_source(source, f"add_conditional_edges({source!r}, {name})")
        self._compiled = None
        labels = labels_of(router, path_map)
        wants = takes_context(router, f"router {name!r} of {source!r}")
        self._routers[source].append(Router(name, router, labels, wants))
        return self

    def add_sequence(self, functions: Sequence[NodeFunction | tuple[str, NodeFunction]]) -> Graph:
        """Add the functions as nodes that run one after the other. Returns the graph."""
        names = []
        for entry in functions:
            name, function = entry if isinstance(entry, tuple) else (getattr(entry, "__name__", ""), entry)
            self.add_node(name, function)
            names.append(name)
        for one, following in itertools.pairwise(names):
            self.add_edge(one, following)
        return self

    def add_migration(
        self,
        graph_hash: str,
        function: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        *,
        nodes: Mapping[str, str] | None = None,
    ) -> Graph:
        """Let unfinished runs of the version with this hash (see `lockstep versions --json`) go on with this one.

        `function` makes the new state of the old one, both as JSON values; None: it stays. `nodes` says what nodes that may be
        due are called now. The change is a step of its own, and what was due begins anew after it. Returns the graph.
        """
        if re.fullmatch(r"[0-9a-f]{64}", graph_hash) is None:
            raise ConfigurationError(f"add_migration({graph_hash!r}): a version is 64 hex digits", option="migration")
        self._compiled = None
        self._migrations[graph_hash] = Migration(function or dict, dict(nodes or {}))
        return self

    def _check_source(self, name: str, call: str) -> None:
        if name == END:
            raise ConfigurationError(f"{call}: END has no outgoing edges", option="edge")
        if name not in self._edges:
            raise ConfigurationError(f"{call}: no node {name!r}; add it with add_node before its edges", option="edge")

    def _check_subgraph(self, name: str, timeout_seconds: object, isolation: object, max_concurrent: object) -> None:
        """Refuse what a node that is a graph cannot have, for it executes nothing itself."""
        given = {"timeout_seconds": timeout_seconds, "max_concurrent": max_concurrent, "isolation": isolation}
        for option, value in given.items():
            if value not in (None, "none"):
                raise ConfigurationError(f"node {name!r} is a graph: give {option} to the nodes of that", option=option)

    def compile(self) -> CompiledGraph:
        """The validated graph. Raises ConfigurationError that names the node or edge, and the remedy."""
        if self._compiled is None:
            self._compiled = self._compile(self.name, None, ())
        return self._compiled

    def _compile(
        self, name: str, parent: Program | None, above: tuple[Graph, ...], resources: OpenResources | None = None
    ) -> CompiledGraph:
        """The graph under this name, as a subgraph of those `above`, with their resources if it has none of its own."""
        resources = self._resources or resources
        if self in above:
            raise ConfigurationError(f"graph {self.name!r} is a subgraph of itself", option="node")
        self._check_targets()
        self._check_reachable()
        topology = self._topology()
        program = Program(topology, self._schema)
        subgraphs = {
            node: Subgraph(
                options["nested"].graph._compile(f"{name}/{node}", program, (*above, self), resources),
                self._mapping(node, options["nested"], "input"),
                self._mapping(node, options["nested"], "output"),
            )
            for node, options in self._nodes.items()
            if options["nested"] is not None
        }
        nodes = {node: self._spec(node, subgraphs.get(node)) for node in self._nodes}
        return CompiledGraph(
            name,
            self._hash(name, topology, subgraphs),
            self.state,
            program,
            {START: self._start(), **nodes},
            dict(self._migrations),
            parent,
            resources,
        )

    def _mapping(self, node: str, nested: Nested, what: Literal["input", "output"]) -> Mapping[str, str] | NodeFunction:
        """Which fields of a subgraph go with which of this graph: those that both have, unless its node says something else."""
        given = nested.input if what == "input" else nested.output
        theirs, ours = nested.graph._schema.fields, self._schema.fields
        if given is None and what == "input":
            return {name: name for name in nested.graph._schema.inputs or theirs}  # A Send may carry what is no field here.
        if given is None:
            shared = {name: name for name in nested.graph._schema.outputs or theirs if name in ours}
            if not shared:
                raise ConfigurationError(
                    f"node {node!r}: graphs {self.name!r} and {nested.graph.name!r} share no field; give {what}=", option=what
                )
            return shared
        if not isinstance(given, Mapping):
            return given
        for their, our in given.items():
            if their not in theirs or our not in ours:
                unknown, known = (their, theirs) if their not in theirs else (our, ours)
                raise ConfigurationError(
                    f"node {node!r}: {what} names field {unknown!r}; there are {', '.join(sorted(known))}", option=what
                )
        return dict(given)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart: solid arrows are edges, dotted ones what routers may choose."""
        ids = {name: f"n{index}" for index, name in enumerate([START, *self._nodes, END])}
        lines = ["flowchart TD"]
        lines += [f'    {ids[name]}(["{name.strip("_")}"])' for name in (START, END)]
        lines += [f'    {ids[name]}["{name}"]' for name in self._nodes]
        for source, edges in self._edges.items():
            lines += [f"    {ids[source]} --> {ids[edge.target]}" for edge in edges]
            for router in self._routers[source]:
                for label, target in (router.labels or {name: name for name in [*self._nodes, END]}).items():
                    note = f'|"{label}"|' if label != target else ""
                    lines.append(f"    {ids[source]} -.->{note} {ids[target]}")
        return "\n".join(lines) + "\n"

    def _topology(self) -> Topology:
        nodes = {
            name: Node(
                name,
                tuple(edges),
                tuple(router.name for router in self._routers[name]),
                name != START and bool(self._nodes[name]["defer"]),
            )
            for name, edges in self._edges.items()
        }
        return Topology(nodes, tuple(self._barriers), self._ordering)

    def _spec(self, name: str, subgraph: Subgraph | None) -> NodeSpec:
        options = self._nodes[name]
        routers = tuple(self._routers[name])
        functions = [*self._functions_of(name), *(router.function for router in routers)]
        if subgraph is not None:
            functions += [mapping for mapping in (subgraph.input, subgraph.output) if callable(mapping)]
        isolated = options["isolation"] == "process"
        if isolated and any(map(is_async, functions[1:])):
            raise ConfigurationError(
                f"node {name!r} has isolation='process': its routers and its error handler must not be async",
                option="isolation",
            )
        return NodeSpec(
            node_id=name,
            function=options["function"],
            routers=routers,
            takes_context=options["takes_context"],
            is_async=not isolated and any(map(is_async, functions)),
            queue=options["queue"],
            retry=options["retry"],
            timeout_seconds=options["timeout_seconds"],
            handler=options["handler"],
            isolation=options["isolation"],
            max_concurrent=options["max_concurrent"],
            subgraph=subgraph,
        )

    def _start(self) -> NodeSpec:
        routers = tuple(self._routers[START])
        awaits = any(is_async(router.function) for router in routers)
        return NodeSpec(START, None, routers, False, awaits, "default", None, None)

    def _check_targets(self) -> None:
        known = self._nodes.keys() | {END}
        if not self._edges[START] and not self._routers[START]:
            raise ConfigurationError(
                f"graph {self.name!r} has no entry: add_edge(START, ...) to the node that runs first", option="edge"
            )
        for source, edges in self._edges.items():
            targets = [edge.target for edge in edges if edge.barrier is None]
            for target in targets + [edge.target for edge in edges if edge.barrier is not None]:
                if target not in known:
                    raise ConfigurationError(
                        f"edge {source!r} -> {target!r}: no node {target!r}; add it with add_node, or use END", option="edge"
                    )
            if len(set(targets)) < len(targets):
                twice = next(target for target in targets if targets.count(target) > 1)
                raise ConfigurationError(f"edge {source!r} -> {twice!r} is declared twice; remove one", option="edge")
            for router in self._routers[source]:
                for target in set((router.labels or {}).values()) - known:
                    raise ConfigurationError(
                        f"router {router.name!r} of {source!r} may lead to {target!r}, which is no node; "
                        f"add it, or mend the path_map",
                        option="path_map",
                    )

    def _check_reachable(self) -> None:
        """Refuse nodes that nothing reaches. A router without labels reaches all, as does a node that may return Command."""
        reached, pending = {START}, [START]
        while pending:
            name = pending.pop()
            routers = self._routers[name]
            if any(router.labels is None for router in routers):
                return
            if name != START and (self._nodes[name]["nested"] or any(map(may_return_command, self._functions_of(name)))):
                return
            targets = {edge.target for edge in self._edges[name]}
            targets.update(*[(router.labels or {}).values() for router in routers])
            pending += targets - reached - {END}
            reached |= targets
        for name in self._nodes:
            if name not in reached:
                raise ConfigurationError(f"nothing leads to node {name!r}; add an edge to it, or remove it", option="node")

    def _functions_of(self, name: str) -> list[NodeFunction]:
        """What may say where a node leads."""
        function, handler = self._nodes[name]["function"], self._nodes[name]["handler"]
        return [*([function] if function else []), *([handler.function] if handler else [])]

    def _hash(self, name: str, topology: Topology, subgraphs: Mapping[str, Subgraph]) -> str:
        """SHA256 over topology, field and reducer names, policies and version: what makes two graphs the same to a run."""
        whole = self._schema.whole_name
        record = {
            "barriers": [[list(barrier.members), barrier.target] for barrier in topology.barriers],
            "fields": [
                [field.name, field.reducer_name, name_of(field.merge) if field.merge else ""]
                for _, field in sorted(self._schema.fields.items())
            ],
            "name": name,
            "nodes": [
                [
                    node_id,
                    [[edge.target, edge.barrier] for edge in node.edges],
                    [[router.name, _label_record(router.labels)] for router in self._routers[node_id]],
                    node.defer,
                ]
                for node_id, node in topology.nodes.items()
            ],
            "ordering": topology.ordering,
            "retry": {
                node_id: msgspec.to_builtins(options["retry"])
                for node_id, options in self._nodes.items()
                if options["retry"] is not None
            },
            "version": self._version,
            "whole": whole,
        }
        # Left out where there are none: a graph of an earlier release keeps its hash.
        if handlers := {node_id: options["handler"].name for node_id, options in self._nodes.items() if options["handler"]}:
            record["handlers"] = handlers
        if subgraphs:
            record["subgraphs"] = {
                node_id: [one.graph.hash, _mapping_record(one.input), _mapping_record(one.output)]
                for node_id, one in subgraphs.items()
            }
        return hashlib.sha256(canonical_bytes(record)).hexdigest()


class Nested(msgspec.Struct, frozen=True):
    """A graph as a node, as its author gave it."""

    graph: Graph
    input: Mapping[str, str] | NodeFunction | None
    output: Mapping[str, str] | NodeFunction | None


StateGraph = Graph


def _checked_max_concurrent(count: int | None, node: str) -> int | None:
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ConfigurationError(
            f"node {node!r}: max_concurrent={count!r} must be an integer of at least 1", option="max_concurrent"
        )
    return count


def _checked_isolation(isolation: Isolation, function: NodeFunction, node: str) -> Isolation:
    if isolation not in get_args(Isolation):
        raise ConfigurationError(f"node {node!r}: isolation={isolation!r} is not 'none' or 'process'", option="isolation")
    if isolation == "process" and "<" in getattr(function, "__qualname__", "<"):
        raise ConfigurationError(
            f"node {node!r} has isolation='process': its function must be at the top level of a module, "
            f"where another process can import it",
            option="isolation",
        )
    return isolation


def _handler(function: NodeFunction, node: str) -> Handler:
    if not callable(function):
        raise ConfigurationError(f"node {node!r}: error_handler={function!r} must be a function", option="error_handler")
    name = str(getattr(function, "__name__", type(function).__name__))
    return Handler(name, function, takes_context(function, f"error handler {name!r} of {node!r}"))


def _mapping_record(mapping: Mapping[str, str] | NodeFunction) -> Any:
    return dict(mapping) if isinstance(mapping, Mapping) else name_of(mapping)


def _label_record(labels: dict[Any, str] | None) -> list[list[str]] | None:
    return None if labels is None else sorted([repr(label), target] for label, target in labels.items())
