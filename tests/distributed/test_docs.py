"""The examples of pages that need servers are executed too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.distributed.conftest import Cluster
from tests.house.test_docs import NEED_SERVERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", sorted(NEED_SERVERS))
def test_examples_run(cluster: Cluster, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a coordinator, a worker, and the variables that the page names
    cluster.coordinator()
    cluster.worker()
    monkeypatch.setenv("LOCKSTEP_STORE_URL", cluster.store_url)
    monkeypatch.setenv("LOCKSTEP_REDIS_URL", cluster.redis_url)
    monkeypatch.setenv("LOCKSTEP_NAMESPACE", cluster.namespace)
    # when its blocks are executed, then what they assert holds
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec", dont_inherit=True), {})
