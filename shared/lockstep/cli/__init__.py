"""The command line: `lockstep COMMAND`. Exit codes: 0 ok, 1 run failed, 2 usage or configuration, 3 interrupted, 4 service
unreachable."""

from __future__ import annotations

import importlib
import sys
from keyword import iskeyword

import click
import structlog

from lockstep.cli.errors import reports_errors

COMMANDS = {
    "run": "lockstep.cli.run",
    "dev": "lockstep.cli.dev",
    "coordinator": "lockstep.cli.coordinator",
    "worker": "lockstep.cli.worker",
    "relay": "lockstep.cli.relay",
    "submit": "lockstep.cli.submit",
    "runs": "lockstep.cli.inspect",
    "show": "lockstep.cli.inspect",
    "explain": "lockstep.cli.explain",
    "resume": "lockstep.cli.run",
    "retry": "lockstep.cli.run",
    "callback": "lockstep.cli.callback",
    "cancel": "lockstep.cli.submit",
    "update": "lockstep.cli.travel",
    "fork": "lockstep.cli.travel",
    "replay": "lockstep.cli.replay",
    "outbox": "lockstep.cli.outbox",
    "versions": "lockstep.cli.versions",
    "quarantine": "lockstep.cli.quarantine",
    "migrate": "lockstep.cli.migrate",
    "fsck": "lockstep.cli.fsck",
    "prune": "lockstep.cli.prune",
    "export": "lockstep.cli.archive",
    "import": "lockstep.cli.archive",
}
"""The commands, and the module of each."""


class Commands(click.Group):
    """Loads the module of the command that is asked for, and of no other: a worker needs no database's driver."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The commands in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name, loaded."""
        if name in COMMANDS and name not in self.commands:
            function = f"{name}_" if iskeyword(name) else name
            self.add_command(reports_errors(getattr(importlib.import_module(COMMANDS[name]), function)))
        return self.commands.get(name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lockstep-graph", prog_name="lockstep")
def main() -> None:
    """Run graph workflows that give the same bytes every time."""
    # stdout is for results: what nodes log goes beside it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
