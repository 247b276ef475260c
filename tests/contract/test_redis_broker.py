"""What `RedisBroker` promises beyond the contract: several coordinators, workers that die, a server that forgets or refuses."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from structlog.testing import capture_logs
from tests.contract.brokers import (
    LARGE_STATE,
    SILENT_MS,
    TRUSTED_MS,
    InThread,
    RedisWorld,
    Worker,
    answers_in,
    by_path,
    in_turn,
    names_of,
    outstanding,
    path_of,
    result,
    task,
    tasks,
)
from tests.servers import RedisServer, free_port

from lockstep.broker.announce import MAX_WAITING, Announcer
from lockstep.broker.names import EXECUTION
from lockstep.broker.permits import PERMIT_SECONDS
from lockstep.broker.presence import PRESENCE_TTL_SECONDS, read_presence
from lockstep.broker.quarantine import KEPT_SECONDS, Quarantine
from lockstep.broker.redis import BATCH_TASKS, CANCELLED_SECONDS, SHORT_NODE_MS, STATE_INLINE_BYTES, RedisBroker
from lockstep.broker.scripts import ENQUEUE
from lockstep.errors import BrokerUnavailableError, ConfigurationError
from lockstep.records import HandedBack, Outstanding, Task, Unreadable, Wake
from lockstep.wire import JOB_HEAD, JOB_TAIL

LONG_SECONDS = 600.0
PASSWORD = "s3cret"


@pytest.fixture
def world(redis_server: RedisServer) -> Iterator[RedisWorld]:
    with RedisWorld(redis_server.url) as world:
        yield world


@pytest.fixture
def broker(world: RedisWorld) -> RedisBroker:
    """A broker that believes what it sees."""
    return world.settled(world.broker())


def learn(broker: RedisBroker, worker: Worker, node_id: str, *latencies_ms: float) -> None:
    """Let the broker see how long a node takes."""
    for number, latency_ms in enumerate(latencies_ms):
        broker.offer([task(f"{node_id} {number}", node_id=node_id)])
        worker.work(worker.claim(), latency_ms)
    broker.receive(LONG_SECONDS)
    broker.acknowledge()


def sweeps(broker: RedisBroker, count: int) -> list[list[Outstanding]]:
    """What so many sweeps find."""
    return [broker.lost() for _ in range(count)]


# --- depth --------------------------------------------------------------------------------------------------------------------

# Looks into a queue in one step. KEYS: queue list, depth. ARGV: job prefix. Returns the tasks in the list, the depth, and how
# many ids have no job.
LOOK = """
local tasks, without = 0, 0
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
    tasks = tasks + tonumber(string.match(id, '%-(%d+)$'))
    without = without + 1 - redis.call('EXISTS', ARGV[1] .. id)
