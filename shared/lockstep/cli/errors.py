"""How a command ends: our errors become one line on stderr and an exit code."""

from __future__ import annotations

import functools
import sys
from typing import Any

import click

from lockstep.errors import (
    ArchiveError,
    BrokerUnavailableError,
    BudgetExceededError,
    ConfigurationError,
    GraphVersionError,
    LockstepError,
    RunExistsError,
    RunInterruptedError,
    RunNotFoundError,
    StoreUnavailableError,
    UnknownGraphError,
)

RUN_FAILED, USAGE, INTERRUPTED, UNREACHABLE = 1, 2, 3, 4

_USAGE_ERRORS = (ArchiveError, ConfigurationError, GraphVersionError, RunExistsError, RunNotFoundError, UnknownGraphError)


def exit_code_of(error: LockstepError) -> int:
    """The exit code that says what kind of error it is."""
    match error:
        case StoreUnavailableError() | BrokerUnavailableError():
            return UNREACHABLE
        case RunInterruptedError() | BudgetExceededError():
            return INTERRUPTED
        case _ if isinstance(error, _USAGE_ERRORS):
            return USAGE
        case _:
            return RUN_FAILED


def reports_errors(command: click.Command) -> click.Command:
    """The command, with LockstepErrors reported instead of raised."""
    callback = command.callback
    assert callback is not None

    @functools.wraps(callback)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except LockstepError as error:
            click.echo(f"{type(error).__name__}: {error}", err=True)
            sys.exit(exit_code_of(error))

    command.callback = reporting
    return command
