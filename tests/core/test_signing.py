"""A signature counts for just what was signed, there where it was signed for, for a while, and for those who have the key."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from lockstep.broker.signing import RESULT_SECONDS, TASK_SECONDS, Signer
from lockstep.config import Settings, read_settings
from lockstep.errors import ConfigurationError

OLD, NEW = "o" * 32, "n" * 40
TASK = b'{"run_id":"r","path":"AA==","delivery":1}'
RESULTS = b'[{"run_id":"r","path":"AA==","delivery":1,"outcome":{}}]'


@pytest.fixture
def signer() -> Signer:
    return Signer("ns", [NEW])


def test_what_was_signed_counts_where_it_was_signed_for(signer: Signer) -> None:
    signed = signer.sign_task("gpu", TASK)
    signer.check_task("gpu", signed)
    assert signed.startswith(TASK[:-1]) and signed.endswith(b'"}')
    signature = signer.sign_results("p01", RESULTS)
    signer.check_results("p01", RESULTS, signature)

    # and in no other queue, partition, namespace or direction, and not under another key
    for other in (signer, Signer("other", [NEW]), Signer("ns", [OLD])):
        with pytest.raises(ValueError, match="not that of a key that is known here"):
            other.check_task("gpu" if other is not signer else "default", signed)
        with pytest.raises(ValueError, match="not that of a key that is known here"):
            other.check_results("p01" if other is not signer else "p02", RESULTS, signature)
    with pytest.raises(ValueError, match="not that of a key"):
        signer.check_results("p01", TASK, signed[-77:-2])


def test_any_change_is_noticed(signer: Signer, rng: Random) -> None:
    signed, signature = signer.sign_task("q", TASK), signer.sign_results("p", RESULTS)
    for _ in range(1000):
        place, byte = rng.randrange(len(signed)), bytes([rng.randrange(256)])
        for changed in (signed[:place] + signed[place + 1 :], signed[:place] + byte + signed[place:]):
            with pytest.raises(ValueError):
                signer.check_task("q", changed)
        place = rng.randrange(len(RESULTS))
        with pytest.raises(ValueError):
            signer.check_results("p", RESULTS[:place] + RESULTS[place + 1 :], signature)
        place = rng.randrange(len(signature))
        with pytest.raises(ValueError):
            signer.check_results("p", RESULTS, signature[:place] + byte + signature[place:])


@pytest.mark.parametrize("signature", [None, b"", b"1.2", b"x" * 75])
def test_what_is_not_signed_is_refused(signer: Signer, signature: bytes | None) -> None:
    with pytest.raises(ValueError, match="it is not signed"):
        signer.check_results("p", RESULTS, signature)
    with pytest.raises(ValueError, match="it is not signed"):
        signer.check_task("q", TASK)


def test_a_signature_ends_to_count(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    signed, signature = signer.sign_task("q", TASK), signer.sign_results("p", RESULTS)
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0 + TASK_SECONDS - 1)
    signer.check_task("q", signed)
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0 + TASK_SECONDS + 1)
    with pytest.raises(ValueError, match="has expired"):
        signer.check_task("q", signed)
    signer.check_results("p", RESULTS, signature)
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0 + RESULT_SECONDS + 1)
    with pytest.raises(ValueError, match="has expired"):
        signer.check_results("p", RESULTS, signature)


def test_a_rotation_needs_no_pause() -> None:
    # given the rounds of a rotation
    rounds = [Signer("ns", keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW])]
    # then, while one takes the place of the other, both understand each other
    for one, other in pairwise(rounds):
        one.check_task("q", other.sign_task("q", TASK))
        other.check_task("q", one.sign_task("q", TASK))
    # and in the end the old key counts no more
    with pytest.raises(ValueError):
        rounds[-1].check_task("q", rounds[0].sign_task("q", TASK))


def test_the_keys_come_from_the_environment_and_are_never_shown() -> None:
    settings = read_settings(environment={"LOCKSTEP_SIGNING_KEY": f"{NEW},{OLD}"})
    assert settings.signing_keys == (NEW, OLD)
    for keys in ("short", f"{NEW},short", f"{NEW},{OLD},{'x' * 32}"):
        with pytest.raises(ConfigurationError, match="openssl rand -hex 32") as caught:
            read_settings(environment={"LOCKSTEP_SIGNING_KEY": keys})
        assert caught.value.option == "signing_keys"
        assert not any(key in str(caught.value) for key in keys.split(","))


def test_settings_show_no_secrets() -> None:
    settings = Settings(
        store_url="postgresql://me:s3cret@db/x",
        redis_url="redis://:s3cret@redis:6379/0",
        webhook_secret="s3cret",
        signing_keys=("s3cret" * 6,),
        sinks=("webhook:https://me:s3cret@host/",),
    )
    assert "s3cret" not in repr(settings) and "s3cret" not in str(settings)
    assert "redis:6379" in repr(settings) and "namespace='lockstep'" in repr(settings)
