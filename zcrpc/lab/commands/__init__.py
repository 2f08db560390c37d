"""`zcrpc lab`: a module for each command."""

from __future__ import annotations

import click

from zcrpc.commands.group import Group

_COMMANDS = ("bench", "kernel", "new", "report", "seed", "simulate", "torture", "upload")


@click.group(cls=Group, package=__name__, modules=_COMMANDS)
def lab() -> None:
    """The laboratory: locks, written, proved, measured and predicted."""
