"""Implementations of the `Store` port, opened by URL."""

from __future__ import annotations

from lockstep.ports import Store


def open_store(url: str, *, create: bool = True) -> Store:
    """The store at `url`: memory://, sqlite:///path, postgresql+psycopg://... or mysql+pymysql://...

    Its schema is brought up to date first.

    With create=False, for those who only read, a SQLite file that does not exist is not made: that is a ConfigurationError.

    Raises ConfigurationError for a URL of another kind, StoreUnavailableError if the database does not answer or refuses.
    """
    if url == "memory://":
        from lockstep.store.memory import MemoryStore

        return MemoryStore()
    from lockstep.store.sql import SqlStore

    return SqlStore(url, create=create)
