"""Implementations of the `Store` port, opened by URL."""

from __future__ import annotations

from lockstep.ports import Store


def open_store(url: str) -> Store:
    """The store at `url`: memory://, sqlite:///path, or postgresql+psycopg://...; its schema is brought up to date first.

    Raises ConfigurationError for a URL of another kind, StoreUnavailableError if the database does not answer or refuses.
    """
    if url == "memory://":
        from lockstep.store.memory import MemoryStore

        return MemoryStore()
    from lockstep.store.sql import SqlStore

    return SqlStore(url)
