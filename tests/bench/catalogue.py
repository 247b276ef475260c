"""What is measured. Another shape, peer or store is another entry here, and perhaps a module in `contenders`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A way to run a shape: a module of `contenders` with its settings. `at_risk` is what may be lost, and by what; `needs` are
    the servers that it uses."""

    name: str
    module: str
    settings: dict[str, Any]
    at_risk: str
    needs: frozenset[str] = frozenset()

    @property
    def ours(self) -> bool:
        return self.module.startswith("lockstep")


@dataclass(frozen=True)
class Benchmark:
    """One table: contenders that run the same shape, `in_flight` runs at a time. A turn has `runs` runs, unless another number
    is asked for; both are rounded up to whole batches of `in_flight`. In the title, parameters may stand in braces."""

    key: str
    title: str
    shape: str
    contenders: list[Contender]
    parameters: dict[str, int] = field(default_factory=lambda: {"steps": 50})
    in_flight: int = 1
    runs: int = 20
    long: bool = False
    """Whether its runs are so long that none is made only to warm up, or to count how often it waits for the disk."""

    def whole(self, runs: int | None) -> int:
        """The number of runs in a turn."""
        return -(-(runs or self.runs) // self.in_flight) * self.in_flight


NOTHING = "nothing"
POWER_CUT = "in a power cut, the latest steps of runs under way"
DEATH = "when the process dies, the latest steps of runs under way"
ALL = "everything, when the process ends"
NOT_DURABLE = "not durable: tasks of a worker that dies, what Redis has not saved"

POSTGRES, REDIS = frozenset({"postgres"}), frozenset({"redis"})

SERVED = [
    Contender("LangGraph, PostgresSaver, sync", "langgraph", {"saver": "postgres", "durability": "sync"}, NOTHING, POSTGRES),
    Contender("DBOS", "dbos", {}, NOTHING, POSTGRES),
    Contender("Celery, over Redis", "celery", {}, NOT_DURABLE, REDIS),
    Contender("Lockstep, embedded", "lockstep", {"store": "postgres"}, NOTHING, POSTGRES),
    Contender("Lockstep, distributed", "lockstep_distributed", {}, NOTHING, POSTGRES | REDIS),
]

CATALOGUE = [
    Benchmark(
        "sqlite",
        "A chain of {steps} steps in SQLite, one run at a time",
        "chain",
        [
            Contender("LangGraph, SqliteSaver, sync", "langgraph", {"saver": "sqlite", "durability": "sync"}, NOTHING),
            Contender("LangGraph, SqliteSaver, async", "langgraph", {"saver": "sqlite", "durability": "async"}, DEATH),
            Contender("Lockstep, every commit waits for the disk", "lockstep", {"store": "sqlite", "wait": True}, NOTHING),
            Contender("Lockstep", "lockstep", {"store": "sqlite"}, POWER_CUT),
        ],
    ),
    Benchmark(
        "memory",
        "A chain of {steps} steps in memory, one run at a time",
        "chain",
        [
            Contender("LangGraph, InMemorySaver", "langgraph", {"saver": "memory", "durability": "async"}, ALL),
            Contender("Lockstep", "lockstep", {"store": "memory"}, ALL),
        ],
    ),
    Benchmark("chain-1", "A chain of {steps} steps over servers, one run at a time", "chain", SERVED, {"steps": 20}),
    Benchmark("chain-24", "A chain of {steps} steps over servers, 24 runs in flight", "chain", SERVED, {"steps": 20}, 24, 72),
    Benchmark(
        "chain-200", "A chain of {steps} steps over servers, 200 runs in flight", "chain", SERVED, {"steps": 20}, 200, 200
    ),
    *[
        Benchmark(
            key,
            "A run of {steps} steps, each of which changes 100 bytes beside {ballast} others",
            "loop",
            [
                Contender("Lockstep, SQLite", "lockstep", {"store": "sqlite"}, POWER_CUT),
                Contender("Lockstep, memory", "lockstep", {"store": "memory"}, ALL),
            ],
            {"steps": 10_000, "ballast": ballast},
            runs=1,
            long=True,
        )
        for key, ballast in (("long", 0), ("long-large", 100_000))
    ],
    Benchmark("fan-1", "A fan-out to {width} nodes and a join, one run at a time", "fan", SERVED, {"width": 100}, 1, 10),
    Benchmark("fan-24", "A fan-out to {width} nodes and a join, 24 runs in flight", "fan", SERVED, {"width": 100}, 24, 24),
]
