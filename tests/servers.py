"""Servers of the tests' own: they may be stopped, flushed and killed without hurting anybody else's."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from lockstep.store import open_store
from lockstep.store.schema import metadata

POSTGRES = os.environ.get("LOCKSTEP_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
MYSQL = os.environ.get("LOCKSTEP_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/test")
"""Servers whose user may create databases."""

START_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """A Redis that keeps nothing on disk, so that stopping it is losing everything. `settings` are more of its arguments."""

    def __init__(self, *settings: str, password: str = "") -> None:
        self.port = free_port()
        self.url = f"redis://{':' + password + '@' if password else ''}127.0.0.1:{self.port}/0"
        self._settings = [*settings, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is needed: on Debian and Ubuntu, apt-get install redis-server"
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *self._settings]
        self._process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.exceptions.RedisError:
                    assert time.monotonic() < deadline, "redis-server does not start"
                    time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class PostgresServer:
    """A PostgreSQL of its own; `root` may not run one, so it runs as `postgres` then. `settings` are lines of its file."""

    def __init__(self, *settings: str) -> None:
        self._bin = _postgres_programs()
        self._data = tempfile.mkdtemp(prefix="lockstep-pg-")
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._data, "postgres")
            self._prefix = ["runuser", "-u", "postgres", "--"]
        self._call("initdb", "-A", "trust", "-U", "postgres", "-D", self._data)
        with Path(self._data, "postgresql.conf").open("a") as file:
            file.writelines(f"{setting}\n" for setting in settings)
        self.port = free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        # Not captured: what pg_ctl starts would hold the pipe open.
        subprocess.run(
            [*self._prefix, str(self._bin / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self._data}"
        self._call("pg_ctl", "-D", self._data, "-o", options, "-l", f"{self._data}/log", "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._call("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._data)


class MariaDBServer:
    """A MariaDB of its own; `root` may not run one, so it runs as `mysql` then. `settings` are more of its arguments."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings
        self._data = tempfile.mkdtemp(prefix="lockstep-mariadb-")
        self._user = "mysql" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._data, self._user)
        install = _program("mariadb-install-db", "mariadb-server")
        subprocess.run(
            [install, "--no-defaults", "--auth-root-authentication-method=normal", f"--datadir={self._data}"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
        )
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"mysql+pymysql://root@127.0.0.1:{self.port}/test"
        self.start()
        engine = sa.create_engine(self.url.removesuffix("test"), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4")

    def start(self) -> None:
        place = [f"--datadir={self._data}", f"--socket={self._data}/socket", f"--pid-file={self._data}/pid"]
        network = ["--bind-address=127.0.0.1", f"--port={self.port}"]
        self._process = subprocess.Popen(
            [_program("mariadbd", "mariadb-server"), "--no-defaults", *place, *network, *self._settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
        )
        deadline = time.monotonic() + START_SECONDS
        engine = sa.create_engine(self.url.removesuffix("test"), poolclass=sa.pool.NullPool)
        while True:
            try:
                engine.connect().close()
                return
            except sa.exc.OperationalError:
                assert time.monotonic() < deadline, "mariadbd does not start"
                time.sleep(0.05)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._data)


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    assert found, f"{name} is needed: on Debian and Ubuntu, apt-get install {package}"
    return found


def _postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = str(found[-1]) if found else shutil.which("initdb")
    assert program, "PostgreSQL's own programs are needed: on Debian and Ubuntu, apt-get install postgresql"
    return Path(program).parent


class Database:
    """A database of the tests' own on a server that runs anyway. A server that does not answer raises."""

    def __init__(self, server: str, name: str) -> None:
        url = sa.make_url(server)
        self._is_postgres = url.get_backend_name() == "postgresql"
        self._server = url.set(drivername="postgresql+psycopg" if self._is_postgres else "mysql+pymysql")
        self._name = name
        self._execute(f"CREATE DATABASE {name}")
        self.url = self._server.set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._server, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def drop(self) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {self._name}{' WITH (FORCE)' if self._is_postgres else ''}")


def empty_database_on(server: str) -> str:
    """The URL of this process's own database on a server, migrated and empty: each test of the process finds the same one."""
    url = _database_of_this_process(server)
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        for table in metadata.tables:
            # TRUNCATE makes new files, which takes a tenth of a second; there is never much to delete.
            connection.exec_driver_sql(f"DELETE FROM {table}")
    return url


@functools.cache
def _database_of_this_process(server: str) -> str:
    """The URL of a migrated database of this process's own; dropped when the process ends."""
    try:
        database = Database(server, f"lockstep_test_{os.getpid()}")
    except sa.exc.OperationalError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no server for the tests: set LOCKSTEP_TEST_POSTGRES_URL or LOCKSTEP_TEST_MYSQL_URL ({error.orig})")
    atexit.register(database.drop)
    open_store(database.url).close()
    return database.url
