"""A committed state: its values, their canonical bytes and hashes, and the patches between two states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import msgspec

from lockstep.core.canonical import canonical_bytes, quoted
from lockstep.core.ordering import state_hash_of


class State(msgspec.Struct, frozen=True):
    """S(k): per field the JSON value, its canonical bytes and their SHA256. Never changed in place, neither are its values."""

    values: dict[str, Any] = {}
    encoded: dict[str, bytes] = {}
    digests: dict[str, bytes] = {}

    @staticmethod
    def of(values: Mapping[str, Any]) -> State:
        """The state with just these values. Raises StateError for one that is not canonical JSON."""
        return State().changed(values)

    def changed(self, changes: Mapping[str, Any]) -> State:
        """This state with some fields set; only these are encoded and hashed again."""
        values, encoded, digests = self.values.copy(), self.encoded.copy(), self.digests.copy()
        for name, value in changes.items():
            data = canonical_bytes(value, field=name)
            if encoded.get(name) != data:
                values[name], encoded[name], digests[name] = value, data, hashlib.sha256(data).digest()
        return State(values, encoded, digests)

    def patched(self, patch: bytes) -> State:
        """The state that a patch of `diff` leads to; only the fields that it names are encoded and hashed again."""
        operations = json.loads(patch)
        values, names = self.values.copy(), {name for _, name, *_ in operations}
        values |= {name: copy(values[name]) for name in names & values.keys()}
        _apply(values, operations)
        state = self.changed({name: values[name] for name in names & values.keys()})
        for name in names - values.keys():
            for fields in (state.values, state.encoded, state.digests):
                del fields[name]
        return state

    def hash(self) -> bytes:
        """state_hash of DESIGN: 32 bytes."""
        return state_hash_of(self.digests)

    def to_bytes(self) -> bytes:
        """The canonical bytes of the whole state as one object, put together from those of the fields."""
        return b"{%b}" % b",".join([quoted(name) + b":" + self.encoded[name] for name in sorted(self.encoded)])

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """The inverse of `to_bytes`."""
        return State.of(json.loads(data))


def diff(old: State, new: State) -> bytes:
    """The patch old -> new: a canonical JSON list of operations that `apply_patches` needs no user code for.

    ["append", field, [items]]  ["merge", field, {key: value}, [deleted keys]]  ["set", field, value]  ["delete", field]
    """
    operations = []
    for name in sorted(new.encoded.keys() | old.encoded.keys()):
        before, after = old.encoded.get(name), new.encoded.get(name)
        if before == after:
            continue
        if after is None:
            operations.append(b'["delete",%b]' % quoted(name))
        elif before is not None and after[:1] == b"[" and len(before) > 2 and after.startswith(before[:-1] + b","):
            operations.append(b'["append",%b,[%b]' % (quoted(name), after[len(before) :]))
        elif before is not None and after[:1] == before[:1] == b"{":
            operations.append(_shorter_of_merge_and_set(quoted(name), old.values[name], new.values[name], after))
        else:
            operations.append(b'["set",%b,%b]' % (quoted(name), after))
    return b"[%b]" % b",".join(operations)


def _shorter_of_merge_and_set(name: bytes, old: dict[str, Any], new: dict[str, Any], after: bytes) -> bytes:
    changed = {key: value for key, value in new.items() if key not in old or not _same(old[key], value)}
    merge = b'["merge",%b,%b,%b]' % (name, canonical_bytes(changed), canonical_bytes(sorted(old.keys() - new.keys())))
    whole = b'["set",%b,%b]' % (name, after)
    return min(merge, whole, key=len)


def _same(one: Any, other: Any) -> bool:
    """Equal as canonical bytes: Python holds 1, 1.0 and True for equal, and 0.0 and -0.0."""
    return one is other or canonical_bytes(one) == canonical_bytes(other)


def apply_patches(base: bytes, patches: Iterable[bytes]) -> State:
    """The state that `patches` lead to from the snapshot `base`, in time linear in their length."""
    values: dict[str, Any] = json.loads(base)
    for patch in patches:
        _apply(values, json.loads(patch))
    return State.of(values)


def _apply(values: dict[str, Any], operations: Sequence[Any]) -> None:
    for operation, name, *arguments in operations:
        match operation:
            case "set":
                values[name] = arguments[0]
            case "append":
                values[name].extend(arguments[0])
            case "merge":
                values[name].update(arguments[0])
                for key in arguments[1]:
                    values[name].pop(key, None)
            case "delete":
                del values[name]
            case _:
                raise ValueError(f"unknown patch operation {operation!r}: written by a newer release?")
