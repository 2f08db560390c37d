"""The command line: ``zcrpc``."""

from __future__ import annotations

import sys

import click

from zcrpc.commands.group import Group
from zcrpc.lab.commands import lab


@click.group(
    cls=Group,
    package="zcrpc.commands",
    modules=("call", "describe", "doctor", "health", "ping", "serve", "top"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="zcrpc")
def cli() -> None:
    """An RPC library that maps payloads instead of copying them, and a laboratory for the locks behind it."""


cli.add_command(lab)


def main() -> None:
    """The entry point: what is wrong with the arguments is one line on standard error, status 2."""
    try:
        cli.main(prog_name="zcrpc", standalone_mode=False)
    except click.UsageError as error:
        click.echo(f"zcrpc: {error.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
