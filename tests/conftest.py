"""What several suites share: a Redis of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server that tests may flush; each keeps to a namespace of its own."""
    server = RedisServer()
    yield server
    server.stop()
