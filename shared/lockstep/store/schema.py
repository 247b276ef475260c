"""The tables. What is changed here is changed by a numbered migration too; a test holds the two together.

Times are milliseconds since 1970. There are no foreign keys: each check would lock the run's row against its own owner, and all
rows of a run are written by one transaction anyway.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, UniqueConstraint, bindparam

from lockstep.store.types import BYTES, HASH, IDENTIFIER, NAME, NUMBER, RUN_ID

metadata = MetaData()

leases = Table(
    "leases",
    metadata,
    Column("lease_id", IDENTIFIER, primary_key=True),
    Column("holder", NAME, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("last_commit_id", BigInteger, nullable=False),
    comment="The right to write: one row per coordinator incarnation, renewed by its transactions. No row, no right.",
)

partitions = Table(
    "partitions",
    metadata,
    Column("partition_id", IDENTIFIER, primary_key=True),
    Column("lease_id", IDENTIFIER),
    Column("epoch", BigInteger, nullable=False),
    Column("first_shard", Integer),
    Column("last_shard", Integer),
    comment="A set of runs with one owner. An embedded engine's has no shards: only its own runs point to it.",
)

graphs = Table(
    "graphs",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("graph_hash", IDENTIFIER, primary_key=True),
    Column("loaded_at", BigInteger, nullable=False),
    comment="The graphs that coordinators have loaded: a client submits by name, and gets the version loaded last.",
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("graph", NAME, nullable=False),
    Column("graph_hash", IDENTIFIER, nullable=False),
    Column("status", IDENTIFIER, nullable=False),
    Column("step_id", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("input", BYTES, nullable=False),
    Column("options", BYTES, nullable=False),
    Column("state_hash", HASH),
    Column("error", BYTES),
    Column("partition_id", IDENTIFIER, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("thread_id", RUN_ID),
    Column("parent_run_id", RUN_ID),
    Column("trace_context", NAME),
    Column("format_version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    # Of what never changes: an index of what steps change would make each step dearer.
    Index("runs_by_age", "created_at"),
    Index("runs_of_graph_by_age", "graph", "created_at"),
    Index("runs_by_parent", "parent_run_id"),
    Index("runs_of_thread_by_age", "thread_id", "created_at"),
    comment="One row per run, and where it stands.",
)

unfinished = Table(
    "unfinished",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("partition_id", IDENTIFIER, nullable=False),
    Column("graph_hash", IDENTIFIER, nullable=False),
    Column("pending", Integer, nullable=False),
    Index("unfinished_by_partition", "partition_id", "pending"),
    comment="The runs that still need an owner: sweeps read this small table, however many runs have finished.",
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("step_id", BigInteger, primary_key=True, autoincrement=False),
    Column("idempotency_key", HASH, nullable=False),
    Column("state_hash", HASH, nullable=False),
    Column("patch", BYTES, nullable=False),
    Column("frontier", BYTES, nullable=False),
    Column("committed_at", BigInteger, nullable=False),
    UniqueConstraint("idempotency_key", name="one_commit_per_key"),
    comment="The commits of a run: the patch that step_id made, and the frontier it left.",
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("step_id", BigInteger, primary_key=True, autoincrement=False),
    Column("state", BYTES, nullable=False),
    comment="Whole states, so that reading one takes few patches.",
)

journal = Table(
    "journal",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("path", HASH, primary_key=True),
    Column("kind", IDENTIFIER, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("step_id", BigInteger, nullable=False),
    Column("payload", BYTES, nullable=False),
    Column("meta", BYTES, nullable=False),
    comment="What happened to each work item: its outcome once, its failures one by one.",
)

outbox = Table(
    "outbox",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("step_id", BigInteger, nullable=False),
    Column("node_id", NAME, nullable=False),
    Column("type", NAME, nullable=False),
    Column("data", BYTES, nullable=False),
    comment="Events that nodes emitted, stored with the step they belong to.",
)

sinks = Table(
    "sinks",
    metadata,
    Column("name", IDENTIFIER, primary_key=True),
    Column("added_at", BigInteger, nullable=False),
    comment="Where events go: each commit of events leaves a row in undelivered for every sink.",
)

undelivered = Table(
    "undelivered",
    metadata,
    Column("sink", IDENTIFIER, primary_key=True),
    Column("run_id", RUN_ID, primary_key=True),
    Column("since", BigInteger, nullable=False),
    Column("next_sequence", BigInteger, nullable=False),
    Column("next_position", Integer, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("relay_id", IDENTIFIER),
    Column("free_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("parked", Integer, nullable=False),
    Column("error", BYTES),
    Index("undelivered_by_age", "sink", "parked", "since"),
    Index("undelivered_by_run", "run_id"),
    comment="What a sink has not got yet: one row for each run of which events wait. Without a row, it has them all.",
)

inbox = Table(
    "inbox",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("run_id", RUN_ID, nullable=False),
    Column("command_id", IDENTIFIER, nullable=False),
    Column("kind", IDENTIFIER, nullable=False),
    Column("payload", BYTES, nullable=False),
    Column("consumed", Integer, nullable=False),
    UniqueConstraint("command_id", name="one_command_per_id"),
    Index("inbox_by_run", "run_id", "consumed"),
    comment="Requests to a run's owner. Consumed rows stay, so that a command sent twice is carried out once.",
)

OF_A_RUN = (steps, snapshots, journal, outbox, undelivered, inbox, unfinished, runs)
"""The tables that hold a run, each with its run_id."""


def bound(table: Table, **expressions: Any) -> dict[str, Any]:
    """All columns of a table as parameters, but for those given as expressions."""
    return {column.name: expressions.get(column.name, bindparam(column.name)) for column in table.columns}
