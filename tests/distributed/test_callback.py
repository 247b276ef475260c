"""Answers over HTTP: a link answers its question and nothing else, whoever has died meanwhile."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.distributed.conftest import PATIENCE_SECONDS, Cluster, Ledger
from tests.servers import free_port

from lockstep import ConfigurationError
from lockstep.callbacks import callback_path, callback_token

KEY = "k" * 32


def post(port: int, path: str, body: bytes | None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_an_answer_comes_by_its_link_when_all_others_have_died(cluster: Cluster, ledger: Ledger) -> None:
    # given a run that waits for two answers, and nobody but who takes them
    coordinator, worker = cluster.coordinator(), cluster.worker()
    run = cluster.client.submit("asks", {"ledger": str(ledger)}, run_id="run")
    cluster.until(lambda: run.status == "interrupted", "it waits")
    cluster.kill(coordinator)
    cluster.kill(worker)
    one, other = run.interrupts()
    port = free_port()
    taking = cluster.spawn("callback", "--store", cluster.store_url, "--port", str(port), graphs=(), LOCKSTEP_CALLBACK_KEY=KEY)

    def answered(path: str, value: Any) -> tuple[int, str]:
        return post(port, path, json.dumps(value).encode())

    def listens() -> bool:
        try:
            return post(port, "/", b"")[0] == 404
        except OSError:
            return False

    try:
        cluster.until(listens, "it listens")
        # what is wrong changes nothing
        mine = callback_path(KEY, "run", one.id)
        wrong = callback_path("x" * 32, "run", one.id)
        borrowed = mine.replace(one.id, other.id)
        assert answered(wrong, 7) == answered(borrowed, 7) == (403, "the token is not that of this question\n")
        assert answered(mine.split("?")[0], 7)[0] == 403
        assert answered("/runs/run", 7)[0] == 404
        assert answered(callback_path(KEY, "nobody", one.id), 7)[0] == 404
        assert post(port, mine, b"{")[0] == 400
        assert post(port, mine, b"7", **{"Content-Length": str(10**9)})[0] == 413
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{mine}", timeout=10)  # Whoever only looks answers nothing.
        assert run.interrupts() == [one, other]

        # when both links are used, each once
        assert answered(mine, 7) == (202, "taken\n")
        assert answered(callback_path(KEY, "run", other.id), 3) == (202, "taken\n")
        cluster.coordinator()
        cluster.worker()
        # Nobody has told this `run` of the answers, so it may still be at rest for it.
        cluster.until(lambda: run.status == "succeeded", "it ends")
        state = run.result()
        assert (state["n"], state["width"]) == (7, 3)
        assert answered(mine, 8) == (404, "nobody waits for this answer any more\n")
    finally:
        taking.send_signal(signal.SIGTERM)
        assert taking.wait(PATIENCE_SECONDS) == 0, cluster.said()
    assert KEY not in cluster.said() and callback_token(KEY, "run", one.id) not in cluster.said()


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="32 characters"):
        callback_path("short", "run", "id")


def test_tokens_tell_run_and_question_apart() -> None:
    assert callback_token(KEY, "ab", "c") != callback_token(KEY, "a", "bc")
