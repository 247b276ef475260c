"""`quarantine`: look at messages that could not be used, and decide about them."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import click

from lockstep.broker.connection import connect, translated
from lockstep.broker.names import Names
from lockstep.broker.quarantine import Quarantine, Quarantined
from lockstep.cli.options import json_option, redis_option
from lockstep.cli.output import print_json
from lockstep.config import DEFAULT_REDIS_URL, read_settings
from lockstep.errors import ConfigurationError

CHARACTERS_SHOWN = 120
"""Of a message, for people; `--json` shows all that was kept."""


@click.command()
@click.option("--retry", metavar="ID", help="Send a result to its coordinator once more.")
@click.option("--drop", metavar="ID", help="Forget a message.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="How many to list, oldest first.")
@redis_option
@json_option
def quarantine(retry: str | None, drop: str | None, limit: int, redis: str | None, as_json: bool) -> None:
    """List messages in Redis that could not be used, with the reason; send one again, or forget it."""
    settings = read_settings(redis=redis)
    url = settings.redis_url or DEFAULT_REDIS_URL
    with closing(connect(url)) as client, translated(url):
        kept = Quarantine(client, Names(settings.namespace))
        if retry is not None:
            kept.retry(_to_be_sent(kept, retry))
        if drop is not None:
            _entry(kept, drop)
            kept.drop(drop)
        if retry is None and drop is None:
            _list(kept.entries(limit), as_json)


def _entry(kept: Quarantine, entry_id: str) -> Quarantined:
    number, _, place = entry_id.partition("-")
    entry = kept.entry(entry_id) if number.isascii() and number.isdigit() and place.isascii() and place.isdigit() else None
    if entry is None:
        raise ConfigurationError(f"there is no message {entry_id!r}; `lockstep quarantine` lists those there are", option="id")
    return entry


def _to_be_sent(kept: Quarantine, entry_id: str) -> Quarantined:
    entry = _entry(kept, entry_id)
    if entry.kind != "result":
        raise ConfigurationError(f"message {entry_id} is a task; its coordinator has handed it out again", option="retry")
    if not entry.is_whole:
        raise ConfigurationError(f"of message {entry_id}, only the beginning was kept; it cannot be sent again", option="retry")
    return entry


def _list(entries: list[Quarantined], as_json: bool) -> None:
    if as_json:
        print_json([_listed(entry) for entry in entries])
        return
    for entry in entries:
        listed = _listed(entry)
        click.echo(f"{entry.entry_id}  {listed['at']}  {entry.kind} of {entry.place}, {entry.size} bytes: {entry.reason}")
        click.echo(f"    {listed['data'][:CHARACTERS_SHOWN]}")
    click.echo(f"{len(entries)} messages", err=True)


def _listed(entry: Quarantined) -> dict[str, Any]:
    return {
        "id": entry.entry_id,
        "kind": entry.kind,
        "place": entry.place,
        "reason": entry.reason,
        "size": entry.size,
        "at": datetime.fromtimestamp(entry.at / 1000, UTC).isoformat(timespec="milliseconds"),
        "data": entry.data.decode("utf-8", "backslashreplace"),
    }
