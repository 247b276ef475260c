"""docs/cli.md lists what the command line has: every command with every option of its own, and the exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from lockstep.cli import COMMANDS as MODULES
from lockstep.cli import main
from lockstep.cli.errors import INTERRUPTED, RUN_FAILED, UNREACHABLE, USAGE
from lockstep.config import VARIABLES

COMMANDS = {name: main.get_command(click.Context(main), name) for name in MODULES}
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def rows() -> dict[str, list[str]]:
    """The cells of each table row whose first cell is a command line, by the command's name."""
    lines = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `lockstep ")]
    names = [cells[0].strip().strip("`").split()[1] for cells in lines]
    assert len(set(names)) == len(names), "a command is listed twice"
    return dict(zip(names, lines, strict=True))


def options_of(command: click.Command) -> list[str]:
    return [parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)]


def test_the_page_lists_exactly_the_commands() -> None:
    assert list(rows()) == list(COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_page_lists_exactly_the_options_of_a_command(name: str) -> None:
    # given the row of the command, then its options are those flags in backticks, in the order of --help
    assert re.findall(r"`(--[a-z-]+)", " ".join(rows()[name])) == options_of(COMMANDS[name])


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_page_shows_the_arguments_of_a_command(name: str) -> None:
    command = COMMANDS[name]
    metavars = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
    assert rows()[name][0].strip().strip("`").split()[2:] == metavars


def test_the_page_states_the_exit_codes() -> None:
    [line] = [line for line in PAGE.read_text().splitlines() if line.startswith("Exit codes:")]
    assert re.findall(r"\d+", line) == [str(code) for code in (0, RUN_FAILED, USAGE, INTERRUPTED, UNREACHABLE)]


def test_the_page_names_the_variables() -> None:
    assert set(re.findall(r"LOCKSTEP_[A-Z_]+", PAGE.read_text())) == set(VARIABLES)
