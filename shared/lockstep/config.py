"""Settings of the command line: flags first, then LOCKSTEP_* variables, then defaults. The only user of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import msgspec

from lockstep.errors import ConfigurationError

DEFAULT_STORE_URL = "sqlite:///lockstep.db"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
DEFAULT_NAMESPACE = "lockstep"
NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every command may need.

    `graphs` are MODULE:NAME references. `namespace` begins the name of every Redis key. `metrics_port` None is the role's own
    port, and 0 none at all. `sinks` are where relays publish events to, see `lockstep.sinks`.
    """

    store_url: str = DEFAULT_STORE_URL
    redis_url: str | None = None
    graphs: tuple[str, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    metrics_port: int | None = None
    sinks: tuple[str, ...] = ()
    webhook_secret: str | None = None


VARIABLES = {
    "LOCKSTEP_STORE_URL": "store_url",
    "LOCKSTEP_REDIS_URL": "redis_url",
    "LOCKSTEP_GRAPHS": "graphs",
    "LOCKSTEP_NAMESPACE": "namespace",
    "LOCKSTEP_METRICS_PORT": "metrics_port",
    "LOCKSTEP_SINKS": "sinks",
    "LOCKSTEP_WEBHOOK_SECRET": "webhook_secret",
}
"""The variables that are read, and the setting that each one gives."""


def masked(url: str) -> str:
    """The URL without its password, for people to see."""
    url = re.sub(r"(://[^:/@]*:)[^/]*@", r"\1***@", url)  # Up to the last @ before the path: it may be part of a password.
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url)


def read_settings(
    *,
    store: str | None = None,
    redis: str | None = None,
    graphs: Sequence[str] = (),
    sinks: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The settings: a flag that is given wins over its variable. `environment` replaces the process's, for tests.

    Raises ConfigurationError, naming the variable, for a value that cannot be.
    """
    env = os.environ if environment is None else environment
    return Settings(
        store_url=store or env.get("LOCKSTEP_STORE_URL") or DEFAULT_STORE_URL,
        redis_url=redis or env.get("LOCKSTEP_REDIS_URL") or None,
        graphs=tuple(graphs) or _listed(env.get("LOCKSTEP_GRAPHS", "")),
        namespace=checked_namespace(env.get("LOCKSTEP_NAMESPACE") or DEFAULT_NAMESPACE),
        metrics_port=_port(env.get("LOCKSTEP_METRICS_PORT") or None),
        sinks=tuple(sinks) or _listed(env.get("LOCKSTEP_SINKS", "")),
        webhook_secret=env.get("LOCKSTEP_WEBHOOK_SECRET") or None,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def checked_namespace(namespace: str) -> str:
    """The namespace. Raises ConfigurationError for one that cannot begin a key."""
    if not NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(f"LOCKSTEP_NAMESPACE={namespace!a} must be 1 to 64 of A-Z a-z 0-9 _ . -", option="namespace")
    return namespace


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise ConfigurationError(f"LOCKSTEP_METRICS_PORT={text!a} must be a port, or 0 for none", option="metrics_port")
    return int(text)


def set_rq_prefix(prefix: str) -> None:
    """Make RQ use keys that begin so. It reads this once, so it must not have been imported yet."""
    os.environ["RQ_KEY_PREFIX"] = prefix
