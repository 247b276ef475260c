"""Submitting within the caller's transaction: the run is there if and only if what else the caller wrote is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from lockstep.errors import ConfigurationError, StoreUnavailableError
from lockstep.records import Submitted
from lockstep.store import open_store
from lockstep.store.sql import SqlStore

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.usefixtures("sql_adapter")  # The reference model has no transactions, see the last test.

orders = sa.Table("orders", sa.MetaData(), sa.Column("number", sa.Integer, primary_key=True, autoincrement=False))


def url_of(world: World) -> sa.URL:
    return cast("SqlStore", world.a)._access.database.engine.url


@pytest.fixture
def engines(world: World) -> Iterator[Callable[..., sa.Engine]]:
    """Makes the caller's own engines, on the database of the runs, in which it has a table too."""
    made: list[sa.Engine] = []

    def make(**settings: Any) -> sa.Engine:
        made.append(sa.create_engine(url_of(world), **settings))
        return made[-1]

    orders.drop(make(), checkfirst=True)
    orders.create(made[0])
    yield make
    orders.drop(made[0])
    for engine in made:
        engine.dispose()


@pytest.fixture
def engine(engines: Callable[..., sa.Engine]) -> sa.Engine:
    """The caller's own engine, as it comes."""
    return engines()


def stored(world: World, engine: sa.Engine) -> tuple[list[str], list[str], list[int]]:
    """The runs that are there, those that wait for their owner, and the caller's orders."""
    with engine.connect() as connection:
        numbers = list(connection.execute(sa.select(orders.c.number)).scalars())
    return [row.run_id for row in world.b.find_runs()], world.pending(), numbers


