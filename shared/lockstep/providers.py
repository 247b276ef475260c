"""What providers of language models say of a call: from a reply to the arguments of `ctx.llm_usage`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def usage_of(reply: Any) -> dict[str, Any]:
    """The arguments of `ctx.llm_usage` from a model's reply: `ctx.llm_usage(**usage_of(reply))`.

    Takes the JSON of a reply, or a client's object of it, from OpenAI and what is compatible with it (chat completions and
    responses), Anthropic (messages) and Gemini (generateContent). Counts that are not there are None, and the call is unpriced.

    Sources: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/messages,
    https://ai.google.dev/api/generate-content.
    """
    fields = _fields(reply)
    if found := _fields(fields.get("usageMetadata") or fields.get("usage_metadata")):
        return _gemini(fields, found)
    used = _fields(fields.get("usage"))
    model = str(fields.get("model") or "unknown")
    if "prompt_tokens" in used:
        cached = _fields(used.get("prompt_tokens_details")).get("cached_tokens")
        return _counts(model, used.get("prompt_tokens"), used.get("completion_tokens"), cached)
    if "cache_read_input_tokens" in used or fields.get("type") == "message":
        read, written = used.get("cache_read_input_tokens") or 0, used.get("cache_creation_input_tokens") or 0
        plain = used.get("input_tokens")
        # Anthropic's input_tokens are those that were neither read from a cache nor written to it.
        whole = None if plain is None else plain + read + written
        return _counts(model, whole, used.get("output_tokens"), read, written)
    cached = _fields(used.get("input_tokens_details")).get("cached_tokens")
    return _counts(model, used.get("input_tokens"), used.get("output_tokens"), cached)


def _gemini(fields: dict[str, Any], used: dict[str, Any]) -> dict[str, Any]:
    def count(camel: str) -> int | None:
        snake = re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", camel)
        number: int | None = used.get(camel, used.get(snake))
        return number

    prompt, answer = count("promptTokenCount"), count("candidatesTokenCount")
    model = fields.get("modelVersion") or fields.get("model_version") or "unknown"
    # What a model thinks is output, and what tools gave it is input, each counted apart.
    whole_in = None if prompt is None else prompt + (count("toolUsePromptTokenCount") or 0)
    whole_out = None if answer is None else answer + (count("thoughtsTokenCount") or 0)
    return _counts(str(model), whole_in, whole_out, count("cachedContentTokenCount"))


def _counts(model: str, tokens_in: Any, tokens_out: Any, cached: Any = None, written: Any = None) -> dict[str, Any]:
    return {
        "model": model,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_cached": cached or 0,
        "tokens_cache_written": written or 0,
    }


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a JSON object or of a client's object for one."""
    if isinstance(value, Mapping):
        return dict(value)
    for name in ("model_dump", "to_dict"):
        if callable(method := getattr(value, name, None)):
            return dict(method())
    return dict(getattr(value, "__dict__", {}))
