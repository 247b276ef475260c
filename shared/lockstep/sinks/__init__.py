"""Implementations of the `Sink` port, opened by a text: `redis`, `log`, `webhook:URL` or `MODULE:OBJECT`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from lockstep.config import Settings
from lockstep.errors import ConfigurationError
from lockstep.ports import Sink

NAMED = re.compile(r"(?:([A-Za-z0-9._-]{1,64})=)?(.+)", re.DOTALL)
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:-]")
NAME_CHARACTERS = 64


def open_sinks(specs: Sequence[str], settings: Settings, load: Callable[[str], object]) -> list[Sink]:
    """The sinks that the texts describe, each `[NAME=]redis`, `log`, `webhook:URL` or `MODULE:OBJECT`, which `load` finds.

    Raises ConfigurationError for a text that is none of them, or for two of one name; then none is left open.
    """
    with ExitStack() as opened:
        sinks: list[Sink] = []
        for spec in specs:
            sink = open_sink(spec, settings, load)
            opened.enter_context(closing(sink))
            if sink.name in [other.name for other in sinks]:
                raise ConfigurationError(f"two sinks have the name {sink.name}; write NAME=... before one", option="sinks")
            sinks.append(sink)
        opened.pop_all()
        return sinks


def open_sink(spec: str, settings: Settings, load: Callable[[str], object]) -> Sink:
    """The sink that a text describes; see `open_sinks`. Nothing is connected yet."""
    named = NAMED.fullmatch(spec)
    if named is None:
        raise ConfigurationError("a sink is empty; use redis, log, webhook:URL or MODULE:OBJECT", option="sinks")
    name, what = named.groups()
    kind, _, rest = what.partition(":")
    if what == "redis":
        if settings.redis_url is None:
            raise ConfigurationError("the sink redis needs LOCKSTEP_REDIS_URL or --redis", option="redis")
        from lockstep.broker.stream import RedisStreamSink

        return RedisStreamSink(name or "redis", settings.redis_url, settings.namespace)
    if what == "log":
        from lockstep.sinks.local import LogSink

        return LogSink(name or "log")
    if kind == "webhook":
        from lockstep.sinks.webhook import WebhookSink

        return WebhookSink(name or "webhook", rest, settings.webhook_secret)
    if not kind or not rest:
        raise ConfigurationError(
            f"there is no sink {kind!r}; use redis, log, webhook:URL or MODULE:OBJECT, with NAME= before it if you like",
            option="sinks",
        )
    from lockstep.sinks.local import ObserverSink

    observer = load(what)
    if isinstance(observer, type) or not callable(getattr(observer, "observe", None)):
        raise ConfigurationError(f"{what} must be an object with a method observe(event): lockstep.Observer", option="sinks")
    return ObserverSink(name or NOT_IN_NAMES.sub("_", what)[-NAME_CHARACTERS:], observer)  # type: ignore[arg-type]
