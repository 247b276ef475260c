"""Settings: what wins, what is refused, and what nobody may see."""

from __future__ import annotations

import pytest

from lockstep.config import Settings, masked, read_settings
from lockstep.errors import ConfigurationError
from lockstep.records import Retention, Retentions


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://:se@cret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://host/0?password=secret&timeout=1", "redis://host/0?password=***&timeout=1"),
        ("postgresql+psycopg://user:secret@host/name", "postgresql+psycopg://user:***@host/name"),
        ("postgresql+psycopg://user@host/name", "postgresql+psycopg://user@host/name"),
        ("sqlite:///folder/a@b.db", "sqlite:///folder/a@b.db"),
    ],
)
def test_a_password_is_masked_wherever_it_stands(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_a_flag_wins_over_its_variable() -> None:
    environment = {"LOCKSTEP_REDIS_URL": "redis://variable", "LOCKSTEP_STORE_URL": "sqlite:///variable.db"}
    settings = read_settings(redis="redis://flag", environment=environment)
    assert (settings.redis_url, settings.store_url) == ("redis://flag", "sqlite:///variable.db")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LOCKSTEP_METRICS_PORT", "many"),
        ("LOCKSTEP_METRICS_PORT", "65536"),
        ("LOCKSTEP_METRICS_PORT", "-1"),
        ("LOCKSTEP_NAMESPACE", "a b"),
        ("LOCKSTEP_NAMESPACE", "a:b"),
        ("LOCKSTEP_NAMESPACE", "x" * 65),
    ],
)
def test_a_value_that_cannot_be_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        read_settings(environment={variable: value})


DAY = 86_400.0


@pytest.mark.parametrize(
    ("text", "default", "audit"),
    [
        ("30d", Retention(max_age_seconds=30 * DAY), Retention(max_age_seconds=30 * DAY)),
        ("12h/100", Retention(max_age_seconds=DAY / 2, max_runs=100), Retention(max_age_seconds=DAY / 2, max_runs=100)),
        ("off", Retention(), Retention()),
        ("off/5, audit=90s", Retention(max_runs=5), Retention(max_age_seconds=90)),
        ("audit=15m/0", Retention(), Retention(max_age_seconds=900, max_runs=0)),
    ],
)
def test_how_long_runs_are_kept(text: str, default: Retention, audit: Retention) -> None:
    retentions = read_settings(environment={"LOCKSTEP_RETENTION": text}).retention
    assert (retentions.of("research"), retentions.of("audit")) == (default, audit)


def test_runs_are_kept_for_30_days_unless_somebody_says_otherwise() -> None:
    assert read_settings(environment={}).retention == Settings().retention == Retentions(Retention(max_age_seconds=30 * DAY))
    assert read_settings(retention="off", environment={"LOCKSTEP_RETENTION": "1d"}).retention.of("any").keeps_all


@pytest.mark.parametrize("text", ["30", "d", "-1d", "30d/many", "audit=", "1w", "30d/-1", "audit=soon", "9999999999d"])
def test_a_retention_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="LOCKSTEP_RETENTION") as caught:
        read_settings(environment={"LOCKSTEP_RETENTION": text})
    assert caught.value.option is not None
