"""Over servers in containers, as users of testcontainers have them: Redis with PostgreSQL, and with MySQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from testcontainers.community.mysql import MySqlContainer
from testcontainers.community.postgres import PostgresContainer
from testcontainers.community.redis import RedisContainer
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Ledger, assert_as_embedded

from lockstep.fsck import check_store


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisContainer("redis:7", port=6379).with_command("redis-server --maxmemory-policy noeviction") as server:
        yield f"redis://{server.get_container_host_ip()}:{server.get_exposed_port(6379)}/0"


@pytest.fixture(scope="module", params=["postgres", "mysql"])
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "postgres":
        with PostgresContainer("postgres:16", driver="psycopg") as server:
            yield server.get_connection_url()
    else:
        with MySqlContainer("mysql:8", dialect="pymysql") as server:
            yield server.get_connection_url()


@pytest.fixture
def cluster(store_url: str, redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(store_url, redis_url, tmp_path)
    yield cluster
    cluster.close()


def test_runs_give_the_same_bytes_over_containers(cluster: Cluster) -> None:
    cluster.coordinator()
    cluster.worker()
    cluster.worker()
    values = [("chain", {"steps": 20}), ("fan", {"width": 50}), ("nests", {"width": 3, "steps": 3})]
    runs = {cluster.client.submit(graph, value): (graph, value) for graph, value in values for _ in range(5)}
    assert_as_embedded(runs)
    assert list(check_store(cluster.client.reader)) == []


def test_killed_processes_lose_nothing_over_containers(cluster: Cluster, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    coordinator, worker = cluster.coordinator(), cluster.worker()
    run = cluster.client.submit("chain", {"steps": 50, "delay_ms": 20, "ledger": str(ledger)})
    cluster.until(lambda: len(ledger) > 5, "it is under way")
    cluster.kill(coordinator)
    cluster.kill(worker)
    journalled, starts = cluster.journalled(run), ledger.counts()
    cluster.coordinator()
    cluster.worker()
    assert run.result(2 * PATIENCE_SECONDS)["seen"] == list(range(50))
    assert not {item for item, count in ledger.counts().items() if count > starts[item] and item in journalled}
