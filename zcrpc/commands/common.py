"""What the commands share that talk to a running server: how they connect, and how they fail."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

import zcrpc
from zcrpc.errors import ZcrpcError

F = TypeVar("F", bound=Callable[..., Any])

# Where a token is taken from: options are for all of the machine's users to see.
TOKEN: Final = "ZCRPC_TOKEN"
FILE: Final = click.Path(path_type=Path, dir_okay=False)


@dataclass(slots=True, frozen=True, kw_only=True)
class Target:
    """A server, and how to connect to it."""

    address: str
    timeout: float
    token: str | None
    context: ssl.SSLContext | None
    server_hostname: str | None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[zcrpc.Client]:
        """A client. What fails to connect, and what calls fail with, ends the command; see `main`."""
        async with zcrpc.connect(
            self.address,
            timeout=self.timeout,
            token=self.token,
            ssl=self.context,
            server_hostname=self.server_hostname,
        ) as client:
            yield client


def targeted(command: F) -> F:
    """ADDRESS, and the options with which a command connects to it; the command gets a `Target`. The token that the
    server is shown is taken from the environment."""

    @functools.wraps(command)
    def run(
        address: str,
        timeout: float,
        tls: bool,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        server_name: str | None,
        **options: Any,
    ) -> Any:
        context = _context(tls, ca, certificate, key)
        if server_name is not None and context is None:
            raise click.UsageError("--server-name goes with --tls")
        target = Target(
            address=address,
            timeout=timeout,
            token=os.environ.get(TOKEN),
            context=context,
            server_hostname=server_name or None,
        )
        return command(target=target, **options)

    options = (
        click.argument("address"),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            default=10.0,
            show_default=True,
            help="Seconds to connect, and for the call.",
        ),
        click.option("--tls", is_flag=True, help="Connect by TLS."),
        click.option("--ca", type=FILE, help="Certificates to trust, in PEM, instead of the system's."),
        click.option("--certificate", type=FILE, help="The own certificate, in PEM, for mutual TLS."),
        click.option("--key", type=FILE, help="The key of that, if it is not in the same file."),
        click.option("--server-name", help="Whom the server's certificate is for, if not for the address's host."),
    )
    for option in reversed(options):
        run = option(run)
    return run  # type: ignore[return-value]


def _context(tls: bool, ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if not tls:
        if ca is not None or certificate is not None or key is not None:
            raise click.UsageError("--ca, --certificate and --key go with --tls")
        return None
    if key is not None and certificate is None:
        raise click.UsageError("--key goes with --certificate")
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"TLS: {error}") from None
    return context


def main(work: Coroutine[Any, Any, int | None]) -> None:
    """Runs a command to its end. A call that fails is one line on standard error, with the name of its status, and
    exit status 1; a wrong address is bad usage."""
    # What the library has to say comes back as an error, which is told once.
    logging.getLogger("zcrpc").addHandler(logging.NullHandler())
    try:
        status = zcrpc.run(work)
    except ZcrpcError as error:
        click.echo(f"zcrpc: {error.status.name}: {error.message}", err=True)
        if error.details is not None:
            click.echo(f"zcrpc: details: {to_json(error.details)}", err=True)
        sys.exit(1)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    sys.exit(status or 0)


def to_json(value: Any, *, indent: int = 0) -> str:
    """A result for people and programs. Buffers are strings of base64; what JSON has no word for is a string, too."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


async def read_file(path: Path) -> bytes:
    """A file, or standard input for "-". UsageError if it cannot be read."""
    try:
        return await asyncio.to_thread(sys.stdin.buffer.read if str(path) == "-" else path.read_bytes)
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
