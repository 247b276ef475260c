"""What is measured: which contenders run which shape, and what each of them promises. A new one is a new entry."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A way to run a shape. `module` is one of `tests.bench.contenders`, which reads `settings`."""

    name: str
    module: str
    settings: dict[str, Any]
    promise: str
    is_peer: bool = False


@dataclass(frozen=True)
class Benchmark:
    """One table: contenders on one shape. All are compared with the one named by `baseline`."""

    title: str
    shape: str
    steps: int
    baseline: str
    contenders: list[Contender] = field(default_factory=list)


PEERS = ["langgraph", "langgraph-checkpoint-sqlite"]
"""What the peers' own environment holds."""

CATALOGUE = [
    Benchmark(
        title="A chain of 50 steps, one run at a time, stored in SQLite",
        shape="chain",
        steps=50,
        baseline='LangGraph, SqliteSaver, durability="sync"',
        contenders=[
            Contender("Lockstep, SQLite", "lockstep", {"store": "sqlite"}, "steps of a run that nobody has an answer of"),
            Contender(
                "Lockstep, SQLite, every commit waits for the disk",
                "lockstep",
                {"store": "sqlite", "every_commit_waits": True},
                "nothing",
            ),
            Contender(
                'LangGraph, SqliteSaver, durability="sync"',
                "langgraph",
                {"saver": "sqlite", "durability": "sync"},
                "nothing",
                is_peer=True,
            ),
            Contender(
                'LangGraph, SqliteSaver, durability="async"',
                "langgraph",
                {"saver": "sqlite", "durability": "async"},
                "the step under way and the one before",
                is_peer=True,
            ),
        ],
    ),
    Benchmark(
        title="The same chain, kept in memory",
        shape="chain",
        steps=50,
        baseline="LangGraph, InMemorySaver",
        contenders=[
            Contender("Lockstep, memory", "lockstep", {"store": "memory"}, "everything"),
            Contender(
                "LangGraph, InMemorySaver", "langgraph", {"saver": "memory", "durability": "async"}, "everything", is_peer=True
            ),
        ],
    ),
]
