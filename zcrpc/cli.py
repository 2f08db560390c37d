"""The command line: ``zcrpc``."""

from __future__ import annotations

import sys

import click

from zcrpc.commands.call import call
from zcrpc.commands.describe import describe
from zcrpc.commands.doctor import doctor
from zcrpc.commands.health import health
from zcrpc.commands.ping import ping
from zcrpc.commands.serve import serve
from zcrpc.commands.top import top
from zcrpc.lab.commands import lab


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zcrpc")
def cli() -> None:
    """An RPC library that maps payloads instead of copying them, and a laboratory for the locks behind it."""


cli.add_command(serve)
cli.add_command(call)
cli.add_command(describe)
cli.add_command(doctor)
cli.add_command(health)
cli.add_command(lab)
cli.add_command(ping)
cli.add_command(top)


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
