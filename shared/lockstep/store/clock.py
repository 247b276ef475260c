"""The database's clock: the one by which leases end and rows are dated."""

from __future__ import annotations

from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement


class now_ms(ColumnElement[int]):
    """Milliseconds since 1970 by the database's clock."""

    type = sa.BigInteger()
    inherit_cache = True
    # Without parts of its own, said so: else each statement that has it would be compiled at every call, which takes 3 ms.
    _traverse_internals: ClassVar[list[Any]] = []  # type: ignore[misc]


@compiles(now_ms, "sqlite")
def _on_sqlite(element: now_ms, compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _on_postgresql(element: now_ms, compiler: Any, **_: Any) -> str:
    # Not now(): that is when the transaction began, and a lease may have ended while it waited for a lock.
    return "(extract(epoch from clock_timestamp()) * 1000)::bigint"


@compiles(now_ms, "mysql", "mariadb")
def _on_mysql(element: now_ms, compiler: Any, **_: Any) -> str:
    # Not now(): that is when the statement began, and a lease may have ended while it waited for a lock.
    return "CAST(unix_timestamp(sysdate(3)) * 1000 AS SIGNED)"


def prolonged(column: sa.Column[int], milliseconds: Any) -> sa.Case[int]:
    """The end of a lease that holds for this long from now; never earlier than it was."""
    until = now_ms() + milliseconds
    return sa.case((column > until, column), else_=until)
