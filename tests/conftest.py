"""What several suites share: a Redis of the tests' own, and random numbers that can be had again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server that tests may flush; each keeps to a namespace of its own."""
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Random:
    """Random numbers, other ones each time. A failure shows their seed; LOCKSTEP_TEST_SEED gives the same ones again."""
    seed = int(os.environ.get("LOCKSTEP_TEST_SEED") or int.from_bytes(os.urandom(8), "big"))
    request.node.add_report_section("call", "seed", f"LOCKSTEP_TEST_SEED={seed}")
    return Random(seed)
