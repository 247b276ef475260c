"""The contract of `Broker`, for every adapter: bounded queues that keep their order, and messages back.

A broker joins the suite by joining `DRIVERS`. What an adapter does not do is a tag of its driver.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.brokers import InThread, RedisWorld, answers_in, in_turn, name_of, names_of, result, task, tasks
from tests.servers import RedisServer

from lockstep.broker.inprocess import InProcessBroker
from lockstep.ports import Broker
from lockstep.records import Task, TaskResult, Wake

QUEUES = ("default", "gpu", "with space")
LONG_SECONDS = 600.0


class Driver(Protocol):
    """A broker with the worker's side of it, which serves all QUEUES. `keeps` says that messages outlive their reader."""

    keeps: bool
    broker: Broker

    def take(self) -> Task | None:
        """The next task that a worker gets; None: all queues are empty."""

    def answer(self, *results: TaskResult) -> None:
        """Send results."""

    def successor(self) -> Broker:
        """Another broker that owns the same from now on."""


class InProcess:
    keeps = False

    def __init__(self, _: RedisWorld, queue_depth: int) -> None:
        self._both_sides = InProcessBroker(queue_depth)
        self.broker: Broker = self._both_sides

    def take(self) -> Task | None:
        return self._both_sides.take()

    def answer(self, *results: TaskResult) -> None:
        for one in results:
            self._both_sides.deliver(one)

    def successor(self) -> Broker:
        raise NotImplementedError


class OverRedis:
    keeps = True

    def __init__(self, world: RedisWorld, queue_depth: int) -> None:
        self._world, self._queue_depth, self._epoch = world, queue_depth, 1
        self.broker: Broker = world.broker(queue_depth)
        self._worker = world.worker("w", *QUEUES)

    def take(self) -> Task | None:
        # Nothing is known of nodes here, so each task is a job of its own.
        return next(iter(self._worker.take()), None)

    def answer(self, *results: TaskResult) -> None:
        self._worker.send(*results)

    def successor(self) -> Broker:
        self._epoch += 1
        return self._world.broker(self._queue_depth, {"p": self._epoch})


DRIVERS: dict[str, Callable[[RedisWorld, int], Driver]] = {"inprocess": InProcess, "redis": OverRedis}
KEEPING = ["redis"]

Open = Callable[[int], Driver]


@pytest.fixture(params=DRIVERS)
def opened(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Open]:
    """Opens an empty broker of a queue_depth."""
    with ExitStack() as stack:
        yield lambda queue_depth: DRIVERS[request.param](stack.enter_context(RedisWorld(redis_server.url)), queue_depth)


@pytest.fixture
def driver(opened: Open) -> Driver:
    """A broker with plenty of room."""
    return opened(1024)


def take_all(driver: Driver) -> dict[str, list[str]]:
    """The names of all tasks that come out, by queue, in order."""
    taken: dict[str, list[str]] = {}
    while (one := driver.take()) is not None:
        taken.setdefault(one.queue, []).append(name_of(one))
    return taken


# --- tasks --------------------------------------------------------------------------------------------------------------------


def test_tasks_come_out_in_the_order_offered_per_queue(driver: Driver) -> None:
    # given tasks for two queues in turn, in several calls
    one, other = tasks("a", 70), tasks("b", 70, "gpu")
    for start in range(0, 140, 35):
        assert all(driver.broker.offer(in_turn(one, other)[start : start + 35]))
    # when a worker takes them, then each queue has kept its order
    assert take_all(driver) == {"default": names_of(one), "gpu": names_of(other)}


def test_a_task_arrives_as_it_was_offered(driver: Driver) -> None:
    # given tasks with all that one can have, with large and small states
    offered = [
        task("a", "with space", run_id="R.-_:1", attempt=3, delivery=1, run_seed=2**64 - 1, timeout_seconds=0.1),
        task("b", payload=None, state=b'{"f":[1e+16,-0.0,1e-07],"\xc3\xa9":"\xf0\x9f\x99\x82\\u0000"}'),
        task("c", payload=b"null", state=b'{"text":"%s"}' % (b"y" * 100_000)),
    ]
    assert driver.broker.offer(offered) == [True, True, True]
    # then nothing of them is changed
    taken = [driver.take(), driver.take(), driver.take()]
    assert sorted(taken, key=repr) == sorted(offered, key=repr)


