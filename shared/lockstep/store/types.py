"""Column types that mean the same on every database.

Names compare by their bytes: a collation that ignores case would make two runs one. Canonical bytes and hashes are BYTEA or
BLOB: a JSON column would reorder keys.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, LargeBinary, String
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine


def _text(length: int, charset: str) -> TypeEngine[str]:
    exact = mysql.VARCHAR(length, charset=charset, collation=f"{charset}_bin")
    return String(length).with_variant(String(length, collation="C"), "postgresql").with_variant(exact, "mysql", "mariadb")


RUN_ID = _text(128, "ascii")
IDENTIFIER = _text(64, "ascii")
NAME = _text(255, "utf8mb4")
# MySQL's BLOB ends at 64 KiB, and only fixed-width binary columns can be keys there.
BYTES: TypeEngine[bytes] = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
HASH: TypeEngine[bytes] = LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
# SQLite counts rows by itself only in a column of type INTEGER.
NUMBER: TypeEngine[Any] = BigInteger().with_variant(Integer, "sqlite")
