"""The connection to Redis: bounded waits, nothing repeated behind our back, one kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from lockstep.config import masked
from lockstep.errors import BrokerUnavailableError, ConfigurationError, LockstepError

CONNECT_TIMEOUT_SECONDS = 3.0
ANSWER_TIMEOUT_SECONDS = 5.0
"""How long a command may take; longer than any wait that we ask the server for."""


def connect(url: str) -> redis.Redis:
    """A client of the Redis at `url`; nothing is connected yet. Raises ConfigurationError for a URL that is none.

    It does not repeat a command whose answer was lost: a task could be enqueued twice. Callers know what may be repeated.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=ANSWER_TIMEOUT_SECONDS,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError:
        scheme = url.split(":", 1)[0]
        raise ConfigurationError(
            f"the Redis URL {scheme}:... cannot be read; use redis://host:port/db or rediss://...", option="redis"
        ) from None


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Errors of Redis as BrokerUnavailableError, which names the URL without its password."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise BrokerUnavailableError(
            f"Redis at {masked(url)} does not work: {error}; check that it runs and answers there", url=masked(url)
        ) from error


def check_server(client: redis.Redis, url: str) -> None:
    """Make sure that the server can be used, or close the client. Raises BrokerUnavailableError if it does not answer,
    ConfigurationError if it would throw away our keys, or spreads them over a cluster.
    """
    try:
        _check_server(client, url)
    except LockstepError:
        client.close()
        raise


def _check_server(client: redis.Redis, url: str) -> None:
    with translated(url):
        mode = str(client.info("server").get("redis_mode", "standalone"))
        try:
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
        except ResponseError:
            policy = "noeviction"  # A hosted server that hides its configuration; its owner has to know.
    if mode == "cluster":
        raise ConfigurationError(
            f"Redis at {masked(url)} is a cluster, which cannot run our scripts over several keys; use a single server",
            option="redis",
        )
    if policy != "noeviction":
        raise ConfigurationError(
            f"Redis at {masked(url)} has maxmemory-policy {policy}, so it may drop tasks; set it to noeviction", option="redis"
        )
