"""How coordinators share out the runs: partitions of the shards, and each one's fair part of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

SHARDS = 65_536
PARTITIONS = 16


def partition_ranges() -> dict[str, tuple[int, int]]:
    """The partitions and the first and last shard of each; together they cover all shards."""
    size = SHARDS // PARTITIONS
    return {f"p{index:02d}": (index * size, (index + 1) * size - 1) for index in range(PARTITIONS)}


def fair_share(mine: Sequence[str], free: Sequence[str], partitions: int, coordinators: int) -> tuple[list[str], list[str]]:
    """What a coordinator has from now on, and what it gives back: at most its part of the whole, rounded up.

    With every coordinator keeping to this, each partition has an owner. The last coordinator may get less than the others, or
    nothing: five share 16 as 4, 4, 4, 4 and 0.
    """
    most = math.ceil(partitions / max(coordinators, 1))
    kept = [*mine, *free][:most]
    return kept, list(mine[most:])
