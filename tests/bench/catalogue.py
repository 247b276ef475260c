"""What is measured. Another shape, peer or store is another entry here, and perhaps a module in `contenders`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A way to run a shape: a module of `contenders` with its settings. `at_risk` is what may be lost, and by what."""

    name: str
    module: str
    settings: dict[str, Any]
    at_risk: str


@dataclass(frozen=True)
class Benchmark:
    """One table: contenders that run the same shape. The first is what the others are compared with."""

    title: str
    shape: str
    contenders: list[Contender]
    parameters: dict[str, int] = field(default_factory=lambda: {"steps": 50})


NOTHING = "nothing"
POWER_CUT = "in a power cut, the latest steps of runs under way"
DEATH = "when the process dies, the latest steps of runs under way"
ALL = "everything, when the process ends"

CATALOGUE = [
    Benchmark(
        "A chain of 50 steps in SQLite, one run at a time",
        "chain",
        [
            Contender("LangGraph, SqliteSaver, sync", "langgraph", {"saver": "sqlite", "durability": "sync"}, NOTHING),
            Contender("LangGraph, SqliteSaver, async", "langgraph", {"saver": "sqlite", "durability": "async"}, DEATH),
            Contender("Lockstep, every commit waits for the disk", "lockstep", {"store": "sqlite", "wait": True}, NOTHING),
            Contender("Lockstep", "lockstep", {"store": "sqlite"}, POWER_CUT),
        ],
    ),
    Benchmark(
        "The same chain in memory",
        "chain",
        [
            Contender("LangGraph, InMemorySaver", "langgraph", {"saver": "memory", "durability": "async"}, ALL),
            Contender("Lockstep", "lockstep", {"store": "memory"}, ALL),
        ],
    ),
]