@pytest.mark.parametrize("queue_depth", [1, 3])
def test_a_queue_takes_what_it_has_room_for_and_refuses_the_rest(opened: Open, queue_depth: int) -> None:
    driver = opened(queue_depth)
    # given more tasks than fit
    offered = tasks("a", 5)
    # when they are offered, then the first fit, and the later ones are refused
    assert driver.broker.offer(offered) == [n < queue_depth for n in range(5)]
    # and when there is room for one, then one more fits
    assert name_of(driver.take() or offered[4]) == "a0"
    assert driver.broker.offer(offered[queue_depth:]) == [n == 0 for n in range(5 - queue_depth)]
    # and no task that was refused comes out
    assert take_all(driver) == {"default": names_of(offered[1 : queue_depth + 1])}


def test_a_full_queue_does_not_hold_back_another(opened: Open) -> None:
    driver = opened(2)
    # given a full queue
    driver.broker.offer(tasks("a", 2))
    # when tasks for it and for others are offered in turn, then the others' are taken, in one call and with it
    offered = [*in_turn(tasks("b", 3), tasks("c", 3, "gpu")), task("d", "with space")]
    assert driver.broker.offer(offered) == [False, True, False, True, False, False, True]
    assert take_all(driver) == {"default": ["a0", "a1"], "gpu": ["c0", "c1"], "with space": ["d"]}


def test_depth_is_how_many_tasks_a_queue_holds(opened: Open) -> None:
    driver = opened(3)
    # given nothing yet
    assert [driver.broker.depth(queue) for queue in QUEUES] == [0, 0, 0]
    # when tasks are offered, some of them refused, then those count that were taken
    driver.broker.offer([*tasks("a", 5), task("b", "gpu")])
    assert [driver.broker.depth(queue) for queue in QUEUES] == [3, 1, 0]
    # and when a worker takes them, they count no more
    driver.take()
    driver.take()
    assert sum(driver.broker.depth(queue) for queue in QUEUES) == 2
    take_all(driver)
    assert [driver.broker.depth(queue) for queue in QUEUES] == [0, 0, 0]


def test_an_empty_offer_is_none(driver: Driver) -> None:
    assert driver.broker.offer([]) == []
    assert driver.take() is None


def test_more_tasks_than_any_script_has_arguments_for(opened: Open) -> None:
    # given a deep queue
    driver = opened(20_000)
    # when very many tasks are offered in one call, then all are there
    offered = tasks("a", 9_000)
    assert all(driver.broker.offer(offered))
    assert driver.broker.depth("default") == 9_000


OPERATIONS = st.lists(st.lists(st.sampled_from(QUEUES), max_size=6) | st.none(), max_size=25)
"""The queues of the tasks in an offer, or None: a worker takes one."""


@given(OPERATIONS, st.integers(1, 4))
@settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broker_is_a_set_of_bounded_queues(opened: Open, operations: list[list[str] | None], queue_depth: int) -> None:
    # given the simplest model: a bounded queue for each name
    driver, model = opened(queue_depth), defaultdict[str, deque[str]](deque)
    for number, operation in enumerate(operations):
        if operation is None:
            # when a worker takes a task, then it is the first of some queue, and there is none only if all are empty
            taken = driver.take()
            assert (taken is None) == (not any(model.values()))
            if taken is not None:
                assert model[taken.queue].popleft() == name_of(taken)
        else:
            # when tasks are offered, then those are taken for which there is room
            offered = [task(f"{number}-{n}", queue) for n, queue in enumerate(operation)]
            expected = []
            for one in offered:
                expected.append(len(model[one.queue]) < queue_depth)
                if expected[-1]:
                    model[one.queue].append(name_of(one))
            assert driver.broker.offer(offered) == expected
        assert [driver.broker.depth(queue) for queue in QUEUES] == [len(model[queue]) for queue in QUEUES]
    assert take_all(driver) == {queue: list(names) for queue, names in model.items() if names}


