"""The command line: `lockstep COMMAND`. Exit codes: 0 ok, 1 run failed, 2 usage or configuration, 3 interrupted, 4 service
unreachable."""

from __future__ import annotations

import sys

import click
import structlog

from lockstep.cli.errors import reports_errors
from lockstep.cli.inspect import runs, show
from lockstep.cli.migrate import migrate
from lockstep.cli.run import resume, retry, run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lockstep-graph", prog_name="lockstep")
def main() -> None:
    """Run graph workflows that give the same bytes every time."""
    # stdout is for results: what nodes log goes beside it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


for command in (run, resume, retry, runs, show, migrate):
    main.add_command(reports_errors(command))
