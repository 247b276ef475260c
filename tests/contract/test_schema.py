"""The schema: migrations that lead to what the code expects, by whoever comes first; and plain words where that cannot be."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import lockstep.store.migrations.versions
from lockstep.errors import ConfigurationError, LockstepError, StoreUnavailableError
from lockstep.store import open_store
from lockstep.store.migrate import HEAD
from lockstep.store.schema import metadata
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import Adapter, World

PROCESSES = 4

OPEN_TOGETHER = """
import sys, alembic.command
from lockstep.store import open_store

print("ready", flush=True)
sys.stdin.readline()
store = open_store(sys.argv[1])
store.open_lease(sys.argv[2], "holder", 60.0)
store.close()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lockstep.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


def definitions(engine: sa.Engine) -> dict[str, str]:
    """The statement that made each table and index, without the spaces and the order in which constraints were written."""
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"))
        return {
            name: " ".join(sorted(sql.replace(",", " , ").replace("(", " ( ").replace(")", " ) ").split()))
            for name, sql in rows
        }


def test_the_migrations_lead_to_the_schema_of_the_code(sql_adapter: Adapter, world: World) -> None:
    # given a database that was migrated from nothing
    engine = cast("SqlStore", world.a)._access.database.engine

    # when Alembic looks for what a further migration would have to change
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    # then there is nothing
    assert differences == []


def test_the_migrations_make_the_tables_of_the_code_to_the_letter(url: str, tmp_path: Path) -> None:
    # given a file that was migrated from nothing, and one that was made from the code
    open_store(url).close()
    migrated, made = sa.create_engine(url), sa.create_engine(f"sqlite:///{tmp_path}/made.db")
    metadata.create_all(made)

    # when their definitions are compared, then they also agree in what Alembic does not look at, such as WITHOUT ROWID
    found = definitions(migrated)
    assert found.pop("alembic_version")
    assert found == definitions(made)
    migrated.dispose()
    made.dispose()


def test_the_newest_migration_is_the_one_that_the_code_asks_for() -> None:
    # given the migrations, as Alembic chains them and as files
    config = Config()
    config.set_main_option("script_location", "lockstep.store:migrations")
    scripts = ScriptDirectory.from_config(config)
    [folder] = lockstep.store.migrations.versions.__path__
    numbers = sorted(file.name.partition("_")[0] for file in Path(folder).glob("[0-9]*.py"))

    # then there is one chain, each file is named after its place in it, and HEAD is its end
    assert scripts.get_heads() == [HEAD]
    assert sorted(script.revision for script in scripts.walk_revisions()) == numbers
    assert numbers == [f"{n:04}" for n in range(1, len(numbers) + 1)]
    assert numbers[-1] == HEAD


def test_processes_that_open_a_new_file_at_once_all_get_a_store(file: Path, url: str) -> None:
    # given processes that wait at the door of a file that is not there
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_TOGETHER, url, f"lease-{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert not file.exists()

    # when they are let in together
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=100), process.returncode) for process in processes]

    # then each has opened the one store
    assert ends == [(("", ""), 0)] * PROCESSES
    store = open_store(url)
    assert [store.renew_lease(f"lease-{n}", 60.0) for n in range(PROCESSES)] == [True] * PROCESSES
    store.close()


def test_opening_a_database_again_changes_nothing(file: Path, url: str) -> None:
    open_store(url).close()
    before = file.read_bytes()

    open_store(url).close()

    assert file.read_bytes() == before


def test_a_database_of_a_newer_release_is_refused(url: str) -> None:
    # given a database that a newer release has migrated further
    open_store(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    # when this release opens it
    with pytest.raises(ConfigurationError, match=r"9999.*upgrade") as caught:
        open_store(url)

    # then it says which is which, and has not touched it
    assert HEAD in str(caught.value)
    assert caught.value.option == "store"
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


# Databases that cannot be opened.


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="folder exists") as caught:
        open_store(f"sqlite:///{tmp_path}/nowhere/lockstep.db")

    assert f"{tmp_path}/nowhere/lockstep.db" in str(caught.value)
    assert caught.value.url == f"sqlite:///{tmp_path}/nowhere/lockstep.db"


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=str(tmp_path)):
        open_store(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_file_that_is_no_database_is_named_and_left_alone(file: Path, url: str, size: int) -> None:
    file.write_bytes(b"These are my notes. " * (size // 20))

    with pytest.raises(StoreUnavailableError, match=r"not a database") as caught:
        open_store(url)

    assert str(file) in str(caught.value)
    assert file.read_bytes() == b"These are my notes. " * (size // 20)


def test_a_database_that_may_only_be_read_is_named(file: Path, url: str) -> None:
    # given a database that is opened for reading only; rights of files would not stop a test that runs as root
    open_store(url).close()
    store = open_store(f"sqlite:///file:{file}?mode=ro&uri=true")

    # when something is written
    with pytest.raises(StoreUnavailableError, match="readonly") as caught:
        store.open_lease("A", "holder", 60.0)

    # then the error says where
    assert str(file) in str(caught.value)
    store.close()


# URLs, and what must not be said about them.


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"memory://") as caught:
        open_store(url)

    assert caught.value.option == "store"


@pytest.mark.parametrize(
    "url", ["", "nonsense", "memory:", "mongodb://localhost/runs", "sqlite+nonsense:///x.db", "sqlite:x.db"]
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///path") as caught:
        open_store(url)

    assert caught.value.option == "store"


PASSWORD = "open" + "sesame"
"""In two parts: a traceback shows lines of this file."""


@pytest.mark.filterwarnings("ignore:Query string argument")
@pytest.mark.parametrize(
    "url",
    [
        "sqlite://user:{0}@host",
        "sqlite://user:{0}@host/lockstep.db",
        "sqlite://user:{0}@host:port/lockstep.db",
        "sqlite:///{1}/nowhere/lockstep.db?password={0}",
        "sqlite:///{1}/lockstep.db?timeout={0}",
        "sqlite:user:{0}@host",
        "mongodb://user:{0}@localhost/runs",
        "mongodb://user:{0}@localhost:port/runs",
        "oracle+oracledb://user:{0}@localhost/runs",
        "postgresql://user:{0}@127.0.0.1:1/runs",
        "postgresql://user:{0}@127.0.0.1:port/runs",
        "postgresql://127.0.0.1:1/runs?user=user&password={0}",
    ],
)
def test_a_password_is_never_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(LockstepError) as caught:
        open_store(url.format(PASSWORD, tmp_path))

    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value.to_record())
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_slash_in_a_password_does_not_show_its_beginning() -> None:
    # given a URL that takes the first part of a password for a port, since its author did not quote the slash
    with pytest.raises(ConfigurationError) as caught:
        open_store(f"sqlite://user:{PASSWORD}/more@host/lockstep.db")

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
