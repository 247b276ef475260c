"""What migrations do, done once: a database whose changes of tables commit one by one may have died between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op


def create_table(name: str, *parts: Any, **options: Any) -> None:
    """Create a table, unless it is there."""
    op.create_table(name, *parts, if_not_exists=True, **options)


def create_index(name: str, table: str, columns: Sequence[str]) -> None:
    """Create an index, unless it is there. MySQL has no words for that."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, list(columns))
