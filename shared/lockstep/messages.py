"""`add_messages`: the reducer for a chat history of plain dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
REMOVE_ALL = "__all__"


def add_messages(current: Sequence[Message], update: Message | Sequence[Message]) -> list[Message]:
    """Append messages; one whose `id` is there already takes that one's place.

    A message is a dict, usually {"role": ..., "content": ..., "id": ...}; `id` is optional and never invented, so the same
    input gives the same bytes. {"role": "remove", "id": X} takes message X out; with the id `REMOVE_ALL`, all before it.
    Raises ValueError for an update that is no message, or that removes a message that is not there.
    """
    messages: dict[object, Message] = {}
    for message in current:
        messages[_key(message)] = message
    if not isinstance(update, (Mapping, list, tuple)):
        raise ValueError(f"a message is a dict, an update one or a list of them; got {type(update).__name__}")
    for message in [update] if isinstance(update, Mapping) else update:
        if not isinstance(message, Mapping):
            raise ValueError(f"a message is a dict with role and content, got {type(message).__name__}")
        if message.get("role") != "remove":
            messages[_key(message)] = message
        elif message.get("id") == REMOVE_ALL:
            messages.clear()
        elif messages.pop(message.get("id"), None) is None:
            raise ValueError(f"no message has the id {message.get('id')!r} that is to be removed")
    return list(messages.values())


def _key(message: Message) -> object:
    """The id; a message without one equals only itself."""
    return message["id"] if message.get("id") is not None else object()
