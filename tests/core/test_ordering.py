"""Order and identity: the formulas of DESIGN 3, each against vectors computed elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lockstep.core.frontier import in_order
from lockstep.core.ordering import (
    ROOT_PATH,
    idempotency_key_of,
    item_key_of,
    item_seed_of,
    order_key_of,
    path_of,
    run_seed_of,
    shard_of,
    state_hash_of,
)
from lockstep.core.records import WorkItem
from lockstep.core.state import State

PLAN = path_of(ROOT_PATH, "plan", 0)

# DESIGN 3: node, edge_index (the parent of all but the first is PLAN), rank, path, order key by edge, order key by hash.
VECTORS = [
    ("plan", 0, 0, "96609e1545482facc96200801ee7205efa46b2060661aa5f3174f8291d2499c0", "0000000096609e15", "96609e1545482fac"),
    (
        "search",
        0,
        0,
        "f55f80c89a30ff00571f25e884f51ed00aa0b62098021002edb351a99171e204",
        "00000000f55f80c8",
        "f55f80c89a30ff00",
    ),
    (
        "search",
        1,
        1,
        "87ba518be9b31ce90916a1cb4ac754d9fa790fa0542098ec0ba8f7c187c2451a",
        "0000000187ba518b",
        "87ba518be9b31ce9",
    ),
    (
        "search",
        2,
        2,
        "080cef8276a86ab0b8262276bf85480d8783fde099de5e47e205e21d86742fd2",
        "00000002080cef82",
        "080cef8276a86ab0",
    ),
    ("join", 3, 3, "2a57e008eb64816cd00ee091fa3f42d8a58dd5e83e6941eba240c9e9071d2b5a", "000000032a57e008", "2a57e008eb64816c"),
]


@pytest.mark.parametrize(("node_id", "edge_index", "rank", "path", "by_edge", "by_hash"), VECTORS)
def test_the_golden_paths_and_order_keys(
    node_id: str, edge_index: int, rank: int, path: str, by_edge: str, by_hash: str
) -> None:
    # given an item of the design's table
    parent = ROOT_PATH if node_id == "plan" else PLAN
    # then its path and its keys are those of the table, in both orderings
    assert path_of(parent, node_id, edge_index).hex() == path
    assert order_key_of("edge", rank, bytes.fromhex(path)).hex() == by_edge
    assert order_key_of("hash", rank, bytes.fromhex(path)).hex() == by_hash


def test_the_edge_keys_of_the_table_ascend_and_the_hash_keys_do_not() -> None:
    # given the children of PLAN in edge order, then "edge" keys keep that order; that "hash" keys do not is why there are both
    by_edge, by_hash = ([row[column] for row in VECTORS[1:]] for column in (4, 5))
    assert by_edge == sorted(by_edge)
    assert by_hash != sorted(by_hash)


def test_the_root_path_is_32_zero_bytes() -> None:
    assert ROOT_PATH == b"\x00" * 32


def test_the_golden_state_hash() -> None:
    # given the state {"notes": ["a"], "topic": "x"}, its fields given in the wrong order
    digests = {"topic": hashlib.sha256(b'"x"').digest(), "notes": hashlib.sha256(b'["a"]').digest()}
    expected = "1d627438cba6c0417d1d7e41e435aba819df527cf22655ae1799694146318fdb"
    # then the hash is that of the design, from the digests and from the state alike
    assert state_hash_of(digests).hex() == expected
    assert State.of({"topic": "x", "notes": ["a"]}).hash().hex() == expected


def test_the_state_hash_counts_bytes_of_names_and_sorts_by_code_point() -> None:
    # given field names whose length in bytes is not that in characters
    digests = {"z": bytes(32), "é": b"\x01" * 32}
    # then the formula, written out, gives the same hash
    expected = hashlib.sha256(b"\0\0\0\x01z" + bytes(32) + b"\0\0\0\x02\xc3\xa9" + b"\x01" * 32).digest()
    assert state_hash_of(digests) == expected


# Computed once with sha256sum(1) from the formulas in the docstrings, for run-1, the item PLAN and step 3.
RUN_SEED = 10637508107736213378
ITEM_SEED = 0xB8AE79BA57146AE937D8048676737DB0AAADBA42B3503CD166B98A81DA79EF70
ITEM_KEY = "b3d6fcda5eba77973059b990ad07f87457ec89a74b921949c2299d6906eeb0e1"

GOLDEN_STATE_HASH = bytes.fromhex("1d627438cba6c0417d1d7e41e435aba819df527cf22655ae1799694146318fdb")


def test_the_golden_idempotency_key() -> None:
    # given run-1, step 1, the item P and the state above, then the key is that of the design
    expected = "9a29b451e10473e344296af8c845b9fc31856123baf805784964cecef7ce9441"
    assert idempotency_key_of("run-1", 1, [PLAN], GOLDEN_STATE_HASH).hex() == expected


def test_the_idempotency_key_does_not_depend_on_the_order_of_the_paths() -> None:
    # given the paths of a step in every order
    paths = [bytes.fromhex(row[3]) for row in VECTORS[1:4]]
    keys = {idempotency_key_of("run-1", 7, order, GOLDEN_STATE_HASH) for order in itertools.permutations(paths)}
    # then there is one key, and it is the formula's, written out with the paths ascending
    text = struct.pack(">I", 5) + b"run-1" + struct.pack(">QI", 7, 3) + paths[2] + paths[1] + paths[0] + GOLDEN_STATE_HASH
    assert keys == {hashlib.sha256(text).digest()}


@given(
    st.tuples(st.text(max_size=5), st.integers(0, 3), st.lists(st.binary(min_size=32, max_size=32), max_size=2)),
    st.tuples(st.text(max_size=5), st.integers(0, 3), st.lists(st.binary(min_size=32, max_size=32), max_size=2)),
)
def test_different_steps_have_different_idempotency_keys(
    one: tuple[str, int, list[bytes]], other: tuple[str, int, list[bytes]]
) -> None:
    # given two steps that differ in run, number or items, then their keys differ
    assume((one[0], one[1], sorted(one[2])) != (other[0], other[1], sorted(other[2])))
    assert idempotency_key_of(*one, GOLDEN_STATE_HASH) != idempotency_key_of(*other, GOLDEN_STATE_HASH)


PATHS = st.sampled_from([ROOT_PATH, PLAN, b"\x01" * 32])
NAMES = st.text(alphabet="a\x00\x01é", max_size=6)
INDEXES = st.integers(0, 2**32 - 1) | st.integers(0, 3)
TRIPLES = st.tuples(PATHS, NAMES, INDEXES)


@given(TRIPLES, TRIPLES)
def test_no_two_triples_share_a_path(one: tuple[bytes, str, int], other: tuple[bytes, str, int]) -> None:
    # given two different (parent, node, index), some with names that look like the bytes of an index
    assume(one != other)
    # then nothing runs together in the concatenation: the paths differ
    assert path_of(*one) != path_of(*other)


def test_a_name_that_ends_like_an_index_makes_no_other_items_path() -> None:
    # given the triple whose naive concatenation (name, then a short index) would be the same
    assert path_of(ROOT_PATH, "a\x00", 1) != path_of(ROOT_PATH, "a", 1)
    assert path_of(ROOT_PATH, "a1", 1) != path_of(ROOT_PATH, "a", 11)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=6))
def test_edge_keys_are_unique_and_ascend_with_the_rank(paths: list[bytes]) -> None:
    # given any paths, even equal ones, in any order, when each gets the next rank
    keys = [order_key_of("edge", rank, path) for rank, path in enumerate(paths)]
    # then the keys are 8 bytes, unique, and ascend: order_key order IS edge order
    assert {len(key) for key in keys} == {8}
    assert keys == sorted(set(keys))


def test_a_rank_beyond_one_byte_still_sorts_as_a_number() -> None:
    # given neighbours across byte borders with paths that would sort the other way, then the rank decides
    for rank in (255, 65_535, 16_777_215):
        assert order_key_of("edge", rank, b"\xff" * 32) < order_key_of("edge", rank + 1, b"\x00" * 32)


def colliding(last: int) -> WorkItem:
    """An item of hash ordering whose key is the same as that of the others, as if SHA-256 had met itself in 64 bits."""
    path = b"\x07" * 8 + bytes([last]) * 24
    return WorkItem("node", path, ROOT_PATH, last, order_key_of("hash", 0, path), 1)


def test_items_with_colliding_hash_keys_are_totally_ordered_by_path() -> None:
    # given three items of one key among two others
    before = WorkItem("early", b"\x06" * 32, ROOT_PATH, 8, b"\x06" * 8, 1)
    after = WorkItem("late", b"\x08" * 32, ROOT_PATH, 9, b"\x08" * 8, 1)
    expected = (before, colliding(1), colliding(2), colliding(3), after)
    assert len({item.order_key for item in expected}) == 3
    # when they come in any order, then they leave in one
    for order in itertools.permutations(expected):
        assert in_order(order) == expected


def test_the_run_seed_is_the_documented_formula() -> None:
    # given a run_id, then its seed is the first 8 bytes of SHA256("seed" || run_id), as computed once with sha256sum
    assert run_seed_of("run-1") == RUN_SEED
    assert run_seed_of("run-1") == struct.unpack(">Q", hashlib.sha256(b"seedrun-1").digest()[:8])[0]
    # and another run has another
    assert run_seed_of("run-2") != run_seed_of("run-1")


def test_the_item_seed_is_the_documented_formula() -> None:
    # given the run's seed, the item P and the step that scheduled it, then the seed is the documented 256-bit number
    text = b"rng" + str(RUN_SEED).encode() + PLAN + struct.pack(">Q", 3)
    assert item_seed_of(RUN_SEED, PLAN, 3) == int(hashlib.sha256(text).hexdigest(), 16)
    assert item_seed_of(RUN_SEED, PLAN, 3) == ITEM_SEED
    # and a fixed seed may be negative
    text = b"rng-5" + PLAN + struct.pack(">Q", 0)
    assert item_seed_of(-5, PLAN, 0) == int(hashlib.sha256(text).hexdigest(), 16)


def test_iterations_siblings_and_runs_have_seeds_of_their_own() -> None:
    # given items that differ in step, path or run, then no two draw the same numbers
    search = path_of(PLAN, "search", 0)
    seeds = [item_seed_of(run, path, step) for run in (1, 2) for path in (PLAN, search) for step in (0, 1, 256)]
    assert len(set(seeds)) == len(seeds)


def test_the_key_of_an_item_is_the_documented_formula() -> None:
    assert item_key_of("run-1", PLAN) == hashlib.sha256(b"itemrun-1" + PLAN).hexdigest()
    assert item_key_of("run-1", PLAN) == ITEM_KEY


def test_a_shard_comes_from_the_thread_else_the_root_run_else_the_run() -> None:
    # given the three names of a run, then the first that is there decides, so relatives share a shard
    for names, deciding in ((("t", "r", "x"), b"t"), ((None, "r", "x"), b"r"), ((None, None, "x"), b"x")):
        assert shard_of(*names) == struct.unpack(">H", hashlib.sha256(deciding).digest()[:2])[0]
