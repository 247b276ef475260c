"""`run`, `resume` and `retry`: commands that execute, embedded in their own process."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.cli.errors import INTERRUPTED, RUN_FAILED
from lockstep.cli.load import load_graph, load_prices
from lockstep.cli.options import graphs_option, json_option, redis_option, store_option
from lockstep.cli.output import print_json, print_run, run_record
from lockstep.client import Client
from lockstep.config import DEFAULT_STORE_URL, Settings, masked, read_settings
from lockstep.core.lifecycle import RunStatus
from lockstep.costs import dollars
from lockstep.engine import Engine
from lockstep.errors import BudgetExceededError, ConfigurationError, LockstepError, RunInterruptedError, StateError
from lockstep.options import Options
from lockstep.run import Run


@click.command()
@click.argument("graph", metavar="MODULE:GRAPH")
@click.option("--input", "input_", default="{}", metavar="JSON|@FILE", help="The input as a JSON object. Default: {}.")
@click.option("--run-id", help="The run's id; the same one again gives the same run, and goes on with it after a crash.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Nodes that run at a time.")
@click.option("--max-cost-usd", metavar="USD", help="What its calls to models may cost; then it pauses.")
@store_option
@json_option
def run(
    graph: str,
    input_: str,
    run_id: str | None,
    concurrency: int | None,
    max_cost_usd: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Run a graph to its end in this process, and print its state.

    MODULE is a dotted name or a path to a .py file, such as flows.py:graph.
    """
    settings = read_settings(store=store, graphs=[graph])
    options = Options(max_cost_usd=dollars(max_cost_usd, "max_cost_usd")) if max_cost_usd is not None else None
    with _engine(settings, concurrency) as engine:
        try:
            submitted = engine.submit(read_input(input_), run_id=run_id, options=options)
        except StateError as error:
            raise ConfigurationError(f"--input: {error}", option="input") from error
        follow(submitted, settings, as_json, interrupted=_unfinished(submitted, settings))


@click.command()
@click.argument("run_id")
@click.option("--answer", "answers", multiple=True, metavar="[ID=]JSON", help="What a node that waits gets; ID if several do.")
@click.option("--max-cost-usd", metavar="USD", help="What the whole run may cost from now on. Default: as much again.")
@graphs_option
@store_option
@redis_option
@json_option
def resume(
    run_id: str,
    answers: tuple[str, ...],
    max_cost_usd: str | None,
    graphs: tuple[str, ...],
    store: str | None,
    redis: str | None,
    as_json: bool,
) -> None:
    """Go on with a run that waits for answers, has spent its max_cost_usd, or whose process died, from its last commit.

    With graphs, it goes on in this process; without, answers and the new bound are sent to the coordinator that has it.
    """
    settings = read_settings(store=store, redis=redis, graphs=graphs)
    given = _answers(answers)
    options = Options(max_cost_usd=dollars(max_cost_usd, "max_cost_usd")) if max_cost_usd is not None else None
    if (answers or options) and not settings.graphs:
        with Client(settings.store_url, redis_url=settings.redis_url, namespace=settings.namespace) as client:
            client.run(run_id).resume(given, options=options)
        return
    with _engine(settings, None) as engine:
        found = engine.run(run_id)
        engine.recover(run_id)
        if answers or found.status is RunStatus.PAUSED or (found.status is RunStatus.INTERRUPTED and not found.interrupts()):
            found.resume(given, options=options)
        follow(found, settings, as_json, interrupted=_unfinished(found, settings))


def _answers(given: tuple[str, ...]) -> Any:
    """The one answer, or those by id. Raises ConfigurationError."""
    by_id: dict[str, Any] = {}
    for text in given:
        match = re.fullmatch(r"([0-9a-f]{16}-[0-9]+)=(.*)", text, re.DOTALL)
        if match is None and len(given) > 1:
            raise ConfigurationError(f"--answer {text}: of several answers, each needs its ID=", option="answer")
        try:
            value = json.loads(match[2] if match else text)
        except ValueError as error:
            raise ConfigurationError(f"--answer {text} is not JSON: {error}", option="answer") from None
        if match is None:
            return value
        by_id[match[1]] = value
    return by_id


