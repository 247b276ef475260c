"""What models cost on workers elsewhere bounds a run, whoever owns it."""

from __future__ import annotations

import json
import os
import subprocess
from decimal import Decimal

import pytest
from tests.distributed.conftest import COMMAND, PATIENCE_SECONDS, Cluster

from lockstep import BudgetExceededError, Options


def test_a_run_pauses_at_its_budget_and_goes_on_under_another_coordinator(cluster: Cluster) -> None:
    # given workers with prices of their own
    prices = cluster.folder / "prices.json"
    prices.write_text('{"source": "us", "date": "2026-11-27", "prices": {"model of ours": {"input": "0.5", "output": "1"}}}')
    coordinator = cluster.coordinator()
    cluster.worker(LOCKSTEP_PRICES=str(prices))
    run = cluster.client.submit("pays", {}, run_id="run", options=Options(max_cost_usd=Decimal("0.9")))
    with pytest.raises(BudgetExceededError, match=r"has spent 1 USD, and max_cost_usd is 0\.9"):
        run.result(PATIENCE_SECONDS)
    # when its coordinator dies, and another one is told what the run may cost
    cluster.kill(coordinator)
    cluster.coordinator()
    arguments = ["resume", "run", "--max-cost-usd", "1.5", "--store", cluster.store_url, "--redis", cluster.redis_url]
    environment = {**os.environ, **cluster.environment()}
    resumed = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert resumed.returncode == 0, resumed.stderr
    # then it goes on from what it has spent, no node has run twice, and it pauses there
    cluster.until(lambda: run.row().step_id == 3, "it goes on")
    with pytest.raises(BudgetExceededError, match=r"has spent 1\.5 USD"):
        run.result(PATIENCE_SECONDS)
    shown = subprocess.run(
        [*COMMAND, "show", "run", "--json", "--store", cluster.store_url], env=environment, capture_output=True, text=True
    )
    assert (json.loads(shown.stdout)["cost_usd"], json.loads(shown.stdout)["status"]) == ("1.5", "paused")
    run.resume()
    assert run.result(PATIENCE_SECONDS)["n"] == 4
    assert run.costs().by_model["model of ours"].calls == 4
