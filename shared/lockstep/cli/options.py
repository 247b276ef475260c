"""Flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def store_option(function: F) -> F:
    """`--store`."""
    return click.option(
        "--store",
        metavar="URL",
        help="The database: sqlite:///path, postgresql+psycopg://... or mysql+pymysql://... "
        "Default: $LOCKSTEP_STORE_URL, or sqlite:///lockstep.db.",
    )(function)


def redis_option(function: F) -> F:
    """`--redis`."""
    return click.option(
        "--redis", metavar="URL", help="Redis. Default: $LOCKSTEP_REDIS_URL, or redis://127.0.0.1:6379/0 where it is needed."
    )(function)


def graphs_option(function: F) -> F:
    """`--graphs`."""
    return click.option(
        "--graphs", multiple=True, metavar="MODULE:NAME", help="A graph to load; may be repeated. Default: $LOCKSTEP_GRAPHS."
    )(function)


def sinks_option(function: F) -> F:
    """`--sink`."""
    return click.option(
        "--sink",
        "sinks",
        multiple=True,
        metavar="SINK",
        help="Where events go: redis, log, webhook:URL or MODULE:OBJECT, with NAME= before it to tell two of a kind apart; "
        "may be repeated. Default: $LOCKSTEP_SINKS.",
    )(function)


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)
