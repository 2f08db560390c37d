"""`zcrpc serve`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click
from click.core import ParameterSource

from zcrpc.address import Address
from zcrpc.calibration import Receive
from zcrpc.loading import CannotLoad, load_server
from zcrpc.server import Server
from zcrpc.sockets import listening_source
from zcrpc.supervisor import READY, DidNotStart, Supervisor
from zcrpc.systemd import notify

_log = logging.getLogger("zcrpc.server")
_Result = TypeVar("_Result")

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s"
_LEVELS: Final = ("debug", "info", "warning", "error")

_path = click.Path(exists=True, dir_okay=False, path_type=Path)
_bytes = click.IntRange(min=1)
_count = click.IntRange(min=1)


@click.command()
@click.argument("services", metavar="MODULE:SERVICE[,…]")
@click.option(
    "--listen",
    "addresses",
    multiple=True,
    help="tcp://host:port, unix://path, or fd://number of "
    "an inherited socket; may be given more than once.  [default: tcp://127.0.0.1:7000]",
)
@click.option(
    "--workers", type=_count, help="Serve in so many processes, and replace those that die. Without it: in this one."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds that calls in flight have to finish.",
)
@click.option("--locks", help="The lock strategy of the region map.")
@click.option("--receive", type=click.Choice(get_args(Receive)), help="How large payloads are received.")
@click.option("--receive-threads", type=click.IntRange(min=0), help="Native threads that receive.")
@click.option("--threads", type=_count, help="Threads for blocking methods.")
@click.option("--budget", type=_bytes, help="Bytes of memory for payloads in use.")
@click.option("--max-message", type=_bytes, help="Bytes in one call.")
@click.option("--max-connections", type=_count, help="Connections, of each worker.")
@click.option("--max-calls", type=_count, help="Calls in flight, in each worker.")
@click.option("--max-in-flight", type=_count, help="Calls in flight of one connection.")
@click.option(
    "--keepalive", type=click.FloatRange(min=0.001), help="Seconds of silence before a client is sent a ping."
)
@click.option(
    "--idle-timeout", type=click.FloatRange(min=0.001), help="Seconds without a call before a connection is closed."
)
@click.option(
    "--max-connection-age", type=click.FloatRange(min=0.01), help="Seconds after which a client is to connect anew."
)
@click.option("--certificate", type=_path, help="PEM file: serve by TLS.")
@click.option("--key", type=_path, help="PEM file of the certificate's key, if it is not in the same.")
@click.option("--client-ca", type=_path, help="PEM file: ask clients for certificates of this authority.")
@click.option("--uvloop/--no-uvloop", default=True, help="Which event loop.  [default: uvloop]")
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True)
@click.option("--control", type=int, hidden=True, help="The supervisor's end of a worker.")
def serve(
    services: str,
    addresses: tuple[str, ...],
    workers: int | None,
    grace: float,
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
    uvloop: bool,
    log_level: str,
    control: int | None,
    **options: Any,
) -> None:
    """Serve one or more services until SIGTERM or SIGINT.

    MODULE:SERVICE names a Service class, an object of one, a Server, or a function that makes one. Modules are looked
    for in the current directory first.

    SIGTERM and SIGINT let calls in flight finish; a second one does not wait for them. With --workers, SIGHUP restarts
    the workers one after the other, without losing a call.
    """
    logging.basicConfig(level=log_level.upper(), format=_FORMAT)
    context = _tls(certificate, key, client_ca)
    sources = _sources(addresses or ("tcp://127.0.0.1:7000",))
    if workers is not None:
        sys.exit(_supervise(Supervisor(_worker_command(click.get_current_context()), sources, workers, grace)))
    sys.path.insert(0, os.getcwd())
    given = {name: value for name, value in options.items() if value is not None}
    try:
        server = load_server([name.strip() for name in services.split(",")], given)
    except CannotLoad as error:
        raise click.UsageError(str(error)) from None
    status = _run(_serve(server, sources, context, grace, control), uvloop)
    if server.stats().threads:
        _log.warning("%d blocking calls are abandoned", server.stats().threads)
        logging.shutdown()
        os._exit(status)  # an ordinary exit would wait for their threads
    sys.exit(status)


def _sources(addresses: tuple[str, ...]) -> list[Address | int]:
    try:
        found = [listening_source(address) for address in addresses]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return [each for each in found if not isinstance(each, socket.socket)]


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None or client_ca is not None:
            raise click.UsageError("--key and --client-ca need a --certificate")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the certificate or its key cannot be used: {error}") from None
    return context


def _run(main: Coroutine[Any, Any, _Result], uvloop: bool) -> _Result:
    if not uvloop:
        return asyncio.run(main)
    import uvloop as loops

    return loops.run(main)


# ---- one process


async def _serve(
    server: Server, sources: list[Address | int], context: ssl.SSLContext | None, grace: float, control: int | None
) -> int:
    try:
        bound = [await server.listen(_text(source), ssl=context) for source in sources]
    except (OSError, ValueError) as error:
        click.echo(f"zcrpc: cannot listen: {error}", err=True)
        await server.close(grace=0)
        return 1
    if control is None:
        _say(bound)
        await server.serve_until_signalled(grace)
        return 0
    with _controlled(server, control, grace):
        await server.serve_until_signalled(grace)
    return 0


def _text(source: Address | int) -> str:
    return f"fd://{source}" if isinstance(source, int) else str(source)


def _say(addresses: list[str]) -> None:
    for address in addresses:
        click.echo(f"listening on {address}")
    sys.stdout.flush()
    notify("READY=1")


@contextlib.contextmanager
def _controlled(server: Server, control: int, grace: float) -> Iterator[None]:
    """Tells the supervisor that this worker is ready, and goes away if there is none any more."""
    loop = asyncio.get_running_loop()
    closing: list[asyncio.Task[None]] = []
    with socket.socket(fileno=control) as sock:

        def gone() -> None:
            loop.remove_reader(sock)
            _log.error("the supervisor is gone")
            closing.append(loop.create_task(server.close(grace)))

        sock.setblocking(False)
        loop.add_reader(sock, gone)
        try:
            sock.send(READY)
            yield
        finally:
            loop.remove_reader(sock)


# ---- a supervisor


def _worker_command(command: click.Context) -> list[str]:
    """This command again, without what only a supervisor heeds."""
    words = [sys.executable, "-m", "zcrpc.cli", "serve", str(command.params["services"])]
    for option in command.command.params:
        name = option.name or ""
        given = command.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or not isinstance(option, click.Option) or name in ("workers", "addresses"):
            continue
        value = command.params[name]
        if option.is_flag:
            words.append((option.opts if value else option.secondary_opts)[0])
        else:
            words += (option.opts[0], str(value))
    return words


def _supervise(supervisor: Supervisor) -> int:
    try:
        asyncio.run(supervisor.run(_say))
    except DidNotStart as error:
        click.echo(f"zcrpc: {error}: nothing is served", err=True)
        return 1
    except OSError as error:
        click.echo(f"zcrpc: cannot listen: {error}", err=True)
        return 1
    return 0
