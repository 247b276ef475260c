"""Runs by the run that they come from, and by their thread, so that forks and the runs before in a thread are found."""

from __future__ import annotations

from lockstep.store.migrations.once import create_index

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what processes of the release before need not know."""
    create_index("runs_by_parent", "runs", ["parent_run_id"])
    create_index("runs_of_thread_by_age", "runs", ["thread_id", "created_at"])
