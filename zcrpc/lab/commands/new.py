"""`zcrpc lab new`."""

from __future__ import annotations

from pathlib import Path

import click

from zcrpc import locks
from zcrpc.lab import new as example


@click.command()
@click.argument("name")
@click.option(
    "--in", "parent", default=".", type=click.Path(file_okay=False, path_type=Path), help="Where to put the directory."
)
def new(name: str, parent: Path) -> None:
    """Write a working lock strategy to start from: a C file, the command that builds it, and its tests."""
    try:
        written = example.write(name, parent)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"cannot write {parent / name}: {error.strerror}") from None
    for path in written:
        click.echo(path)
    plugin = written[0].with_suffix(".so")
    click.echo(f"\nBuild and test it:  make -C {plugin.parent} test")
    click.echo(f"Torture it:         {locks.ENVIRONMENT}={plugin} zcrpc lab torture --locks {name}")
    click.echo(f"Run a server on it: {locks.ENVIRONMENT}={plugin} zcrpc lab seed --locks global,{name}")
