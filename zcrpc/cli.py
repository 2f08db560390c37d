"""The command line: ``zcrpc``."""

from __future__ import annotations

import click

from zcrpc.commands.group import Group, main_of
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
    main_of(cli, "zcrpc")


if __name__ == "__main__":
    main()
