"""Answers over HTTP: a link that answers one question of one run, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote

from lockstep.errors import ConfigurationError

MIN_KEY_CHARACTERS = 32


def callback_path(key: str, run_id: str, question_id: str) -> str:
    """What comes behind the address of `lockstep callback`: POST the answer there, as JSON.

    `question_id` is an `Interrupt`'s id; a node knows that of its first question before it asks: `f"{ctx.path[:16]}-0"`.
    The token is HMAC-SHA256 over run and question with LOCKSTEP_CALLBACK_KEY. Raises ConfigurationError for a short key.
    """
    return f"/runs/{quote(run_id)}/answers/{quote(question_id)}?token={callback_token(key, run_id, question_id)}"


def callback_token(key: str, run_id: str, question_id: str) -> str:
    """What only who has the key can make. Raises ConfigurationError."""
    if len(key) < MIN_KEY_CHARACTERS:
        raise ConfigurationError(
            f"LOCKSTEP_CALLBACK_KEY must have {MIN_KEY_CHARACTERS} characters or more; make one with: openssl rand -hex 32",
            option="callback_key",
        )
    message = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in ("callback", run_id, question_id))
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


def is_callback_token(key: str, run_id: str, question_id: str, token: str) -> bool:
    """Whether a token is the one; in a time that says nothing of how much of it is right."""
    return hmac.compare_digest(callback_token(key, run_id, question_id).encode(), token.encode())