def test_what_is_withdrawn_does_not_come_out_and_the_rest_does(driver: Driver) -> None:
    # given queued tasks of two runs, one of which a worker has taken
    mine, others = tasks("a", 3), tasks("b", 3, run_id="run-2")
    driver.broker.offer(in_turn(mine, others))
    first = driver.take()
    # when a run is withdrawn
    withdrawn = driver.broker.withdraw("run-1")
    # then what the broker says it took out is out, and everything else is there, the other run's tasks among it
    left = [one for one in [*mine, *others] if one != first and one.path not in withdrawn]
    assert driver.broker.depth("default") == len(left)
    assert set(take_all(driver).get("default", ())) == set(names_of(left)) >= set(names_of(others))


def test_what_an_offer_refuses_is_not_overtaken_by_what_a_worker_makes_room_for() -> None:
    # given a queue with room for one, and a worker that takes a task while others are being offered
    broker = InProcessBroker(1)

    def take_late() -> None:
        if broker.depth("gpu"):
            broker.take()

    broker.connect(take_late, lambda run_id: None)
    # when it takes the first after the second was refused
    verdicts = broker.offer([task("a"), task("b"), task("c", "gpu"), task("d")])
    # then the last is refused too, though there is room: it would overtake the second
    assert broker.depth("default") == 0
    assert verdicts == [True, False, True, False]


# --- messages -----------------------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order(driver: Driver) -> None:
    # given nothing yet, then there is nothing to receive
    assert driver.broker.receive(0.0) == []
    # when results are sent, in several goes
    done = tasks("a", 10)
    for some in (done[:1], done[1:4], done[4:]):
        driver.answer(*[result(one) for one in some])
    # then they all arrive, as they were sent, and once
    received = driver.broker.receive(LONG_SECONDS)
    assert received == [result(one) for one in done]
    assert driver.broker.receive(0.0) == []


def test_receive_waits_for_the_first_message(driver: Driver) -> None:
    # given a coordinator that waits, and has waited before
    driver.broker.receive(0.001)
    waiting = InThread(lambda: receive_some(driver.broker))
    # when a result is sent, then it returns with it
    driver.answer(result(task("a")))
    assert answers_in(waiting.answer()) == ["a"]


def test_wake_makes_receive_return(driver: Driver) -> None:
    # given a coordinator that waits
    waiting = InThread(lambda: receive_some(driver.broker))
    # when somebody wakes it, then it is told so
    driver.broker.wake()
    assert all(isinstance(message, Wake) for message in waiting.answer())
    # and waking it beforehand is not lost
    driver.broker.wake()
    assert any(isinstance(message, Wake) for message in receive_some(driver.broker))


def receive_some(broker: Broker) -> list[object]:
    """What comes first; a broker may return earlier, without anything."""
    while not (messages := broker.receive(LONG_SECONDS)):
        pass
    return list(messages)


@pytest.mark.parametrize("opened", KEEPING, indirect=True)
def test_results_survive_until_they_are_acknowledged(driver: Driver) -> None:
    # given results that were received, of which only the first were acknowledged
    first, later, unread = tasks("a", 3), tasks("b", 3), tasks("c", 3)
    driver.answer(*[result(one) for one in first])
    driver.broker.receive(LONG_SECONDS)
    driver.broker.acknowledge()
    driver.answer(*[result(one) for one in later])
    driver.broker.receive(LONG_SECONDS)
    driver.answer(*[result(one) for one in unread])
    # when another broker becomes the owner
    successor = driver.successor()
    # then it gets the others, from the oldest on
    assert answers_in(successor.receive(LONG_SECONDS)) == names_of([*later, *unread])
    # and once it has acknowledged them, nobody does
    successor.acknowledge()
    assert driver.successor().receive(0.0) == []
