"""Order and identity: the formulas, and nothing else.

    path      = SHA256(parent_path || node_id || edge_index)          32 bytes
    order_key = BE_u32(rank) || path[0:4]                              8 bytes, "edge" and "langgraph" ordering
    order_key = path[0:8], ties broken by the whole path               8 bytes, "hash" ordering

`parent_path` is the parent item's path (32 zero bytes at START), `node_id` is UTF-8, `edge_index` is 4 bytes, big-endian and
unsigned. The first and last part have a fixed width, so no two triples share one concatenation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

Ordering = Literal["edge", "hash", "langgraph"]
ORDERINGS: tuple[Ordering, ...] = ("edge", "hash", "langgraph")

ROOT_PATH = bytes(32)
START = "__start__"
END = "__end__"


def path_of(parent_path: bytes, node_id: str, edge_index: int) -> bytes:
    """The identity of a work item, 32 bytes: where in the run it comes from."""
    return hashlib.sha256(parent_path + node_id.encode() + edge_index.to_bytes(4, "big")).digest()


def order_key_of(ordering: Ordering, rank: int, path: bytes) -> bytes:
    """The 8 bytes by which the items of a step sort."""
    return path[:8] if ordering == "hash" else rank.to_bytes(4, "big") + path[:4]


def state_hash_of(digests: Mapping[str, bytes]) -> bytes:
    """SHA256 over the fields in code point order of BE_u32(len(name)) || name || SHA256(canonical value).

    `digests` maps a field's name to the SHA256 of its canonical bytes, so an unchanged field costs nothing. The length counts
    the bytes of the UTF-8 name.
    """
    whole = hashlib.sha256()
    for name in sorted(digests):
        encoded = name.encode()
        whole.update(len(encoded).to_bytes(4, "big") + encoded + digests[name])
    return whole.digest()


def idempotency_key_of(run_id: str, step_id: int, paths: Iterable[bytes], state_hash: bytes) -> bytes:
    """What commit `step_id` of a run is known by, 32 bytes: equal for coordinators that computed the same step.

    SHA256(BE_u32(len(run_id)) || run_id || BE_u64(step) || BE_u32(items) || paths ascending || state_hash).
    """
    ordered = sorted(paths)
    name = run_id.encode()
    return hashlib.sha256(
        len(name).to_bytes(4, "big")
        + name
        + step_id.to_bytes(8, "big")
        + len(ordered).to_bytes(4, "big")
        + b"".join(ordered)
        + state_hash
    ).digest()


def item_key_of(run_id: str, path: bytes) -> str:
    """`ctx.idempotency_key`: the same for all deliveries and attempts of an item; hex of SHA256("item" || run_id || path)."""
    return hashlib.sha256(b"item" + run_id.encode() + path).hexdigest()


def run_seed_of(run_id: str) -> int:
    """The seed of a run that was not given one: the first 8 bytes of SHA256("seed" || run_id), big-endian, unsigned."""
    return int.from_bytes(hashlib.sha256(b"seed" + run_id.encode()).digest()[:8], "big")


def item_seed_of(run_seed: int, path: bytes, scheduled_step: int) -> int:
    """The 256-bit seed of one item's `ctx.rng`: SHA256("rng" || decimal run seed || path || BE_u64(scheduling step))."""
    text = b"rng" + str(run_seed).encode() + path + scheduled_step.to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(text).digest(), "big")


def shard_of(thread_id: str | None, root_run_id: str | None, run_id: str) -> int:
    """The shard (0..65535) of a run: the first two bytes of SHA256(thread_id, or root run_id, or run_id)."""
    return int.from_bytes(hashlib.sha256((thread_id or root_run_id or run_id).encode()).digest()[:2], "big")
