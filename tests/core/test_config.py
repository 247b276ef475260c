"""Settings: what wins, what is refused, and what nobody may see."""

from __future__ import annotations

import pytest

from lockstep.config import masked, read_settings
from lockstep.errors import ConfigurationError


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
