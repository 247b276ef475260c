"""Sinks and what they have not got yet; runs by age, so that retention finds the old ones."""

from __future__ import annotations

import sqlalchemy as sa

from lockstep.store.migrations.once import create_index, create_table
from lockstep.store.types import BYTES, IDENTIFIER, RUN_ID

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what processes of the release before neither read nor write: they go on beside this one."""
    create_table(
        "sinks",
        sa.Column("name", IDENTIFIER, nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        comment="Where events go: each commit of events leaves a row in undelivered for every sink.",
    )
    create_table(
        "undelivered",
        sa.Column("sink", IDENTIFIER, nullable=False),
        sa.Column("run_id", RUN_ID, nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("next_sequence", sa.BigInteger(), nullable=False),
        sa.Column("next_position", sa.Integer(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("relay_id", IDENTIFIER, nullable=True),
        sa.Column("free_at", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("parked", sa.Integer(), nullable=False),
        sa.Column("error", BYTES, nullable=True),
        sa.PrimaryKeyConstraint("sink", "run_id"),
        comment="What a sink has not got yet: one row for each run of which events wait. Without a row, it has them all.",
    )
    create_index("undelivered_by_age", "undelivered", ["sink", "parked", "since"])
    create_index("undelivered_by_run", "undelivered", ["run_id"])
    create_index("runs_by_age", "runs", ["created_at"])
    create_index("runs_of_graph_by_age", "runs", ["graph", "created_at"])
