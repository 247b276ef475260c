"""What nobody of ours has sent: it is kept aside, hurts nothing that came with it, and people can look at it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.distributed.conftest import COMMAND, Cluster, Ledger, assert_as_embedded
from tests.distributed.test_operations import metric
from tests.servers import free_port

from lockstep.core.frontier import decode_frontier
from lockstep.records import TaskResult
from lockstep.wire import encode_results

GARBAGE = [b"", b"null", b"{", b"\xff\xfe", b"[" * 3000, b'[{"run_id":7}]', b'[{"run_id":"r","path":"?","delivery":1}]']
GARBAGE += [b"x" * 300_000]


def quarantine(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "quarantine", "--redis", cluster.redis_url, *arguments]
    return subprocess.run(command, env=cluster.environment(), capture_output=True, text=True, timeout=60)


def kept(cluster: Cluster) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(quarantine(cluster, "--json").stdout)
    return listed


def test_tasks_that_nobody_can_read_are_kept_aside_and_handed_out_again(cluster: Cluster, ledger: Ledger) -> None:
    # given runs whose tasks wait in the queue, and jobs of which somebody has spoilt what they say
    cluster.coordinator()
    value = {"width": 12, "ledger": str(ledger)}
    runs = {cluster.client.submit("fan", value): ("fan", value) for _ in range(3)}
    cluster.until(lambda: cluster.queued() == 3, "the first tasks wait")
    jobs: Any = cluster.redis.lrange(cluster.names.queue("default"), 0, -1)
    cluster.redis.hset(cluster.names.job(jobs[0].decode()), "data", b"\x80\x04K\x01.")
    cluster.redis.hset(cluster.names.job(jobs[1].decode()), mapping={"data": b'["os.system",null,[["id"]],{}]', "tasks": "?"})
    cluster.redis.rpush(cluster.names.queue("default"), "a-job-that-is-not-there")

    # when a worker comes, then all runs end as they should
    port = free_port()
    cluster.worker(LOCKSTEP_METRICS_PORT=str(port))
    assert_as_embedded(runs)
    # and what could not be read is listed, with the reason, and counted
    tasks = kept(cluster)
    assert [(task["kind"], task["place"], task["size"]) for task in tasks] == [("task", "default", 5), ("task", "default", 30)]
    assert tasks[1]["reason"] and "os.system" in tasks[1]["data"]
    assert metric(port, "lockstep_quarantined_messages_total") == 2
    # and nothing can be done but to forget it: the task was handed out again
    refused = quarantine(cluster, "--retry", tasks[0]["id"])
    assert refused.returncode == 2 and "has handed it out again" in refused.stderr
    assert quarantine(cluster, "--drop", tasks[0]["id"]).returncode == 0
    assert [task["id"] for task in kept(cluster)] == [tasks[1]["id"]]


def test_results_that_nobody_can_read_are_kept_aside(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given runs under way
    port = free_port()
    cluster.coordinator(LOCKSTEP_METRICS_PORT=str(port))
    cluster.worker()
    value = {"width": 6, "ledger": str(ledger), "gate": str(gate)}
    runs = {cluster.client.submit("fan", value): ("fan", value) for _ in range(3)}
    cluster.until(lambda: len(ledger) >= 3, "nodes run")

    # when somebody sends garbage to the owners of all partitions, and a result for a true item with nothing sensible in it
    run = next(iter(runs))
    row = run.row()
    [step] = cluster.client.reader.steps(run.run_id, row.step_id, row.step_id)
    item = decode_frontier(step.frontier, row.step_id).items[0]
    forged = TaskResult(run_id=run.run_id, path=item.path, delivery=1, outcome=b'{"writes":[7]}')
    for partition_id in cluster.client.reader.partitions():
        for data in GARBAGE:
            cluster.redis.xadd(cluster.names.results(partition_id), {"results": data})
    cluster.redis.xadd(cluster.names.results(row.partition_id), {"results": encode_results([forged])})
    cluster.redis.zadd(cluster.names.beats, {"nobody": cluster.now() * 1000})
    cluster.redis.set(cluster.names.worker("nobody"), b"?", ex=60)
    cluster.redis.hset(cluster.names.claims("nobody"), "a-job", b"?")
    sent = len(cluster.client.reader.partitions()) * len(GARBAGE) + 1
    cluster.until(lambda: metric(port, "lockstep_quarantined_messages_total") == sent, "all of it is kept aside")

    # then it is listed; of what is large, the beginning was kept; and a message can be sent again, which changes nothing
    listed = kept(cluster)
    assert len(listed) == min(sent, 100)
    assert {"result"} == {message["kind"] for message in listed}
    large = next(message for message in listed if message["size"] == 300_000)
    assert len(large["data"]) == 256 * 1024
    assert "only the beginning was kept" in quarantine(cluster, "--retry", large["id"]).stderr
    assert quarantine(cluster, "--retry", listed[0]["id"]).returncode == 0
    cluster.until(lambda: metric(port, "lockstep_quarantined_messages_total") == sent + 1, "it has come again")
    assert "there is no message '7'" in quarantine(cluster, "--drop", "7").stderr
    # and when the nodes may end, the runs end as if nothing had been
    cluster.redis.delete(cluster.names.worker("nobody"), cluster.names.claims("nobody"))
    gate.touch()
    assert_as_embedded(runs)


def test_with_a_key_only_what_is_signed_counts(cluster: Cluster, ledger: Ledger, gate: Path) -> None:
    # given a coordinator and a worker with a key, and runs under way
    key = {"LOCKSTEP_SIGNING_KEY": "k" * 32}
    cluster.coordinator(**key)
    cluster.worker(**key)
    value = {"width": 6, "ledger": str(ledger), "gate": str(gate)}
    runs = {cluster.client.submit("fan", value): ("fan", value) for _ in range(3)}
    large = cluster.client.submit("chain", {"steps": 3, "seen": list(range(5000))})
    cluster.until(lambda: len(ledger) >= 3, "nodes run")
    # when somebody without it sends a result that looks right, for an item that runs
    run = next(iter(runs))
    row = run.row()
    [step] = cluster.client.reader.steps(run.run_id, row.step_id, row.step_id)
    item = decode_frontier(step.frontier, row.step_id).items[0]
    forged = encode_results([TaskResult(run_id=run.run_id, path=item.path, delivery=1, outcome=b'{"writes":[["n",99]]}')])
    for fields in ({"results": forged}, {"results": forged, "signed": b"9999999999." + b"0" * 64}):
        cluster.redis.xadd(cluster.names.results(row.partition_id), fields)
    cluster.until(lambda: len(kept(cluster)) == 2, "both are kept aside")
    # then it does not count
    assert [message["reason"] for message in kept(cluster)] == [
        "it is not signed",
        "its signature is not that of a key that is known here",
    ]
    gate.touch()
    assert_as_embedded(runs)
    assert large.result(60)["n"] == 3


def test_a_worker_with_a_key_does_not_execute_what_is_not_signed(cluster: Cluster, ledger: Ledger) -> None:
    # given a coordinator without a key, and a worker with one
    cluster.coordinator()
    cluster.worker(LOCKSTEP_SIGNING_KEY="k" * 32)
    run = cluster.client.submit("fan", {"width": 2, "ledger": str(ledger)})
    # then nothing runs, the reason can be seen, and the run ends
    cluster.until(lambda: run.status == "failed", "the run fails")
    assert run.row().error is not None and b"PoisonError" in (run.row().error or b"")
    assert {(message["kind"], message["reason"]) for message in kept(cluster)} == {("task", "it is not signed")}
    assert len(ledger) == 0
    # and with the key everywhere, it goes on
    cluster.terminate(cluster.coordinators[0])
    cluster.coordinator(LOCKSTEP_SIGNING_KEY="k" * 32)
    run.retry()
    run.result(60)
