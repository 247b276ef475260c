"""Settings of the command line: flags first, then LOCKSTEP_* variables, then defaults. The only user of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import msgspec

from lockstep.errors import ConfigurationError
from lockstep.records import Retention, Retentions

DEFAULT_STORE_URL = "sqlite:///lockstep.db"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
DEFAULT_NAMESPACE = "lockstep"
DEFAULT_RETENTION, DEFAULT_RETENTION_SECONDS = "30d", 30 * 86_400.0
"""How long coordinators keep finished runs. Longer than people look back at what went wrong; shorter than it takes most
databases to fill."""

MAX_KEYS = 2
"""The one that signs, and during a rotation the one before."""

MIN_KEY_CHARACTERS = 32

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every command may need.

    `graphs` are MODULE:NAME references. `namespace` begins the name of every Redis key. `metrics_port` None is the role's own
    port, and 0 none at all. `sinks` are where relays publish events to, see `lockstep.sinks`.
    `retention` is how long coordinators keep finished runs. `signing_keys` sign what goes over Redis: the first signs, all are
    accepted. `prices` is where the prices of models come from: MODULE:NAME, or a JSON file. `traces` says that OTEL_* names a
    collector; `callback_key` makes the tokens of links to answers.
    """

    store_url: str = DEFAULT_STORE_URL
    redis_url: str | None = None
    graphs: tuple[str, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    metrics_port: int | None = None
    sinks: tuple[str, ...] = ()
    webhook_secret: str | None = None
    retention: Retentions = Retentions(Retention(max_age_seconds=DEFAULT_RETENTION_SECONDS))
    signing_keys: tuple[str, ...] = ()
    prices: str | None = None
    traces: bool = False
    callback_key: str | None = None

    def __repr__(self) -> str:
        """Without secrets: this may end in a log."""
        hidden = {name: "***" for name in ("webhook_secret", "signing_keys", "callback_key") if getattr(self, name)}
        urls = {"store_url": masked(self.store_url), "redis_url": masked(self.redis_url or "")}
        shown = {**msgspec.structs.asdict(self), **urls, **hidden, "sinks": tuple(map(masked, self.sinks))}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


VARIABLES = {
    "LOCKSTEP_STORE_URL": "store_url",
    "LOCKSTEP_REDIS_URL": "redis_url",
    "LOCKSTEP_GRAPHS": "graphs",
    "LOCKSTEP_NAMESPACE": "namespace",
    "LOCKSTEP_METRICS_PORT": "metrics_port",
    "LOCKSTEP_SINKS": "sinks",
    "LOCKSTEP_WEBHOOK_SECRET": "webhook_secret",
    "LOCKSTEP_RETENTION": "retention",
    "LOCKSTEP_SIGNING_KEY": "signing_keys",
    "LOCKSTEP_PRICES": "prices",
    "LOCKSTEP_CALLBACK_KEY": "callback_key",
}
"""The variables that are read, and the setting that each one gives."""

COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The standard's variables that say where spans go; if one is set, they do."""


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
    retention: str | None = None,
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
        signing_keys=_signing_keys(env.get("LOCKSTEP_SIGNING_KEY", "")),
        prices=env.get("LOCKSTEP_PRICES") or None,
        callback_key=env.get("LOCKSTEP_CALLBACK_KEY") or None,
        traces=any(env.get(name) for name in COLLECTORS) and env.get("OTEL_SDK_DISABLED", "").lower() != "true",
        retention=retentions_of(retention or env.get("LOCKSTEP_RETENTION") or DEFAULT_RETENTION),
    )


def _signing_keys(text: str) -> tuple[str, ...]:
    """One key, or two during a rotation. What is said of them does not show them."""
    keys = _listed(text)
    if len(keys) > MAX_KEYS or any(len(key) < MIN_KEY_CHARACTERS for key in keys):
        raise ConfigurationError(
            f"LOCKSTEP_SIGNING_KEY must be one key of {MIN_KEY_CHARACTERS} characters or more, or NEW,OLD during a rotation; "
            "make one with: openssl rand -hex 32",
            option="signing_keys",
        )
    return keys


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def checked_namespace(namespace: str) -> str:
    """The namespace. Raises ConfigurationError for one that cannot begin a key."""
    if not NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(f"LOCKSTEP_NAMESPACE={namespace!a} must be 1 to 64 of A-Z a-z 0-9 _ . -", option="namespace")
    return namespace


def retentions_of(text: str) -> Retentions:
    """What `AGE[/COUNT][,GRAPH=AGE[/COUNT]...]` says, such as `30d/100000,audit=7d`; `off` in place of an age keeps all.

    Raises ConfigurationError for anything else.
    """
    default, by_graph = Retention(), {}
    for part in _listed(text):
        graph, _, rule = part.rpartition("=")
        age, _, count = rule.partition("/")
        if count and not (count.isascii() and count.isdigit()):
            raise ConfigurationError(f"LOCKSTEP_RETENTION: {count!a} in {part!a} must be a number of runs", option="retention")
        seconds = None if age == "off" else duration_of(age, "LOCKSTEP_RETENTION")
        retention = Retention(max_age_seconds=seconds, max_runs=int(count) if count else None)
        if graph:
            by_graph[graph] = retention
        else:
            default = retention
    return Retentions(default, by_graph)


def duration_of(text: str, option: str) -> float:
    """The seconds in a text such as 90s, 15m, 12h or 30d. Raises ConfigurationError, naming the option."""
    number, unit = text[:-1], text[-1:]
    if unit not in SECONDS or not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise ConfigurationError(f"{option}: {text!a} must be a time such as 90s, 15m, 12h or 30d", option=option)
    return float(int(number) * SECONDS[unit])


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise ConfigurationError(f"LOCKSTEP_METRICS_PORT={text!a} must be a port, or 0 for none", option="metrics_port")
    return int(text)


def environment_without_settings() -> dict[str, str]:
    """The process's variables but for LOCKSTEP_*: for processes that execute users' code and need no secrets of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}


def set_rq_prefix(prefix: str) -> None:
    """Make RQ use keys that begin so. It reads this once, so it must not have been imported yet."""
    os.environ["RQ_KEY_PREFIX"] = prefix