def test_a_run_is_there_once_the_caller_has_committed(world: World, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        # given a transaction in which an order and a run are stored
        connection.execute(sa.insert(orders).values(number=1))
        submitted = world.a.submit_within(connection, world.new("run-1", input=b'{"order":1}', thread_id="thread"))
        # then nobody sees either yet
        assert submitted.created
        assert stored(world, engine) == ([], [], [])
        # and when it is committed, both are there
        connection.commit()
    assert stored(world, engine) == (["run-1"], ["run-1"], [1])
    assert world.run("run-1") == submitted.row


def test_a_run_is_not_there_if_the_caller_rolls_back(world: World, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.insert(orders).values(number=1))
        world.a.submit_within(connection, world.new("run-1"))
        connection.rollback()

    assert stored(world, engine) == ([], [], [])
    # and its id is free
    assert world.a.submit([world.new("run-1")])[0].created


def test_a_session_is_joined_too(world: World, engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.execute(sa.insert(orders).values(number=1))
        world.a.submit_within(session, world.new("run-1"))
        session.commit()
        session.execute(sa.insert(orders).values(number=2))
        world.a.submit_within(session, world.new("run-2"))
        session.rollback()

    assert stored(world, engine) == (["run-1"], ["run-1"], [1])


def test_a_run_within_a_savepoint_goes_with_it(world: World, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.insert(orders).values(number=1))
        with connection.begin_nested() as savepoint:
            world.a.submit_within(connection, world.new("run-1"))
            savepoint.rollback()
        world.a.submit_within(connection, world.new("run-2"))
        connection.commit()

    assert stored(world, engine) == (["run-2"], ["run-2"], [1])


def test_a_run_id_that_is_taken_leaves_the_transaction_whole(world: World, engine: sa.Engine) -> None:
    # given a run that has begun, and one of this transaction
    world.submit("run-1", input=b"1")
    world.commit(world.step("run-1", 0))
    with engine.connect() as connection:
        connection.execute(sa.insert(orders).values(number=1))
        world.a.submit_within(connection, world.new("run-2", input=b"2"))

        # when they are submitted again, then the answer is what is there, and the caller goes on
        again = [world.a.submit_within(connection, world.new(f"run-{n}", input=b"3")) for n in (1, 2)]
        assert [answer.created for answer in again] == [False, False]
        assert [answer.row.input for answer in again] == [b"1", b"2"]
        connection.execute(sa.insert(orders).values(number=2))
        connection.commit()

    assert stored(world, engine) == (["run-1", "run-2"], ["run-2"], [1, 2])


def test_the_owner_of_a_run_does_not_wait_for_who_has_submitted_it_again(world: World, engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":
        return  # There, all writers wait for each other, and the caller's first statement has written.
    # given a transaction that has met a run
    world.submit("run-1")
    with engine.connect() as connection:
        connection.execute(sa.insert(orders).values(number=1))
        world.a.submit_within(connection, world.new("run-1"))
        # then its owner can commit while the transaction is still open
        world.commit(world.step("run-1", 0))
        connection.rollback()
    assert world.run("run-1").step_id == 0


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_of_two_who_submit_one_run_the_second_waits_for_the_first(world: World, engine: sa.Engine, ending: str) -> None:
    answers: list[Submitted] = []

    def submit() -> None:
        answers.extend(world.b.submit([world.new("run-1", input=b"second")]))

    # given a transaction that has submitted a run, and somebody else who submits it meanwhile
    other = threading.Thread(target=submit)
    with engine.connect() as connection:
        world.a.submit_within(connection, world.new("run-1", input=b"first"))
        other.start()
        getattr(connection, ending)()
    other.join(60)

    # then there is one run: the first one's if that was committed
    [answer] = answers
    first = ending == "commit"
    assert (answer.created, answer.row.input) == ((False, b"first") if first else (True, b"second"))
    assert stored(world, engine)[:2] == (["run-1"], ["run-1"])


def test_many_transactions_that_submit_one_run_leave_one(world: World, engines: Callable[..., sa.Engine]) -> None:
    # given callers whose transactions all begin before any has submitted
    engine = engines(pool_size=20)
    gate = threading.Barrier(12)

    def submit(number: int) -> bool:
        with engine.connect() as connection:
            if engine.dialect.name == "mysql":
                # The caller has looked at something, and from then on sees what was there then.
                connection.execute(sa.select(orders)).all()
            gate.wait(60)
            created = world.a.submit_within(connection, world.new("run-1", input=b"%d" % number)).created
            connection.execute(sa.insert(orders).values(number=number))
            connection.commit()
            return created

    created = world.together(*[lambda number=number: submit(number) for number in range(12)])  # type: ignore[misc]

    # then one of them has created the run, and all have their orders
    runs, pending, numbers = stored(world, engine)
    assert sum(created) == 1
    assert world.run("run-1").input == b"%d" % created.index(True)
    assert (runs, pending, sorted(numbers)) == (["run-1"], ["run-1"], list(range(12)))


def test_a_connection_in_autocommit_is_refused(world: World, engines: Callable[..., sa.Engine]) -> None:
    with engines(isolation_level="AUTOCOMMIT").connect() as connection:
        with pytest.raises(ConfigurationError, match="is in autocommit") as caught:
            world.a.submit_within(connection, world.new("run-1"))
        assert caught.value.option == "connection"
    assert world.b.find_runs() == []


def test_a_transaction_that_was_begun_by_hand_is_joined(world: World, engines: Callable[..., sa.Engine]) -> None:
    engine = engines(isolation_level="AUTOCOMMIT")
    if engine.dialect.name != "sqlite":
        return  # Done so with SQLite alone, whose driver does not begin them in time.
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        world.a.submit_within(connection, world.new("run-1"))
        connection.exec_driver_sql("ROLLBACK")
    assert world.b.find_runs() == []


def test_a_connection_that_leads_elsewhere_is_refused(world: World, tmp_path: Any) -> None:
    # given connections to another kind of database, and to another one of the same kind
    urls = [sa.make_url(f"sqlite:///{tmp_path}/elsewhere.db")]
    if url_of(world).get_backend_name() == "postgresql":
        urls.append(url_of(world).set(database="template1"))
    if url_of(world).get_backend_name() == "mysql":
        urls.append(url_of(world).set(database="information_schema"))
    for url in urls:
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            with pytest.raises(ConfigurationError, match="one transaction cannot span both") as caught:
                world.a.submit_within(connection, world.new("run-1"))
            # then the error names both, and the transaction goes on
            assert str(url.database) in str(caught.value) and str(url_of(world).database) in str(caught.value)
            assert connection.execute(sa.select(1)).scalar() == 1
        engine.dispose()
    assert world.b.find_runs() == []


def test_another_way_to_the_same_database_is_the_same_database(world: World, tmp_path: Any) -> None:
    url = url_of(world)
    if url.get_backend_name() == "sqlite":
        link = tmp_path / "link.db"
        link.symlink_to(cast("str", url.database))
        url = url.set(database=str(link))
    else:
        url = url.set(host="localhost" if url.host == "127.0.0.1" else "127.0.0.1")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert world.a.submit_within(connection, world.new("run-1")).created
        connection.commit()
    engine.dispose()
    assert world.pending() == ["run-1"]


@pytest.mark.parametrize("given", ["sqlite:///runs.db", 7])
def test_what_is_no_connection_is_refused(world: World, given: object) -> None:
    with pytest.raises(ConfigurationError, match=r"must be a Connection or Session of SQLAlchemy, got (str|int)"):
        world.a.submit_within(given, world.new("run-1"))


def test_an_error_of_the_database_is_said_as_such(world: World, engine: sa.Engine) -> None:
    # given a connection on which nothing works any more
    with engine.connect() as connection:
        connection.begin()
        driver: Any = connection.connection.driver_connection
        driver.close()
        with pytest.raises(StoreUnavailableError, match="does not work"):
            world.a.submit_within(connection, world.new("run-1"))
        connection.invalidate()


def test_the_memory_of_a_process_has_no_transactions() -> None:
    from lockstep.records import NewRun

    run = NewRun(run_id="r", graph="g", graph_hash="h", input=b"{}", options=b"{}", partition_id="p", shard=0)
    with pytest.raises(ConfigurationError, match="memory:// has no transactions"):
        open_store("memory://").submit_within(object(), run)
