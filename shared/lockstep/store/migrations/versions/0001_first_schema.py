"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa

from lockstep.store.migrations.once import create_index, create_table
from lockstep.store.types import BYTES, HASH, IDENTIFIER, NAME, NUMBER, RUN_ID

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    create_table(
        "graphs",
        sa.Column("name", NAME, nullable=False),
        sa.Column("graph_hash", IDENTIFIER, nullable=False),
        sa.Column("loaded_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "graph_hash"),
        comment="The graphs that coordinators have loaded: a client submits by name, and gets the version loaded last.",
    )
    create_table(
        "inbox",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("command_id", IDENTIFIER, nullable=False),
        sa.Column("kind", IDENTIFIER, nullable=False),
        sa.Column("payload", BYTES, nullable=False),
        sa.Column("consumed", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("command_id", name="one_command_per_id"),
        comment="Requests to a run's owner. Consumed rows stay, so that a command sent twice is carried out once.",
    )
    create_index("inbox_by_run", "inbox", ["run_id", "consumed"])
    create_table(
        "journal",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("path", HASH, nullable=False),
        sa.Column("kind", IDENTIFIER, nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("payload", BYTES, nullable=False),
        sa.Column("meta", BYTES, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "path", "kind", "n"),
        comment="What happened to each work item: its outcome once, its failures one by one.",
    )
    create_table(
        "leases",
        sa.Column("lease_id", IDENTIFIER, nullable=False),
        sa.Column("holder", NAME, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("last_commit_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("lease_id"),
        comment="The right to write: one row per coordinator incarnation, renewed by its transactions. No row, no right.",
    )
    create_table(
        "outbox",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("node_id", NAME, nullable=False),
        sa.Column("type", NAME, nullable=False),
        sa.Column("data", BYTES, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "sequence", "position"),
        comment="Events that nodes emitted, stored with the step they belong to.",
    )
    create_table(
        "partitions",
        sa.Column("partition_id", IDENTIFIER, nullable=False),
        sa.Column("lease_id", IDENTIFIER, nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("first_shard", sa.Integer(), nullable=True),
        sa.Column("last_shard", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("partition_id"),
        comment="A set of runs with one owner. An embedded engine's has no shards: only its own runs point to it.",
    )
    create_table(
        "runs",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("graph", NAME, nullable=False),
        sa.Column("graph_hash", IDENTIFIER, nullable=False),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("input", BYTES, nullable=False),
        sa.Column("options", BYTES, nullable=False),
        sa.Column("state_hash", HASH, nullable=True),
        sa.Column("error", BYTES, nullable=True),
        sa.Column("partition_id", IDENTIFIER, nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("thread_id", RUN_ID, nullable=True),
        sa.Column("parent_run_id", RUN_ID, nullable=True),
        sa.Column("trace_context", NAME, nullable=True),
        sa.Column("format_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        comment="One row per run, and where it stands.",
    )
    create_table(
        "snapshots",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("step_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", BYTES, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step_id"),
        comment="Whole states, so that reading one takes few patches.",
    )
    create_table(
        "steps",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("step_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("idempotency_key", HASH, nullable=False),
        sa.Column("state_hash", HASH, nullable=False),
        sa.Column("patch", BYTES, nullable=False),
        sa.Column("frontier", BYTES, nullable=False),
        sa.Column("committed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step_id"),
        sa.UniqueConstraint("idempotency_key", name="one_commit_per_key"),
        comment="The commits of a run: the patch that step_id made, and the frontier it left.",
    )
    create_table(
        "unfinished",
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("partition_id", IDENTIFIER, nullable=False),
        sa.Column("graph_hash", IDENTIFIER, nullable=False),
        sa.Column("pending", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        comment="The runs that still need an owner: sweeps read this small table, however many runs have finished.",
    )
    create_index("unfinished_by_partition", "unfinished", ["partition_id", "pending"])
