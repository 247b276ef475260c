"""`export` and `import`: take a run from one store to another."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from lockstep.archive import export_run, import_run
from lockstep.cli.options import store_option
from lockstep.config import read_settings
from lockstep.errors import ConfigurationError
from lockstep.store import open_store


@click.command("export")
@click.argument("run_id")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The file to write. Default: stdout.")
@store_option
def export(run_id: str, output: Path | None, store: str | None) -> None:
    """Write all that the store holds of a run, as lines of JSON that `import` reads."""
    with closing(open_store(read_settings(store=store).store_url, create=False)) as opened:
        lines = export_run(opened, run_id)
        if output is None:
            sys.stdout.buffer.writelines(lines)
            return
        partial = output.with_name(f"{output.name}.part")
        try:
            with partial.open("wb") as file:
                file.writelines(lines)
            os.replace(partial, output)
        except OSError as error:
            raise ConfigurationError(f"{output} cannot be written: {error.strerror}", option="output") from error
        finally:
            partial.unlink(missing_ok=True)


@click.command("import")
@click.argument("file", metavar="FILE")
@click.option("--unfinished", is_flag=True, help="Also a run that has not finished: no other store goes on with it.")
@store_option
def import_(file: str, unfinished: bool, store: str | None) -> None:
    """Store the run of a file that `export` wrote, under its id; - reads stdin. All its hashes are computed again."""
    with closing(open_store(read_settings(store=store).store_url)) as opened, _opened(file) as lines:
        row = import_run(opened, lines, unfinished=unfinished)
    click.echo(f"run {row.run_id} of graph {row.graph}: {row.status} after step {row.step_id}", err=True)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file != "-":
        try:
            with open(file, "rb") as opened:
                yield opened
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}", option="file") from error
        return
    # All of it first: a transaction does not wait for whoever writes into a pipe.
    with tempfile.TemporaryFile() as spooled:
        shutil.copyfileobj(sys.stdin.buffer, spooled)
        spooled.seek(0)
        yield spooled
