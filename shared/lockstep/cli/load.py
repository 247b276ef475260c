"""From `MODULE:GRAPH` to a Graph: a dotted name, or a path to a file; the working directory is importable."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from lockstep.compiled import CompiledGraph
from lockstep.errors import ConfigurationError
from lockstep.graph import Graph
from lockstep.prices import PRICES, Price, Pricing


def load_graphs(references: Sequence[str]) -> list[CompiledGraph]:
    """The graphs that references name, compiled. Raises ConfigurationError, also if there is none or a name comes twice."""
    if not references:
        raise ConfigurationError("no graph is named; use --graphs MODULE:NAME or LOCKSTEP_GRAPHS", option="graphs")
    graphs = [load_graph(reference).compile() for reference in references]
    names = [graph.name for graph in graphs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two graphs have the name {name!r}; give each Graph(..., name=...)", option="graphs")
    return graphs


def load_graph(reference: str) -> Graph:
    """The graph that a reference names. Raises ConfigurationError that says which part of it is wrong."""
    module_name, _, graph_name = reference.rpartition(":")
    if not module_name or not graph_name:
        raise ConfigurationError(f"{reference!r} is not MODULE:GRAPH, such as flows.py:graph or my.flows:graph", option="graph")
    module = _load_module(module_name)
    graph = getattr(module, graph_name, None)
    if not isinstance(graph, Graph):
        graphs = sorted(name for name, value in vars(module).items() if isinstance(value, Graph))
        found = f"it has {', '.join(graphs)}" if graphs else "it has no Graph"
        raise ConfigurationError(f"{module_name} has no Graph named {graph_name!r}; {found}", option="graph")
    return graph


def load_object(reference: str, *, option: str = "sinks") -> object:
    """What `MODULE:NAME` names. Raises ConfigurationError."""
    module_name, _, name = reference.rpartition(":")
    module = _load_module(module_name)
    if not hasattr(module, name):
        raise ConfigurationError(f"{module_name} has no {name!r}", option=option)
    return getattr(module, name)


def load_prices(reference: str | None) -> Pricing:
    """What calls to models cost: the book that there is, with the prices of a JSON file in place of some or beside them, or
    MODULE:NAME, which is a PriceBook or a function of yours. Raises ConfigurationError.

    The file: {"source": ..., "date": ..., "prices": {MODEL: {"input": "2.50", "output": "10", ...}}}, see `Price`.
    """
    if reference is None:
        return PRICES
    if not reference.endswith(".json"):
        found = load_object(reference, option="prices")
        if not callable(found):
            raise ConfigurationError(f"LOCKSTEP_PRICES={reference}: it is no PriceBook and no function", option="prices")
        return found
    try:
        given = msgspec.json.decode(Path(reference).read_bytes(), type=GivenPrices)
    except OSError as error:
        raise ConfigurationError(f"LOCKSTEP_PRICES={reference} cannot be read: {error.strerror}", option="prices") from None
    except ValueError as error:
        raise ConfigurationError(f"LOCKSTEP_PRICES={reference} holds no prices: {error}", option="prices") from None
    return PRICES.with_prices(given.prices, source=given.source, date=given.date)


class GivenPrices(msgspec.Struct, forbid_unknown_fields=True):
    """The file of prices."""

    source: str
    date: str
    prices: dict[str, Price]


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"no module {error.name!r} can be imported from {Path.cwd()}; give a dotted name or a path to a .py file",
                option="graph",
            ) from None
        raise ConfigurationError(f"importing {name} failed: {error}", option="graph") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"importing {name} raised {type(error).__name__}: {error}", option="graph") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"no file {path} in {Path.cwd()}", option="graph")
    # By its plain name, as if its folder were imported from: the names of reducers, and so the graph's hash, stay the same
    # wherever the file lies.
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path.resolve()):
            return known
        raise ConfigurationError(f"{path} has the name of module {name!r}, which is loaded already; rename it", option="graph")
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
