"""PostgreSQL and Redis: each measurement has a database and a namespace of its own, and both are removed after it."""

import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from redis import Redis
from redis.exceptions import RedisError

CONNECT_TIMEOUT_SECONDS = 5
LEAVE_SECONDS = 10
"""How long connections may take to end after the process that made them."""


@dataclass
class Database:
    """A database of one measurement. `counts` is filled when it is left: what PostgreSQL has counted over its whole life."""

    url: str
    counts: dict[str, int] = field(default_factory=dict)


class Services:
    """Where the servers are. `postgres` is the URL of a database from which others may be created.

    `redis_neighbours` is how many connections of others Redis had at most before a measurement: it counts commands for all.
    """

    def __init__(self, postgres: str, redis: str) -> None:
        # SQLAlchemy's URLs may name a driver, which libpq does not know.
        self._postgres = urlsplit(postgres)._replace(scheme="postgresql").geturl()
        self.redis_url = redis
        self.redis_neighbours = 0

    def missing(self) -> dict[str, str]:
        """The servers that do not answer, and what they say."""
        missing = {}
        try:
            self._admin().close()
        except psycopg.Error as error:
            missing["postgres"] = str(error)
        try:
            Redis.from_url(self.redis_url).ping()
        except RedisError as error:
            missing["redis"] = str(error)
        return missing

    def describe(self, needs: Collection[str]) -> dict[str, str]:
        """The versions of these servers, and their settings that decide what survives a power cut."""
        described = {}
        if "postgres" in needs:
            with self._admin() as admin:
                shown = [_one(admin, f"SHOW {name}")[0] for name in ("server_version", "fsync", "synchronous_commit")]
            described["PostgreSQL"] = f"{shown[0].split()[0]} (fsync={shown[1]}, synchronous_commit={shown[2]})"
        if "redis" in needs:
            with Redis.from_url(self.redis_url) as redis:
                version, appendonly = redis.info("server")["redis_version"], redis.config_get("appendonly")["appendonly"]
            described["Redis"] = f"{version} (appendonly={appendonly})"
        return described

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A new database, dropped at the end."""
        name = f"lockstep_bench_{uuid.uuid4().hex[:12]}"
        database = Database(urlsplit(self._postgres)._replace(path=f"/{name}").geturl())
        with self._admin() as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                yield database
                database.counts = self._counts(admin, name, database.url)
            finally:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """The beginning of the names of all keys; those that are left at the end are deleted."""
        name = f"lockstep-bench-{uuid.uuid4().hex[:12]}"
        with Redis.from_url(self.redis_url) as redis:
            self.redis_neighbours = max(self.redis_neighbours, redis.info("clients")["connected_clients"] - 1)
            try:
                yield name
            finally:
                for key in redis.scan_iter(f"{name}*", count=1000):
                    redis.unlink(key)

    def _admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._postgres, autocommit=True, connect_timeout=CONNECT_TIMEOUT_SECONDS)

    def _counts(self, admin: psycopg.Connection[Any], name: str, url: str) -> dict[str, int]:
        """Transactions that ended in the database, by commit or rollback, and, where pg_stat_statements is loaded, statements.

        A connection tells its figures when it ends, at the latest; so all must have ended.
        """
        deadline = time.monotonic() + LEAVE_SECONDS
        while _one(admin, "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", name)[0] and time.monotonic() < deadline:
            time.sleep(0.05)
        counts = {}
        sums = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
        counts["transactions"] = int(_one(admin, sums, name)[0])
        if "pg_stat_statements" in _one(admin, "SHOW shared_preload_libraries")[0]:
            # The library counts without it, but only its extension shows the figures.
            with psycopg.connect(url, autocommit=True) as own:
                own.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
                sums = "SELECT sum(calls) FROM pg_stat_statements JOIN pg_database ON oid = dbid WHERE datname = %s"
                counts["statements"] = int(_one(own, sums, name)[0])
        return counts


def _one(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row