end
return {tasks, tonumber(redis.call('GET', KEYS[2]) or '0'), without}
"""

# The script that enqueues, and in the same step a note of how many tasks the queue holds then.
WATCHED_ENQUEUE = f"""
local function enqueue()
{ENQUEUE}
end
local jobs, held = enqueue(), 0
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do held = held + tonumber(string.match(id, '%-(%d+)$')) end
redis.call('SADD', KEYS[3] .. ':held', held)
return jobs
"""


@pytest.mark.parametrize("queue_depth", [1, 7])
def test_two_coordinators_and_many_workers_keep_the_bound(
    world: RedisWorld, monkeypatch: pytest.MonkeyPatch, queue_depth: int
) -> None:
    # given two coordinators with short nodes, so that jobs hold several tasks, and three workers
    monkeypatch.setattr("lockstep.broker.redis.ENQUEUE", WATCHED_ENQUEUE)
    workers = [world.worker(f"w{n}") for n in range(3)]
    brokers = [world.broker(queue_depth, {partition: 1}) for partition in "pq"]
    world.settled(*brokers)
    offered = [tasks(partition, 150, partition_id=partition) for partition in "pq"]
    for broker in brokers:
        broker._means["hash-1", "node"] = 1.0
    numbers, done = itertools.count(1), threading.Event()
    keys = (world.names.queue("default"), world.names.depth("default"))

    def coordinate(broker: RedisBroker, waiting: list[Task]) -> None:
        rng = random.Random(waiting[0].partition_id)
        while waiting and not done.is_set():
            size = rng.randint(1, 9)
            verdicts = broker.offer(waiting[:size])
            waiting = waiting[sum(verdicts) :]
            if not any(verdicts):
                # Whoever makes room says so.
                broker.receive(LONG_SECONDS)

    def work(worker: Worker) -> list[str]:
        taken: list[str] = []
        while not done.is_set():
            some = names_of(worker.take(2))
            taken += some
            if any(next(numbers) == 300 for _ in some):
                done.set()
            if not some:
                worker.link.wait(1)
        return taken

    def look() -> list[list[int]]:
        looks = []
        while not done.is_set():
            looks.append(world.redis.eval(LOOK, 2, *keys, world.names.job_prefix))
        return looks

    # when they all race, and somebody else looks
    looks, *taken = at_once(
        done, look, *[partial(work, worker) for worker in workers], *map(partial, [coordinate] * 2, brokers, offered)
    )
    # then no enqueuing ever passed the bound, though it was reached
    assert max(map(int, world.redis.smembers(world.names.depth("default") + ":held"))) == queue_depth
    # and at no moment was the depth another than the list's, or an id without its job
    assert len(looks) > 10
    assert {(held <= queue_depth, held == depth, without) for held, depth, without in looks} == {(True, True, 0)}
    # and each task was taken once
    assert sorted(itertools.chain(*taken[:3])) == sorted(names_of(offered[0] + offered[1]))


def at_once(done: threading.Event, *calls: Callable[[], Any]) -> list[Any]:
    """The answers of calls that run beside each other; if one fails, all are told that it is over."""

    def guarded(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException:
            done.set()
            raise

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(guarded, calls))


@pytest.mark.parametrize("ids_left", [3, 0])
def test_ids_that_vanish_from_a_queue_make_room_at_the_next_sweep(world: RedisWorld, ids_left: int) -> None:
    # given a full queue, from which ids vanish without a claim, as by `rq empty`
    broker = world.settled(world.broker(5))
    offered = tasks("a", 5)
    broker.offer(offered)
    world.redis.ltrim(world.names.queue("default"), 5 - ids_left, 4)
    assert broker.offer([task("b")]) == [False]
    # when the sweep counts anew, then there is room for as many, and what has vanished is lost
    assert sweeps(broker, 2) == [[], [outstanding(one) for one in offered[: 5 - ids_left]]]
    assert broker.depth("default") == ids_left
    assert broker.offer(tasks("c", 5)) == [n < 5 - ids_left for n in range(5)]


@pytest.mark.parametrize("wrong", [99, 0, None])
def test_a_depth_that_was_changed_is_counted_anew(world: RedisWorld, wrong: int | None) -> None:
    # given a counter that somebody changed or deleted, batches among what it counts
    broker, worker = world.broker(100), world.worker()
    world.settled(broker)
    learn(broker, worker, "node", 1.0)
    broker.offer(tasks("a", 70))
    assert world.sizes() == [64, 6]
    world.redis.delete(world.names.depth("default"))
    if wrong is not None:
        world.redis.set(world.names.depth("default"), wrong)
    # when the sweep comes, then it is right again
    assert broker.lost() == []
    assert broker.depth("default") == 70
    # and never below nothing, whatever workers take meanwhile
    world.redis.set(world.names.depth("default"), 1)
    worker.take_all()
    assert broker.depth("default") == 0


def test_who_was_refused_is_woken_when_there_is_room(world: RedisWorld) -> None:
    # given two coordinators that found a queue full
    mine, others = world.broker(1), world.broker(1, {"q": 1})
    mine.offer([task("a")])
    assert mine.offer([task("b")]) == others.offer([task("c", partition_id="q")]) == [False]
    # when a worker takes something, then both are woken, once
    world.worker().take()
    assert mine.receive(LONG_SECONDS) == others.receive(LONG_SECONDS) == [Wake(look=True)]
    assert mine.receive(0.0) == others.receive(0.0) == []
    assert not world.redis.exists(world.names.refused("default"))


# --- batches ------------------------------------------------------------------------------------------------------------------


def test_only_tasks_of_short_nodes_share_a_job(world: RedisWorld, broker: RedisBroker) -> None:
    # given nodes of which the broker knows how long they take, and one that is new
    worker = world.worker()
    broker.lost()
    learn(broker, worker, "short", 9.9, SHORT_NODE_MS - 0.1)
    learn(broker, worker, "long", SHORT_NODE_MS)
    learn(broker, worker, "grown", 1.0, 60.0)
    # when tasks of all of them are offered
    nodes = ["short", "long", "grown", "new", "short"]
    offered = [one for n, node in enumerate(nodes) for one in tasks(f"{n}-", 3, node_id=node)]
    assert all(broker.offer(offered))
    # then only those of the short one share jobs, and the order is kept
    assert world.sizes() == [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3]
    assert names_of(worker.take_all()) == names_of(offered)


def test_a_redelivered_task_travels_alone(world: RedisWorld, broker: RedisBroker) -> None:
    # given a short node
    worker = world.worker()
    broker.lost()
    learn(broker, worker, "node", 1.0)
    # when a task that may have ended its worker is among its tasks, then it has a job of its own
    offered = tasks("a", 6)
    offered[2] = replace(offered[2], delivery=2)
    broker.offer(offered)
    assert world.sizes() == [2, 1, 3]
    assert worker.take_all() == offered


@pytest.mark.parametrize(("slots", "sizes"), [(1, [64, 64, 64, 8]), (50, [4] * 50), (150, [2] * 100), (500, [1] * 200)])
def test_a_job_holds_its_share_of_what_is_ready(world: RedisWorld, broker: RedisBroker, slots: int, sizes: list[int]) -> None:
    # given a short node, and workers with some slots for its queue
    worker = world.worker("w", slots=slots - slots // 2)
    if slots // 2:
        world.worker("w2", slots=slots // 2)
    world.worker("w3", "gpu", slots=1000)
    broker.lost()
    learn(broker, worker, "node", 9.0)
    # when 200 tasks are offered, then each slot gets as many, but no job has more than 64
    broker.offer(tasks("a", 200))
    assert world.sizes() == sizes
    assert max(sizes) <= BATCH_TASKS


@pytest.mark.parametrize(
    ("mean_ms", "sizes"), [(9.0, [1] * 128), (2.0, [5] * 25 + [3]), (0.5, [20] * 6 + [8]), (0.01, [64, 64])]
)
def test_tasks_that_are_very_short_fill_a_job_of_ten_milliseconds(
    world: RedisWorld, broker: RedisBroker, mean_ms: float, sizes: list[int]
) -> None:
    # given more slots than tasks, and a node that takes so long
    worker = world.worker("w", slots=1000)
    broker.lost()
    learn(broker, worker, "node", mean_ms)
    # when tasks are offered, then as many share a job as make it short, though slots stay free
    broker.offer(tasks("a", 128))
    assert world.sizes() == sizes


def test_without_a_living_worker_each_task_has_its_own_job(world: RedisWorld, broker: RedisBroker) -> None:
    # given a short node, whose only worker has fallen silent
    worker = world.worker()
    learn(broker, worker, "node", 1.0)
    worker.fall_silent()
    broker.lost()
    # then nobody can tell how many will share the work
    broker.offer(tasks("a", 3))
    assert world.sizes() == [1, 1, 1]


# --- claims -------------------------------------------------------------------------------------------------------------------


def test_a_claim_takes_job_reservation_and_list_entry(world: RedisWorld, broker: RedisBroker) -> None:
    # given two jobs
    worker = world.worker()
    broker.offer([task("a"), task("b", delivery=4)])
    first, second = world.job_ids()
    # when a worker claims one
    [job] = worker.claim()
    # then it is out of the list, its hash is gone, its room is free, and the claim says what it is for
    assert job.job_id == first
    assert world.job_ids() == [second]
    assert [world.redis.exists(world.names.job(job_id)) for job_id in (first, second)] == [0, 1]
    assert broker.depth("default") == 1
    claims = world.redis.hgetall(world.names.claims("w"))
    assert {key: json.loads(value) for key, value in claims.items()} == {
        first.encode(): ["default", [["run-1", path_of("a").hex(), 1]]]
    }
    # and RQ's tools show it as running, until it is answered
    assert world.redis.zrange(world.names.running_prefix + "default", 0, -1) == [f"{first}{EXECUTION}".encode()]
    worker.work([job])
    assert not world.redis.exists(world.names.running_prefix + "default", world.names.claims("w"))


def test_a_claim_takes_about_what_there_is_room_for_from_each_queue_in_turn(world: RedisWorld, broker: RedisBroker) -> None:
    # given two queues with tasks, and a worker of both
    worker = world.worker("w", "one", "two")
    broker.offer(in_turn(tasks("a", 6, "one"), tasks("b", 6, "two")))
    # when it claims, then it gets as many as it asks for, and no queue is always the first
    first, second = worker.take(2), worker.take(2)
    assert {one.queue for one in first} != {one.queue for one in second}
    assert len(first) == len(second) == 2
    # and what is left in one queue does not keep it from the other
    assert {one.queue for one in worker.take(6)} == {"one", "two"}


def test_a_suspended_worker_claims_nothing(world: RedisWorld, broker: RedisBroker) -> None:
    # given a task, and workers suspended by `rq suspend`
    worker = world.worker()
    broker.offer([task("a")])
    world.redis.set(world.names.suspended, 1)
    # then it stays where it is until they may go on
    assert worker.claim() == []
    assert broker.depth("default") == 1
    world.redis.delete(world.names.suspended)
    assert names_of(worker.take()) == ["a"]


def test_an_idle_worker_is_rung(world: RedisWorld, broker: RedisBroker) -> None:
    worker, bell = world.worker(), world.names.bell("default")
    # given tasks, then the bell is rung, once however often they come
    broker.offer(tasks("a", 2))
    broker.offer(tasks("b", 2))
    assert world.redis.llen(bell) == 1
    # and who waits takes the ring, and rings for the next when it leaves something
    worker.link.wait(4)
    assert world.redis.llen(bell) == 0
    worker.take()
    assert world.redis.llen(bell) == 1
    # and nobody rings for nothing
    worker.link.wait(4)
    worker.take(3)
    assert world.redis.llen(bell) == 0
    # and who waits already is woken
    waiting = InThread(lambda: worker.link.wait(4))
    broker.offer(tasks("c", 1))
    waiting.answer()
    assert world.redis.llen(bell) == 0


def test_a_claim_whose_answer_got_lost_is_given_up(
    world: RedisWorld, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that holds a job
    worker = world.worker()
    held, missed, later = offered = tasks("a", 3)
    broker.offer(offered)
    worker.claim()
    # when the server carries out its claim, but the answer gets lost
    ask = worker.link._redis.eval

    def ask_in_vain(*arguments: Any) -> None:
        ask(*arguments)
        raise redis.TimeoutError("Timeout reading from socket")

    with monkeypatch.context() as patched, pytest.raises(redis.TimeoutError):
        patched.setattr(worker.link._redis, "eval", ask_in_vain)
        worker.claim()
    assert sweeps(broker, 3) == [[], [], []]
    # then it notices that it claims what it does not have, and gives that up
    monkeypatch.setattr(worker.link, "_next_comparison", 0.0)
    assert worker.take() == [later]
    assert sweeps(broker, 3) == [[], [outstanding(missed)], []]
    # and nothing else
    monkeypatch.setattr(worker.link, "_next_comparison", 0.0)
    worker.claim()
    assert by_path(broker.outstanding(["run-1"])) == by_path([outstanding(held), outstanding(later)])


# --- lost tasks ---------------------------------------------------------------------------------------------------------------


def test_the_tasks_of_a_dead_worker_are_lost_at_once(world: RedisWorld, broker: RedisBroker) -> None:
    # given two workers, each with a job, one of them with a space in the name of its queue
    dying, living = world.worker("dying", "with space"), world.worker("living")
    lost, kept = task("a", "with space"), task("b")
    broker.offer([lost, kept])
    dying.claim()
    living.claim()
    assert sweeps(broker, 3) == [[], [], []]
    # when one has missed its beats, then the next sweep says so, once
    dying.fall_silent()
    assert sweeps(broker, 3) == [[outstanding(lost)], [], []]
    # and what is handed out anew is not lost for its first worker's sake
    again = replace(lost, delivery=2)
    broker.offer([again])
    assert sweeps(broker, 3) == [[], [], []]
    # and RQ's tools show what the living one does, and nothing else
    assert not world.redis.exists(world.names.running_prefix + "with space")
    assert world.redis.zcard(world.names.running_prefix + "default") == 1


def test_a_worker_that_beats_late_keeps_its_tasks(world: RedisWorld, broker: RedisBroker) -> None:
    # given a worker whose last beat was almost too long ago
    worker = world.worker()
    broker.offer([task("a")])
    worker.claim()
    world.redis.zincrby(world.names.beats, -SILENT_MS + 2000, "w")
    # then nothing is lost; nor when it has beaten again after it was late
    assert sweeps(broker, 3) == [[], [], []]
    worker.fall_silent()
    worker.beat()
    assert sweeps(broker, 3) == [[], [], []]


def test_a_worker_that_claims_before_its_first_beat_is_alive(world: RedisWorld, broker: RedisBroker) -> None:
    # given a worker whose beats come late, since they come from another process
    worker = world.worker(beats=False)
    broker.offer([task("a")])
    worker.claim()
    # then it has as long as others for the next one
    assert sweeps(broker, 3) == [[], [], []]
    worker.fall_silent()
    assert broker.lost() == [outstanding(task("a"))]


def test_a_task_that_is_nowhere_is_lost_after_two_sweeps(world: RedisWorld, broker: RedisBroker) -> None:
    # given tasks that are in no queue, with no worker and not answered
    vanished, answered = offered = tasks("a", 2)
    broker.offer(offered)
    world.redis.delete(world.names.queue("default"))
    # when one sweep has missed them, then they may just have been on their way
    assert broker.lost() == []
    world.worker().send(result(answered))
    broker.receive(LONG_SECONDS)
    # when a second one has, then what was not answered is lost
    assert sweeps(broker, 2) == [[outstanding(vanished)], []]


def test_two_sweeps_that_miss_a_task_count_only_in_a_row(world: RedisWorld, broker: RedisBroker) -> None:
    # given a task that every second sweep misses
    broker.offer([task("a")])
    [job_id] = world.job_ids()
    for _ in range(3):
        world.redis.delete(world.names.queue("default"))
        assert broker.lost() == []
        # when it turns up again in between, then it is never lost
        world.redis.rpush(world.names.queue("default"), job_id)
        assert broker.lost() == []


def test_an_answer_to_an_earlier_delivery_is_not_the_task_s(world: RedisWorld, broker: RedisBroker) -> None:
    # given a task that was handed out a second time, and vanished
    again = task("a", delivery=2)
    broker.offer([again])
    world.redis.delete(world.names.queue("default"))
    # when its first worker hands it back at last
    world.worker().send(replace(again, delivery=1).handed_back("too late"))
    broker.receive(LONG_SECONDS)
    # then it is followed all the same
    assert sweeps(broker, 2) == [[], [outstanding(again)]]


@pytest.mark.parametrize("leave_alone", ["forget", "cancel"])
def test_tasks_of_a_run_that_is_followed_no_more_are_not_lost(world: RedisWorld, broker: RedisBroker, leave_alone: str) -> None:
    # given tasks of two runs that have vanished
    mine, other = task("a"), task("b", run_id="run-2")
    broker.offer([mine, other])
    world.redis.delete(world.names.queue("default"))
    # when nobody wants one of them any more, then only the other is lost
    broker.forget("run-1") if leave_alone == "forget" else broker.cancel("run-1", "p")
    assert sweeps(broker, 2) == [[], [outstanding(other)]]


# --- permits ------------------------------------------------------------------------------------------------------------------


def limited(prefix: str, count: int, limit: int = 2, **fields: Any) -> list[Task]:
    return tasks(prefix, count, max_concurrent=limit, **fields)


def test_a_node_s_permits_are_counted_over_all_coordinators(world: RedisWorld) -> None:
    # given two coordinators that have tasks of one node, and of others
    one, other = world.broker(owns={"p": 9}), world.broker(owns={"q": 9})
    mine, theirs = limited("a", 2), limited("b", 2, partition_id="q")
    assert one.permit([mine[0], *limited("x", 3, node_id="x")]) == [True, True, True, False]
    assert other.permit(theirs) == [True, False]
    assert one.permit(mine) == [True, False]  # The first has one already.
    assert other.permit(limited("c", 2, partition_id="q", graph_hash="hash-2")) == [True, True]

    # when one is given back, since its task is answered
    one.offer([mine[0]])
    [taken] = world.worker().take()
    world.worker().send(result(taken))
    assert other.receive(0) == []
    one.receive(LONG_SECONDS)
    one.acknowledge()

    # then who was refused is woken, and gets it
    assert other.receive(LONG_SECONDS) == [Wake(look=True)]
    assert other.permit(theirs) == [True, True]
    assert one.permit(mine) == [False, False]


@pytest.mark.parametrize("how", ["refused", "lost", "answered late"])
def test_what_is_out_no_more_holds_no_permit(world: RedisWorld, how: str) -> None:
    broker = world.settled(world.broker(owns={"p": 9}, queue_depth=1))
    one, other = limited("a", 2, limit=1)
    assert broker.permit([one, other]) == [True, False]
    match how:
        case "refused":
            broker.offer([task("full")])
            assert broker.offer([one]) == [False]
        case "lost":
            broker.offer([one])
            world.redis.delete(world.names.queue("default"))
            assert sweeps(broker, 2) == [[], [outstanding(one)]]
        case _:
            broker.offer([one])
            [taken] = world.worker().take()
            broker.cancel("run-1", "p")
            assert broker.lost() == []
            assert broker.permit([other]) == [False]  # It may still run.
            world.worker().send(result(taken))
            broker.receive(LONG_SECONDS)
    assert broker.permit([other, one]) == [True, False]


def test_permits_end_with_their_coordinator_and_go_to_the_next_owner(world: RedisWorld) -> None:
    # given a task that is out, and its coordinator dies
    dead, [one, other] = world.broker(owns={"p": 9}), limited("a", 2, limit=1)
    assert dead.permit([one]) == [True]
    dead.offer([one])
    newer = world.settled(world.broker(owns={"p": 10}))
    # when the next owner takes over what is out, then its permit is that one's, and renewed
    assert newer.outstanding(["run-1"]) == [outstanding(one)]
    assert newer.permit([one, other]) == [True, False]
    node = world.names.permits("hash-1:node")
    world.redis.zadd(node, {member: 1.0 for member in world.redis.zrange(node, 0, -1)})
    newer.lost()
    assert newer.permit([other]) == [False]
    assert 0 < world.redis.pttl(node) <= PERMIT_SECONDS * 1000
    # and one that nobody renews ends
    world.redis.zadd(node, {member: 1.0 for member in world.redis.zrange(node, 0, -1)})
    assert newer.permit([other]) == [True]


def test_after_the_server_has_forgotten_what_is_out_counts_again(world: RedisWorld) -> None:
    broker = world.settled(world.broker(owns={"p": 9}))
    one, other = limited("a", 2, limit=1)
    assert broker.permit([one]) == [True]
    broker.offer([one])
    world.forget_everything()
    assert broker.lost() == []
    assert broker.permit([other]) == [False]


# --- cancelled runs -----------------------------------------------------------------------------------------------------------


def test_workers_learn_once_of_cancelled_runs_and_how_long_ago_that_was(world: RedisWorld) -> None:
    broker, link = world.broker(owns={"p": 9}), world.worker().link
    assert link.newly_cancelled() == []
    broker.cancel("run-1", "p")
    world.redis.zincrby(world.names.cancelled, -5000, "run-1")
    broker.cancel("run-2", "p")
    [(one, long_ago), (other, just_now)] = link.newly_cancelled()
    assert (one, other) == ("run-1", "run-2")
    assert 5.0 <= long_ago < LONG_SECONDS
    assert long_ago - 5.0 >= just_now >= 0.0
    assert link.newly_cancelled() == []
    # and a worker that comes later learns of them, too, until they are too old
    assert len(world.worker().link.newly_cancelled()) == 2
    world.redis.zincrby(world.names.cancelled, -CANCELLED_SECONDS * 1000, "run-2")
    broker.cancel("run-3", "p")
    assert [run_id for run_id, _ in world.worker().link.newly_cancelled()] == ["run-1", "run-3"]


def test_many_cancelled_runs_are_learned_of_in_parts(world: RedisWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.broker.worker.CANCELLED_PER_LOOK", 2)
    broker, link = world.broker(owns={"p": 9}), world.worker().link
    for number in range(3):
        broker.cancel(f"run-{number}", "p")
        world.redis.zincrby(world.names.cancelled, number - 10, f"run-{number}")
    assert [len(link.newly_cancelled()) for _ in range(3)] == [2, 1, 0]


def test_who_owns_a_partition_no_more_cancels_nothing_in_it(world: RedisWorld) -> None:
    older = world.broker(owns={"p": 9})
    newer = world.broker(owns={"p": 10})
    older.cancel("run-1", "p")
    assert world.worker().link.newly_cancelled() == []
    newer.cancel("run-1", "p")
    assert len(world.worker().link.newly_cancelled()) == 1


# --- a server that forgets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked_by", ["a worker", "the sweep"])
def test_after_the_server_has_forgotten_nothing_is_lost_before_two_beats(
    world: RedisWorld, broker: RedisBroker, marked_by: str
) -> None:
    # given tasks in a queue and with a worker, and a sweep that missed none
    worker = world.worker()
    queued, forgotten, claimed = offered = tasks("a", 3)
    broker.offer([claimed, queued, forgotten])
    [job] = worker.claim()
    # when the server forgets everything, the marker too
    world.redis.flushall()
    if marked_by == "a worker":
        worker.beat()
    assert world.redis.exists(world.names.marker) == (marked_by == "a worker")
    # then nothing counts as lost, and the memory is marked as new
    assert sweeps(broker, 5) == [[]] * 5
    assert world.redis.exists(world.names.marker)
    # when two beats have passed, in which the worker has said again what it has
    worker.beat()
    worker.link.reclaim({job.job_id: (job.queue, json.dumps([["run-1", claimed.path.hex(), 1]]))})
    assert "claims:w" not in world.keys(lasting=True)
    world.forget_everything(ago_ms=TRUSTED_MS, keys=False)
    # then what nobody has is lost after two sweeps, as ever
    lost = [replace(outstanding(one), forgotten=True) for one in (queued, forgotten)]
    assert [by_path(some) for some in sweeps(broker, 3)] == [[], by_path(lost), []]
    assert broker.outstanding(["run-1"]) == [outstanding(claimed)]
    assert len(offered) == 3


def test_a_new_owner_waits_for_the_workers_of_a_server_that_has_just_forgotten(
    world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that has forgotten everything a moment ago
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    world.forget_everything()
    # when a coordinator asks for what its predecessor has handed out, then it waits until two beats have passed since
    assert world.broker().outstanding(["run-1"]) == []
    assert 0 < waited[0] <= TRUSTED_MS / 1000
    # and does not when that is over
    world.forget_everything(ago_ms=TRUSTED_MS)
    assert world.broker().outstanding(["run-1"]) == []
    assert waited[1] == 0


def test_results_that_come_after_the_server_has_forgotten_are_read_whatever_their_number(
    world: RedisWorld, broker: RedisBroker
) -> None:
    # given a coordinator that has read results
    worker = world.worker()
    worker.send(result(task("a")))
    broker.receive(LONG_SECONDS)
    # when the server forgets them, and its clock goes slow
    world.forget_everything()
    worker.send(result(task("b")))
    [(_, entry)] = world.redis.xrange(world.names.results("p"))
    world.redis.delete(world.names.results("p"))
    world.redis.xadd(world.names.results("p"), entry, id="1-1")
    # then new ones are received all the same
    broker.lost()
    assert answers_in(broker.receive(LONG_SECONDS)) == ["b"]


def test_who_was_suspended_while_the_server_forgot_hands_out_nothing(world: RedisWorld) -> None:
    # given a coordinator that is suspended, and another that has taken its partition over
    older, newer = world.broker(owns={"p": 9}), world.broker(owns={"p": 10})
    world.settled(older, newer)
    # when the server forgets everything, who owns what included, and the older one goes on
    world.forget_everything()
    # then nothing is put into a queue for it
    assert older.offer([task("a")]) == [False]
    assert world.job_ids() == []
    # and nothing for the newer one, until it has seen that the server has forgotten
    assert newer.offer([task("b")]) == [False]
    newer.lost()
    assert newer.offer([task("b")]) == [True]
    # which the older one comes too late for
    older.lost()
    assert older.offer([task("a")]) == [False]


# --- large states -------------------------------------------------------------------------------------------------------------


def uploads(world: RedisWorld) -> int:
    """How often anybody has said SET to this server."""
    calls: int = world.redis.info("commandstats").get("cmdstat_set", {"calls": 0})["calls"]
    return calls


def state_key(world: RedisWorld, state: bytes) -> str:
    return world.names.state(sha256(state).hexdigest())


def test_a_large_state_travels_once_for_all_tasks_of_a_step(world: RedisWorld, broker: RedisBroker) -> None:
    # given a step with many tasks, in two queues, and a second one with another state
    worker = world.worker("w", "default", "gpu")
    other = LARGE_STATE.replace(b"xx", b"yy")
    step = in_turn(tasks("a", 20, state=LARGE_STATE), tasks("b", 20, "gpu", state=LARGE_STATE))
    before = uploads(world)
    # when they are offered, in several calls
    for start in range(0, 40, 10):
        assert all(broker.offer(step[start : start + 10]))
    assert all(broker.offer([task("c"), task("d", "gpu", state=other), task("e", state=LARGE_STATE)]))
    # then each state was uploaded once, and no job holds it
    assert uploads(world) - before == 2
    jobs = [world.redis.hget(world.names.job(job_id), "data") for job_id in (*world.job_ids(), *world.job_ids("gpu"))]
    assert len(jobs) == 43
    assert max(map(len, jobs)) < STATE_INLINE_BYTES
    # and the tasks arrive with it
    assert {one.state for one in worker.take(10)} == {LARGE_STATE}
    # and the worker asks for it once
    world.redis.delete(state_key(world, LARGE_STATE))
    assert {one.state for one in worker.take_all()} == {LARGE_STATE, other, b'{"n":1}'}


def test_a_state_at_the_bound_travels_with_its_task(world: RedisWorld, broker: RedisBroker) -> None:
    # given a state that is just small enough, and one that is not
    small, large = (b'"%s"' % (b"x" * (STATE_INLINE_BYTES - 2 + more)) for more in (0, 1))
    broker.offer([task("a", state=small), task("b", state=large)])
    # then only the other one is uploaded
    assert [world.redis.exists(state_key(world, state)) for state in (small, large)] == [0, 1]
    assert [one.state for one in world.worker().take(2)] == [small, large]


def test_a_worker_keeps_no_more_states_than_it_may(
    world: RedisWorld, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given room for two states, of which the older one was used again
    monkeypatch.setattr("lockstep.broker.worker.STATE_CACHE_BYTES", 2 * len(LARGE_STATE))
    one, other, third = states = [LARGE_STATE.replace(b"x", letter) for letter in (b"a", b"b", b"c")]
    worker = world.worker()
    broker.offer([task(f"{n}", state=state) for n, state in enumerate([one, other, one, third])])
    # when a third one comes, and all are gone from the server
    worker.take_all()
    broker.offer([task(f"again {n}", state=state) for n, state in enumerate(states)])
    world.redis.delete(*[state_key(world, state) for state in states])
    # then those used last are still there
    assert [bool(job.refused) for job in worker.claim(3)] == [False, True, False]


def test_a_missing_state_is_asked_for_and_uploaded_again(world: RedisWorld, broker: RedisBroker) -> None:
    # given a job of tasks whose state is gone, beside one whose state is not
    worker = world.worker()
    broker.lost()
    learn(broker, worker, "node", 1.0)
    one, other = tasks("a", 2, state=LARGE_STATE)
    small = task("b")
    broker.offer([one, small, other])
    world.redis.delete(state_key(world, LARGE_STATE))
    # when a worker claims it, then it hands the tasks back with the state's hash as the reason
    [job] = worker.claim()
    assert job.refused == [each.handed_back(sha256(LARGE_STATE).hexdigest()) for each in (one, other)]
    assert job.tasks[1] == small
    worker.send(*job.refused, result(small), jobs=[job])
    messages = broker.receive(LONG_SECONDS)
    assert messages == [*job.refused, result(small)]
    # and when they are handed out again, then it is there
    again = [replace(each, delivery=2) for each in (one, other)]
    broker.offer(again)
    assert worker.take_all() == again


def test_states_are_uploaded_again_after_the_server_has_forgotten(world: RedisWorld, broker: RedisBroker) -> None:
    # given a state that was uploaded, and a server that has forgotten it
    broker.offer([task("a", state=LARGE_STATE)])
    world.forget_everything()
    broker.lost()
    # when the next task needs it, then it is there
    broker.offer([task("b", state=LARGE_STATE)])
    assert [one.state for one in world.worker().take_all()] == [LARGE_STATE]


# --- owners -------------------------------------------------------------------------------------------------------------------


def test_a_broker_receives_what_is_for_its_partitions_and_nothing_else(world: RedisWorld) -> None:
    # given two owners, and results for both and for nobody
    one, other, worker = world.broker(owns={"p": 1, "r": 1}), world.broker(owns={"q": 1}), world.worker()
    for partition in "pqrs":
        worker.send(result(task(partition)), partition=partition)
    # then each gets its own
    assert sorted(answers_in(one.receive(LONG_SECONDS))) == ["p", "r"]
    assert answers_in(other.receive(LONG_SECONDS)) == ["q"]
    # when a partition changes hands before its results were acknowledged
    one.own({"r": 1})
    other.own({"q": 1, "p": 2})
    one.acknowledge()
    # then the new owner gets them again, and nothing twice of what it had before
    assert answers_in(other.receive(LONG_SECONDS)) == ["p"]
    assert one.receive(0.0) == []
    # and what comes for it from then on is the new owner's
    worker.send(result(task("later")), partition="p")
    assert answers_in(other.receive(LONG_SECONDS)) == ["later"]
    assert one.receive(0.0) == []


def test_a_broker_that_owns_nothing_waits_until_it_is_woken(world: RedisWorld) -> None:
    # given no partition at all
    broker = world.broker(owns={})
    waiting = InThread(lambda: broker.receive(LONG_SECONDS))
    # when it is woken, then it returns
    broker.wake()
    assert waiting.answer() == []


@pytest.mark.parametrize("how", ["took over", "took over before the older one said so"])
def test_an_older_epoch_neither_enqueues_nor_deletes_results(world: RedisWorld, how: str) -> None:
    # given an owner that has received results
    older, worker = world.broker(owns={"p": 9}), world.worker()
    worker.send(result(task("a")))
    older.receive(LONG_SECONDS)
    # when another one owns the partition by now
    newer = world.broker(owns={"p": 10})
    if how != "took over":
        # and the older one, suspended since it was told that it owns the partition, goes on
        older.own({"p": 9})
    # then nothing is put into a queue for the older one
    assert older.offer(tasks("b", 2)) == [False, False]
    assert world.job_ids() == []
    # and it deletes nothing
    older.acknowledge()
    assert answers_in(newer.receive(LONG_SECONDS)) == ["a"]
    # and the newer one can do both
    assert newer.offer([task("c")]) == [True]
    newer.acknowledge()
    assert world.entries() == 0


def test_tasks_in_queues_and_with_living_workers_are_outstanding(world: RedisWorld) -> None:
    # given a coordinator that has handed out tasks of two runs
    first = world.broker()
    living, dead = world.worker("living", "a"), world.worker("dead", "b")
    claimed, dying, queued, twice = task("claimed", "a"), task("dying", "b"), task("queued"), task("twice", "a")
    other = task("other", run_id="run-2")
    first.offer([claimed, dying, queued, twice, other])
    living.claim(2)
    dead.claim()
    dead.fall_silent()
    # and one of them a second time
    again = replace(twice, delivery=2, queue="default")
    first.offer([again])
    # when another one takes over one of the runs
    second = world.settled(world.broker(owns={"p": 2}))
    found = second.outstanding(["run-1", "nowhere"])
    # then it hears of what will be answered, with the highest delivery of each
    assert by_path(found) == by_path([outstanding(claimed), outstanding(queued), outstanding(again)])
    # and follows it from now on
    world.redis.delete(world.names.queue("default"))
    living.fall_silent()
    assert [by_path(some) for some in sweeps(second, 3)] == [
        [outstanding(claimed)],
        by_path([outstanding(queued), outstanding(again)]),
        [],
    ]


def test_a_task_that_is_claimed_while_somebody_looks_is_outstanding(
    world: RedisWorld, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that claims a task between the look at the queues and the look at the workers, whichever comes first
    worker, successor = world.worker(), world.broker(owns={"p": 2})
    world.settled(successor, broker)
    broker.own({"p": 3})
    broker.offer([task("a")])

    def then_claim(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*arguments: Any) -> Any:
            found = look(*arguments)
            worker.claim()
            return found

        return looked

    monkeypatch.setattr(RedisBroker, "_queued", then_claim(RedisBroker._queued))
    monkeypatch.setattr("lockstep.broker.redis.read_presence", then_claim(read_presence))
    # then its next owner knows that it will be answered
    assert successor.outstanding(["run-1"]) == [outstanding(task("a"))]


def test_what_many_sent_while_nobody_owned_the_partition_is_received_and_deleted(world: RedisWorld) -> None:
    # given more entries than Lua's stack has places
    with world.redis.pipeline(transaction=False) as pipe:
        for _ in range(9_000):
            pipe.xadd(world.names.results("p"), {"wake": ""})
        pipe.execute()
    # when an owner comes, and reads them all before it stores anything
    broker, received = world.broker(), 0
    while messages := broker.receive(0.0):
        received += len(messages)
    broker.acknowledge()
    # then they are all gone
    assert (received, world.entries()) == (9_000, 0)


def test_the_streams_of_nobody_do_not_grow_by_waking(world: RedisWorld) -> None:
    # given clients that wake the owner of a partition again and again
    announcer = Announcer(world.url, world.namespace)
    for _ in range(MAX_WAITING + 10):
        announcer.announce("p")
    announcer.close()
    # then some of it is enough
    assert world.entries() == MAX_WAITING
    assert world.broker().receive(LONG_SECONDS) == [Wake(look=True)] * MAX_WAITING


# --- answers ------------------------------------------------------------------------------------------------------------------


def test_answers_are_sent_and_claims_given_up_together(world: RedisWorld, broker: RedisBroker) -> None:
    # given a worker with two jobs
    worker = world.worker()
    broker.offer(tasks("a", 2))
    one, other = worker.claim(2)
    # when it answers one of them for good
    entries, marker = worker.link.send({"p": [result(one.tasks[0])]}, [(one.job_id, one.queue)])
    # then it claims only the other, and knows where the answer stands and what the server's memory is called
    assert set(read_presence(world.redis, world.names).jobs) == {other.job_id}
    assert [(sent.partition_id, some) for sent, some in entries] == [("p", [result(one.tasks[0])])]
    assert world.redis.get(world.names.marker) == marker.encode()
    assert worker.link.first_entries(["p", "q"]) == ({"p": entries[0][0].entry_id, "q": None}, marker)
    # and sees when it is stored
    broker.receive(LONG_SECONDS)
    broker.acknowledge()
    assert worker.link.first_entries(["p"]) == ({"p": None}, marker)


def test_many_answers_travel_in_parts(world: RedisWorld, broker: RedisBroker) -> None:
    # given very many results
    done = tasks("a", 2 * 64 + 1)
    world.worker().send(*[result(one) for one in done])
    # then no entry is large, and all arrive in order
    assert world.entries() == 3
    assert answers_in(broker.receive(LONG_SECONDS)) == names_of(done)


GARBAGE = [
    b"",
    b"garbage",
    b"\xff\xfe",
    b"{}",
    b'[{"run_id":1}]',
    b'[{"run_id":"r","path":"no base64!","delivery":1}]',
    b"[[]]",
]


def kept_aside(world: RedisWorld) -> list[tuple[str, str, bytes]]:
    """What is in quarantine: what kind of message, where it came from, and what it says."""
    entries = Quarantine(world.redis, world.names).entries(100)
    assert all(entry.reason for entry in entries)
    return [(entry.kind, entry.place, entry.data) for entry in entries]


def test_results_that_cannot_be_read_are_kept_aside_and_stop_nothing(world: RedisWorld, broker: RedisBroker) -> None:
    # given results between which there is all kinds of garbage
    worker, done = world.worker(), tasks("a", len(GARBAGE) + 1)
    worker.send(result(done[0]))
    for one, garbage in zip(done[1:], GARBAGE, strict=True):
        world.redis.xadd(world.names.results("p"), {"results": garbage})
        worker.send(result(one))
    # when they are received
    with capture_logs() as logs:
        messages = broker.receive(LONG_SECONDS)
    # then the results arrive, in order, and between them that there was something else
    assert messages == [result(done[0]), *[message for one in done[1:] for message in (Unreadable(), result(one))]]
    # and each piece of garbage is logged, and kept aside
    assert [entry["log_level"] for entry in logs] == ["error"] * len(GARBAGE)
    assert kept_aside(world) == [("result", "p", garbage) for garbage in GARBAGE]
    # and gone with the others
    broker.acknowledge()
    assert world.entries() == 0


def test_what_is_kept_aside_is_bounded(world: RedisWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    # given room for three messages of ten bytes
    monkeypatch.setattr("lockstep.broker.quarantine.MAX_ENTRIES", 3)
    monkeypatch.setattr("lockstep.broker.quarantine.MAX_DATA_BYTES", 10)
    quarantine = Quarantine(world.redis, world.names)
    for number in range(5):
        quarantine.add("result", "p", "why", b"%d" % number * 20)
    # then the newest are there, of each the beginning; and all of it has an end
    entries = quarantine.entries(100)
    assert [(entry.data, entry.size, entry.is_whole) for entry in entries] == [(b"%d" % n * 10, 20, False) for n in (2, 3, 4)]
    assert 0 < int(world.redis.ttl(world.names.quarantine)) <= KEPT_SECONDS  # type: ignore[arg-type]
    assert quarantine.drop(entries[0].entry_id) and not quarantine.drop(entries[0].entry_id)
    assert quarantine.entry(entries[0].entry_id) is None and quarantine.entry(entries[1].entry_id) == entries[1]


def test_a_result_that_was_kept_aside_can_be_sent_again(world: RedisWorld, broker: RedisBroker) -> None:
    # given a result that a coordinator could not use
    broker.set_aside("p", result(task("a")), "too large")
    [entry] = Quarantine(world.redis, world.names).entries(1)
    # when it is sent again, then it arrives as it was
    Quarantine(world.redis, world.names).retry(entry)
    assert broker.receive(LONG_SECONDS) == [result(task("a"))]
    assert kept_aside(world) == []


def test_jobs_that_cannot_be_read_are_kept_aside_and_stop_nothing(world: RedisWorld, broker: RedisBroker) -> None:
    # given jobs of others between two of ours: pickled, for another function, garbage, without a hash, of another type
    data = [
        pickle.dumps(("os.system", None, ("true",), {})),
        b'["os.system",null,[[]],{}]',
        JOB_HEAD + b"garbage" + JOB_TAIL,
        JOB_HEAD + b'{"run_id":"r"}' + JOB_TAIL,
    ]
    broker.offer([task("a")])
    for number, one in enumerate(data):
        world.redis.hset(world.names.job(f"other-{number}"), "data", one)
    world.redis.set(world.names.job("other-type"), "no hash")
    world.redis.rpush(world.names.queue("default"), *[f"other-{n}" for n in range(len(data))], "other-none", "other-type")
    broker.offer([task("b")])
    # when a worker claims them
    worker = world.worker()
    with capture_logs() as logs:
        jobs = worker.claim(100)
    # then it gets ours, and says which it could not read
    assert names_of(one for job in jobs for one in job.tasks) == ["a", "b"]
    assert [entry["log_level"] for entry in logs] == ["error"] * len(data)
    # of a job that can be read, the task alone that cannot
    data[-1] = b'{"run_id":"r"}'
    assert kept_aside(world) == [("task", "default", one) for one in data]
    assert worker.link.quarantined == len(data)
    # and nothing is left of the others
    assert set(read_presence(world.redis, world.names).jobs) == {job.job_id for job in jobs}
    assert not world.redis.exists(world.names.queue("default"), *[world.names.job(f"other-{n}") for n in (0, 1, 2, 3, "type")])
    assert broker.depth("default") == 0


# --- keys ---------------------------------------------------------------------------------------------------------------------

PERMANENT = {"marker", "epochs", "rq:queues", "depth:default", "bell:default", "results:p"}
"""Keys that stay for good: one each for a namespace, a queue, or a partition."""


def test_whatever_remains_expires_or_is_known(world: RedisWorld) -> None:
    # given all that brokers and workers do: batches, large states, refusals, handing back, and a worker that dies
    broker = world.broker(100)
    dead, worker = world.worker("dead"), world.worker()
    world.settled(broker)
    learn(broker, worker, "node", 1.0)
    broker.offer([*tasks("a", 90), task("b", node_id="other", state=LARGE_STATE)])
    dead.claim()
    broker.offer(tasks("c", 120, state=LARGE_STATE))
    # then of what is going on, too, everything expires but what stands in lists that others clear
    assert world.keys(lasting=True) == PERMANENT | {"beats", "refused:default", "rq:queue:default", "rq:wip:default"}
    assert {"claims:dead", "worker:dead", "worker:w"} <= world.keys()
    # when one has been dead for long, and the others have finished
    world.redis.zincrby(world.names.beats, -PRESENCE_TTL_SECONDS * 1000 - 1, "dead")
    assert broker.lost()
    while jobs := worker.claim(10):
        worker.work(jobs)
    worker.send(HandedBack(run_id="run-1", path=path_of("a0"), delivery=1))
    # and all is acknowledged, and all workers have left
    while broker.receive(0.0):
        pass
    broker.acknowledge()
    worker.leave()
    # then what does not expire is known
    assert world.keys(lasting=True) == PERMANENT
    assert world.entries() == 0


# --- a server that refuses ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[Callable[..., RedisServer]]:
    """Starts servers that a test may stop."""
    started: list[RedisServer] = []

    def start(*settings: str, password: str = "") -> RedisServer:
        started.append(RedisServer(*settings, password=password))
        return started[-1]

    yield start
    for server in started:
        server.stop()


CALLS: dict[str, Callable[[RedisBroker], object]] = {
    "offer": lambda broker: broker.offer([task("a")]),
    "receive": lambda broker: broker.receive(LONG_SECONDS),
    "acknowledge": lambda broker: broker.acknowledge(),
    "outstanding": lambda broker: broker.outstanding(["run-1"]),
    "lost": lambda broker: broker.lost(),
    "depth": lambda broker: broker.depth("default"),
    "own": lambda broker: broker.own({"p": 2}),
}


def test_a_server_that_is_away_is_one_kind_of_error_without_the_password(own_server: Callable[..., RedisServer]) -> None:
    # given a broker with results that are not acknowledged
    server = own_server(password=PASSWORD)
    with RedisWorld(server.url) as world:
        broker = world.broker()
        world.worker().send(result(task("a")))
        broker.receive(LONG_SECONDS)
        # when the server is away, then whatever is asked of it says so, and where it was, but for the password
        server.stop()
        for call in CALLS.values():
            with pytest.raises(BrokerUnavailableError, match="does not work") as raised:
                call(broker)
            assert raised.value.url == f"redis://:***@127.0.0.1:{server.port}/0"
            assert raised.value.url in str(raised.value)
            assert PASSWORD not in f"{raised.value!r} {raised.value.fields}"
        # and when it is back, with another memory, the same broker works again
        server.start()
        assert broker.offer([task("b")]) == [True]
        assert names_of(world.worker().take()) == ["b"]


def test_a_server_that_does_not_let_us_in_is_named_without_the_password(own_server: Callable[..., RedisServer]) -> None:
    # given a wrong password, or nobody there
    server = own_server(password=PASSWORD)
    for url in (server.url.replace(PASSWORD, "wr0ng"), f"redis://me:wr0ng@127.0.0.1:{free_port()}/0"):
        with pytest.raises(BrokerUnavailableError, match=r":\*\*\*@127\.0\.0\.1") as raised:
            RedisBroker(url, "t", 1)
        assert "wr0ng" not in str(raised.value)


def test_a_url_that_is_none_is_refused_without_the_password() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as raised:
        RedisBroker(f"http://me:{PASSWORD}@host", "t", 1)
    assert PASSWORD not in str(raised.value)


def test_a_server_without_memory_takes_no_task_and_gives_all_that_frees_some(own_server: Callable[..., RedisServer]) -> None:
    # given a coordinator with tasks in a queue and with a worker, and results to read
    with RedisWorld(own_server().url) as world:
        broker, worker = world.settled(world.broker()), world.worker()
        queued, claimed = tasks("a", 2)
        broker.offer([claimed, queued])
        [job] = worker.claim()
        worker.send(result(task("b")))
        worker.fall_silent()
        # when the server has no memory left
        world.redis.config_set("maxmemory", 1)
        # then it takes no task, with a large state or not, and the coordinator hears that there is no room
        assert broker.offer([task("c"), task("d", "gpu", state=LARGE_STATE)]) == [False, False]
        # but workers beat, so they keep what they have, and can take more
        worker.beat()
        assert sweeps(broker, 3) == [[], [], []]
        assert worker.take_all() == [queued]
        # and another coordinator can take over, with all that is known
        successor = world.broker(owns={"p": 2})
        assert by_path(successor.outstanding(["run-1"])) == by_path(map(outstanding, (claimed, queued)))
        # and results are read and deleted
        assert answers_in(successor.receive(LONG_SECONDS)) == ["b"]
        successor.acknowledge()
        assert world.entries() == 0
        # and when it has some again, all goes on, the upload too
        world.redis.config_set("maxmemory", 0)
        worker.work([job])
        broker.own({"p": 3})
        assert broker.offer([task("e", state=LARGE_STATE)]) == [True]
        assert [one.state for one in worker.take_all()] == [LARGE_STATE]


def test_a_server_that_forgets_while_it_has_no_memory_can_be_used(own_server: Callable[..., RedisServer]) -> None:
    # given a server that has nothing, and no memory for anything
    with RedisWorld(own_server().url) as world:
        world.redis.config_set("maxmemory", 1)
        # then coordinators and workers wait for better times
        broker, worker = world.broker(), world.worker()
        assert broker.lost() == []
        assert broker.offer([task("a")]) == [False]
        assert worker.claim() == []
        # and waking somebody is no error
        broker.wake()


def test_a_server_that_would_evict_is_refused(own_server: Callable[..., RedisServer]) -> None:
    server = own_server("--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match=r"allkeys-lru.*noeviction") as raised:
        RedisBroker(server.url, "t", 1)
    assert raised.value.option == "redis"


def test_a_cluster_is_refused(own_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = own_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--dir", str(tmp_path))
    with pytest.raises(ConfigurationError, match="cluster") as raised:
        RedisBroker(server.url, "t", 1)
    assert raised.value.option == "redis"


def test_a_server_that_hides_its_configuration_is_taken_at_its_word(own_server: Callable[..., RedisServer]) -> None:
    server = own_server("--rename-command", "CONFIG", "")
    with RedisWorld(server.url) as world:
        assert world.broker().offer([task("a")]) == [True]
