"""How coordinators share out the runs: partitions of the shards, and each one's fair part of them."""

from __future__ import annotations

from collections.abc import Sequence

SHARDS = 65_536
PARTITIONS = 16


def partition_ranges() -> dict[str, tuple[int, int]]:
    """The partitions and the first and last shard of each; together they cover all shards."""
    size = SHARDS // PARTITIONS
    return {f"p{index:02d}": (index * size, (index + 1) * size - 1) for index in range(PARTITIONS)}


def fair_share(
    mine: Sequence[str], free: Sequence[str], partitions: int, lease_id: str, coordinators: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What a coordinator has from now on, and what it gives back: at most its part of the whole.

    `coordinators` are the leases of all. What does not divide evenly goes to the first of them: five share 16 as 4, 3, 3, 3, 3.
    With every coordinator keeping to this, each partition has an owner.
    """
    part, rest = divmod(partitions, len(coordinators))
    most = part + (sorted(coordinators).index(lease_id) < rest)
    kept = [*mine, *free][:most]
    return kept, list(mine[most:])
