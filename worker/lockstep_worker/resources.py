"""What the nodes of one process share: clients and pools, opened when first needed, closed when the process stops."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from lockstep.compiled import OpenResources
from lockstep.errors import ConfigurationError


class Resources:
    """Of graphs whose `resources` is a context manager; threads share them."""

    def __init__(self) -> None:
        self._managers: list[AbstractContextManager[Any]] = []
        self._opened: dict[OpenResources, Any] = {}
        self._lock = threading.Lock()

    def get(self, opens: OpenResources) -> Any:
        """What it has opened; it is called once, unless it raises: then again the next time."""
        with self._lock:
            if opens not in self._opened:
                manager = opens()
                if not hasattr(manager, "__enter__"):
                    raise ConfigurationError(
                        f"resources= gave a {type(manager).__name__}, which is no context manager; for an async one, give a "
                        f"function under contextlib.asynccontextmanager",
                        option="resources",
                    )
                self._opened[opens] = manager.__enter__()
                self._managers.append(manager)
            return self._opened[opens]

    def close(self) -> None:
        """Close all, the last one first. Raises what they raise, in a group, when all are closed."""
        errors = []
        with self._lock:
            self._opened.clear()
            while self._managers:
                try:
                    self._managers.pop().__exit__(None, None, None)
                except Exception as error:
                    errors.append(error)
        if errors:
            raise ExceptionGroup("resources could not be closed", errors)


class LoopResources:
    """Of graphs whose `resources` is an async context manager, on one event loop."""

    def __init__(self) -> None:
        self._managers: list[AbstractAsyncContextManager[Any]] = []
        self._opened: dict[OpenResources, asyncio.Future[Any]] = {}

    async def get(self, opens: OpenResources) -> Any:
        """What it has opened; several that ask at the same time wait for the one opening."""
        opening = self._opened.get(opens)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._opened[opens] = asyncio.ensure_future(self._open(opens()))
        # A node that is cancelled meanwhile does not take it from the others.
        return await asyncio.shield(opening)

    async def _open(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        opened = await manager.__aenter__()
        self._managers.append(manager)
        return opened

    async def close(self) -> None:
        """Close all, the last one first. Raises what they raise, in a group, when all are closed."""
        errors = []
        self._opened.clear()
        while self._managers:
            try:
                await self._managers.pop().__aexit__(None, None, None)
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("resources could not be closed", errors)


def is_async_manager(opens: OpenResources) -> bool:
    """Whether it makes an async context manager; without calling it."""
    made_by = inspect.unwrap(opens)
    if isinstance(made_by, type):
        return hasattr(made_by, "__aenter__") and not hasattr(made_by, "__enter__")
    return inspect.isasyncgenfunction(made_by)


def none_for(node_id: str, why: str) -> Callable[[], Any]:
    """For nodes that get no resources: says so when they ask."""

    def ask() -> Any:
        raise ConfigurationError(f"node {node_id!r} has no ctx.resources: {why}", option="resources")

    return ask
