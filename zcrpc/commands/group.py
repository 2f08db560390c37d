"""A group of commands that are loaded one by one, and the main of every program."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click


class Group(click.Group):
    """A click group whose commands each have a module of their name in `package`, imported when it is wanted: what one
    command needs takes longer to load than most others take to run.
    """

    def __init__(self, *arguments: Any, package: str = "", modules: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._package = package
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in self._modules:
            self.add_command(getattr(import_module(f"{self._package}.{cmd_name}"), cmd_name))
        return super().get_command(ctx, cmd_name)


def main_of(command: click.Command, name: str) -> None:
    """A program's main: what is wrong with the arguments is one line on standard error, status 2."""
    try:
        command.main(prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        click.echo(f"{name}: {error.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