@click.command()
@click.argument("run_id")
@graphs_option
@store_option
@json_option
def retry(run_id: str, graphs: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Go on with a failed run from its last commit; results that it has are kept."""
    settings = read_settings(store=store, graphs=graphs)
    with _engine(settings, None) as engine:
        found = engine.run(run_id)
        if found.status is not RunStatus.FAILED:
            raise ConfigurationError(f"run {run_id} is {found.status}; only a failed run is retried", option="run_id")
        found.retry()
        follow(found, settings, as_json, interrupted=_unfinished(found, settings))


def _unfinished(run: Run, settings: Settings) -> str:
    graphs = [argument for reference in settings.graphs for argument in ("--graphs", reference)]
    again = shlex.join(["lockstep", "resume", run.run_id, *graphs, "--store", masked(settings.store_url)])
    return f"run {run.run_id} is unfinished; go on with: {again}"


@contextmanager
def _engine(settings: Settings, concurrency: int | None) -> Iterator[Engine]:
    """An engine with the graphs of the settings. What nodes print goes to stderr: stdout is for the result."""
    if not settings.graphs:
        raise ConfigurationError("no graph is named; use --graphs MODULE:NAME or LOCKSTEP_GRAPHS", option="graphs")
    # A polite request to end closes the engine like any other end of its `with`, so nothing waits for a lease to run out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with redirect_stdout(sys.stderr):
        graphs = [load_graph(reference) for reference in settings.graphs]
        with Engine(
            graphs, settings.store_url, options=Options(max_concurrent=concurrency), prices=load_prices(settings.prices)
        ) as engine:
            yield engine


def read_input(text: str) -> Any:
    """The value of --input. Raises ConfigurationError."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"--input {text}: {error.strerror}", option="input") from None
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"--input {text} is not UTF-8: {error}", option="input") from None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--input is not JSON: {error}", option="input") from None


def follow(run: Run, settings: Settings, as_json: bool, *, interrupted: str) -> None:
    """Show the run's steps on stderr as they are committed, then its state on stdout; exit with 1 if it failed, 3 if it asks.

    After Ctrl-C, say `interrupted`.
    """
    try:
        if not as_json:
            _show_progress(run)
        run.result()
        code = 0
    except (RunInterruptedError, BudgetExceededError):
        code = INTERRUPTED
    except LockstepError:
        if run.error is None:
            raise
        code = RUN_FAILED
    except KeyboardInterrupt:
        click.echo(f"\n{interrupted}", err=True)
        sys.exit(128 + signal.SIGINT)
    record = run_record(run)
    if as_json:
        print_json(record)
    else:
        console = Console(file=sys.__stdout__)
        print_run(console, record)
        where = "" if settings.store_url == DEFAULT_STORE_URL else f" --store {masked(settings.store_url)}"
        console.print(
            f"[dim]its rows are in {masked(settings.store_url)}: lockstep show {run.run_id}{where}[/dim]", soft_wrap=True
        )
        if record["status"] == RunStatus.PAUSED:
            console.print(
                f"it has spent its max_cost_usd; go on with: lockstep resume {run.run_id} --max-cost-usd USD{where} ..."
            )
    if code:
        sys.exit(code)


def _show_progress(run: Run) -> None:
    """A line for each step: which nodes ran, and how often."""
    console = Console(stderr=True)
    nodes: Counter[str] = Counter()
    with console.status(f"run {run.run_id}"):
        for event in run.stream(["updates", "values"]):
            if event.node_id is not None:
                nodes[event.node_id] += 1
            elif nodes:
                ran = ", ".join(f"{node} × {count}" if count > 1 else node for node, count in nodes.items())
                console.print(f"[dim]step {event.step_id}[/dim]  {ran}", highlight=False)
                nodes.clear()
