"""Settings of the command line: flags first, then LOCKSTEP_* variables, then defaults. The only reader of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import msgspec

DEFAULT_STORE_URL = "sqlite:///lockstep.db"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every command may need. `graphs` are MODULE:NAME references."""

    store_url: str = DEFAULT_STORE_URL
    graphs: tuple[str, ...] = ()


VARIABLES = {
    "LOCKSTEP_STORE_URL": "store_url",
    "LOCKSTEP_GRAPHS": "graphs",
}
"""The variables that are read, and the setting that each one gives."""


def masked(url: str) -> str:
    """The URL without its password, for people to see."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)


def read_settings(
    *, store: str | None = None, graphs: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings: a flag that is given wins over its variable. `environment` replaces the process's, for tests."""
    env = os.environ if environment is None else environment
    listed = env.get("LOCKSTEP_GRAPHS", "")
    return Settings(
        store_url=store or env.get("LOCKSTEP_STORE_URL") or DEFAULT_STORE_URL,
        graphs=tuple(graphs) or tuple(name.strip() for name in listed.split(",") if name.strip()),
    )
