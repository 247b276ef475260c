"""`Client`: submit runs to coordinators and follow them, from anywhere that reaches the database."""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from lockstep.backend import ReplayReport
from lockstep.broker.announce import Announcer
from lockstep.broker.live import RedisLiveReader
from lockstep.config import checked_namespace, read_settings
from lockstep.core.canonical import canonical_bytes
from lockstep.core.lifecycle import RunStatus
from lockstep.core.merge import Schema
from lockstep.core.ordering import shard_of
from lockstep.errors import ConfigurationError, RunNotFoundError, UnknownGraphError
from lockstep.models import values_of
from lockstep.options import DEFAULTS, Options, encode_options
from lockstep.ports import LiveReader, Reader
from lockstep.records import Command, NewRun, RunRow
from lockstep.run import Run, runs_of
from lockstep.store import open_store
from lockstep.subgraphs import delete_with_children
from lockstep.submission import IfBusy, check_same, check_thread, checked_id, encoded_input, new_run_id
from lockstep.telemetry.spans import current_traceparent

GRAPHS_FRESH_SECONDS = 1.0
"""How long a client goes by what it has read of the graphs that are loaded."""


class Client:
    """Submits runs of graphs that coordinators have loaded, and gives access to all runs. Needs no graph code.

    `store` is the coordinators' database, `redis_url` their Redis: with it they are woken at once, without it they look every
    second. What is not given comes from LOCKSTEP_STORE_URL, LOCKSTEP_REDIS_URL and LOCKSTEP_NAMESPACE. A context manager.

    Raises ConfigurationError, StoreUnavailableError.
    """

    announces = False

    def __init__(self, store: str | None = None, *, redis_url: str | None = None, namespace: str | None = None) -> None:
        settings = read_settings(store=store, redis=redis_url)
        self._url = settings.store_url
        if self._url == "memory://":
            raise ConfigurationError(
                "memory:// is one engine's own; a client needs a database that others reach", option="store"
            )
        self._announcer = None
        self._redis_url = settings.redis_url
        self._namespace = checked_namespace(namespace or settings.namespace)
        if settings.redis_url is not None:
            self._announcer = Announcer(settings.redis_url, self._namespace)
        self._store = open_store(self._url, create=False)
        self._loaded: dict[str, str] = {}
        self._loaded_at = 0.0
        self._partitions = Partitions(self._store)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; runs go on. Idempotent."""
        if self._announcer is not None:
            self._announcer.close()
        self._store.close()

    def submit(
        self,
        graph: str,
        input: Any,
        *,
        run_id: str | None = None,
        thread_id: str | None = None,
        options: Options | None = None,
        connection: object = None,
        if_busy: IfBusy = "queue",
        context: Any = None,
    ) -> Run:
        """Store a new run of the named graph, durably, in the version loaded last (a second ago); a coordinator begins it.

        With a `connection` (a Connection or Session of SQLAlchemy, to the database of the runs), the run becomes part of the
        transaction that is open there: it is there once the caller has committed, and a coordinator begins it within a second.

        Runs with one `thread_id` share a state: each begins with what the one before has left, its input folded into that, and
        waits until that one has ended. With `if_busy="reject"`, ThreadBusyError is raised instead of waiting.

        Nodes find `context` in `ctx.context`.

        A run_id that is known with the same graph and input gives that run. Raises UnknownGraphError for a graph that no
        coordinator has loaded yet, StateError for an input that is no JSON object, RunExistsError, ConfigurationError,
        StoreUnavailableError. A field that the graph does not have fails the run when it begins.
        """
        run_id = checked_id("run_id", run_id) if run_id is not None else new_run_id()
        if thread_id is not None:
            checked_id("thread_id", thread_id)
        chosen = DEFAULTS.overridden(options).overridden(Options(context=context))
        data = encoded_input(values_of(input, "the input"), chosen)
        check_thread(self._store, graph, thread_id, run_id, if_busy)
        shard = shard_of(thread_id, None, run_id)
        new = NewRun(
            run_id=run_id,
            graph=graph,
            graph_hash=self._hash_of(graph),
            input=data,
            options=canonical_bytes(encode_options(chosen)),
            partition_id=self._partitions.of(shard),
            shard=shard,
            thread_id=thread_id,
            trace_context=current_traceparent(),
        )
        if connection is not None:
            check_same(self._store.submit_within(connection, new).row, graph, data)
            return Run(run_id, self, owner=self)  # Announced now, it might be looked for before it is there.
        [submitted] = self._store.submit([new])
        check_same(submitted.row, graph, data)
        self._announce(submitted.row)
        return Run(run_id, self, owner=self)

    async def asubmit(
        self,
        graph: str,
        input: Any,
        *,
        run_id: str | None = None,
        thread_id: str | None = None,
        options: Options | None = None,
    ) -> Run:
        """`submit` without blocking the event loop."""
        return await asyncio.to_thread(self.submit, graph, input, run_id=run_id, thread_id=thread_id, options=options)

    def _hash_of(self, graph: str) -> str:
        now = time.monotonic()
        if graph not in self._loaded or now - self._loaded_at > GRAPHS_FRESH_SECONDS:
            self._loaded, self._loaded_at = self._store.loaded_graphs(), now
        if graph not in self._loaded:
            # A subgraph's name is the one above it, a slash, and its node.
            known = sorted(name for name in self._loaded if name.rpartition("/")[0] not in self._loaded)
            there = f"there are {', '.join(known)}" if known else "there is none yet"
            raise UnknownGraphError(
                f"no coordinator has loaded a graph {graph!r}; {there}: start `lockstep coordinator --graphs MODULE:NAME`",
                graph=graph,
                known=known,
            )
        return self._loaded[graph]

    def _announce(self, row: RunRow) -> None:
        if self._announcer is not None:
            self._announcer.announce(row.partition_id)

    def run(self, run_id: str) -> Run:
        """The run with this id. Raises RunNotFoundError."""
        if not self._store.find_runs(run_ids=[run_id]):
            raise RunNotFoundError(f"no run {run_id!r}; `lockstep runs` lists those there are", run_id=run_id)
        return Run(run_id, self, owner=self)

    def runs(
        self, *, status: RunStatus | str | None = None, graph: str | None = None, thread_id: str | None = None
    ) -> Iterator[Run]:
        """All runs with this status, graph and thread, ascending by run_id; read in pages as they are asked for."""
        return runs_of(self, self, status, graph, thread_id)

    def delete(self, run_id: str) -> bool:
        """Remove a finished run and all that belongs to it; False: it is not there or not finished."""
        return delete_with_children(self._store, run_id)

    @property
    def reader(self) -> Reader:
        """The store."""
        return self._store

    def subscribe(self, run_id: str, wake: Callable[[], None], *, each_step: bool) -> Callable[[], None]:
        """Nothing announces changes to clients; who waits, looks."""
        return lambda: None

    def check(self, run_id: str) -> None:
        """Runs are moved by other processes: `explain` tells what keeps one from moving."""

    def send(self, command: Command) -> None:
        """Put a command into the inbox and wake the run's owner."""
        self._store.send(command)
        [row] = self._store.find_runs(run_ids=[command.run_id])
        self._announce(row)

    def schema_of(self, row: RunRow) -> Schema | None:
        """None: a client has no graph, so values stay as JSON has them."""
        return None

    def cause_of(self, run_id: str) -> BaseException | None:
        """None: nodes run in other processes."""
        return None

    def live(self, run_id: str) -> LiveReader:
        """What nodes of the run stream, by Redis. Raises ConfigurationError without it."""
        if self._redis_url is None:
            raise ConfigurationError(
                'mode "custom" comes over Redis; give redis_url, or set LOCKSTEP_REDIS_URL', option="redis_url"
            )
        return RedisLiveReader(self._redis_url, self._namespace, run_id)

    def begin(self, run: NewRun) -> RunRow:
        """Store a run, and wake who will own it."""
        [submitted] = self._store.submit([msgspec.structs.replace(run, partition_id=self._partitions.of(run.shard))])
        self._announce(submitted.row)
        return submitted.row

    def replay(self, row: RunRow) -> ReplayReport:
        """Refused: a client has no graph."""
        raise ConfigurationError(
            f"a client has no graph to replay run {row.run_id} with; use `lockstep replay {row.run_id} "
            f"--graphs MODULE:NAME`, or Engine(graph, store).run({row.run_id!r}).replay()",
            option="graph",
        )


class Partitions:
    """The partitions that cover all shards. They are made once and never change, so they are read once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._first_shards: list[int] = []
        self._ids: list[str] = []

    def of(self, shard: int) -> str:
        """The partition of a shard. The first coordinator makes them when it notes its graphs."""
        if not self._ids:
            ranges = sorted((first, name) for name, (first, _) in self._reader.partitions().items())
            self._first_shards, self._ids = [first for first, _ in ranges], [name for _, name in ranges]
        return self._ids[bisect.bisect(self._first_shards, shard) - 1]
