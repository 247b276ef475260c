"""Implementations of the `Store` port, opened by URL."""

from __future__ import annotations

from lockstep.errors import ConfigurationError
from lockstep.ports import Store


def open_store(url: str) -> Store:
    """The store at `url`: memory://, or sqlite:///path; its schema is brought up to date first.

    Raises ConfigurationError for a URL of another kind, StoreUnavailableError if the database does not answer or refuses.
    """
    if url == "memory://":
        from lockstep.store.memory import MemoryStore

        return MemoryStore()
    if url.startswith("sqlite:"):
        from lockstep.store.sql import SqlStore

        return SqlStore(url)
    raise ConfigurationError(f"no store answers to {url.split(':')[0]}:...; use memory:// or sqlite:///path", option="store")
