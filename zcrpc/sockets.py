"""Sockets that listen, and sockets that connect."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Any, Final

from aiohappyeyeballs import start_connection

from zcrpc.address import Address, parse, resolve
from zcrpc.errors import Unavailable

# RFC 8305, section 5.
_HAPPY_EYEBALLS_SECONDS: Final = 0.25
# A peer that was silent for so long is probed, at most so often, so far apart.
_SILENT_SECONDS: Final = 60
_PROBE_SECONDS: Final = 10
_PROBES: Final = 6
_LATER_SECONDS: Final = 5.0


def listening_source(where: str | socket.socket) -> Address | int | socket.socket:
    """What is to be listened on: an address, or a bound socket that is handed over, itself or as fd://number.
    ValueError for text that is neither."""
    if isinstance(where, socket.socket) or not where.startswith("fd://"):
        return where if isinstance(where, socket.socket) else parse(where)
    number = where.removeprefix("fd://")
    if not number.isascii() or not number.isdecimal():
        raise ValueError(f"{where!r}: expected fd://number")
    return int(number)


async def bind(source: Address | int | socket.socket) -> tuple[socket.socket, Address]:
    """A bound socket, and its address. OSError if it cannot be had, ValueError if what was handed over cannot
    listen."""
    if isinstance(source, Address):
        return bind_unix(source) if source.is_unix else await bind_tcp(source)
    sock = source if isinstance(source, socket.socket) else socket.socket(fileno=source)
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        raise ValueError(f"fd {sock.fileno()} is no stream socket of TCP or Unix: {sock}")
    sock.setblocking(False)
    name = sock.getsockname()
    if sock.family != socket.AF_UNIX:
        return sock, Address(host=name[0], port=name[1])
    return sock, Address(path=os.fsdecode(name).replace("\0", "@", 1) or f"(fd {sock.fileno()})")


def bind_unix(address: Address) -> tuple[socket.socket, Address]:
    """A path that is left over from a server that is gone is taken over; one that is in use is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            sock.bind(address.path)
        except OSError as error:
            if (
                error.errno != errno.EADDRINUSE
                or not stat.S_ISSOCK(os.stat(address.path).st_mode)
                or _answers(address.path)
            ):
                raise
            os.unlink(address.path)
            sock.bind(address.path)
    except BaseException:
        sock.close()
        raise
    return sock, address


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


async def bind_shares(address: Address, count: int) -> tuple[list[socket.socket], Address]:
    """So many sockets on one TCP address, among which the kernel deals out connections. OSError if it cannot be had, or
    is somebody else's."""
    if address.port:  # SO_REUSEPORT would let us share it with whoever has set that too
        (await bind_tcp(address))[0].close()
    sockets: list[socket.socket] = []
    # Only a socket that was bound to a port by its number keeps it when it is shut down, so as to listen again.
    reserved, bound = await bind_tcp(address, shared=True)
    with reserved:
        try:
            while len(sockets) < count:
                sockets.append((await bind_tcp(bound, shared=True))[0])
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
    return sockets, bound


async def bind_tcp(address: Address, shared: bool = False) -> tuple[socket.socket, Address]:
    """On the first address that the host's name has; OSError if it cannot be had. `shared`: with SO_REUSEPORT."""
    family, where = (await resolve(address))[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
        return sock, Address(host=str(where[0]), port=sock.getsockname()[1])
    except BaseException:
        sock.close()
        raise


async def connect_unix(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    """A connected socket; Unavailable if nobody answers at the path."""
    if address.connect is not None:
        return await address.connect()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(sock, address.path)
    except OSError as error:
        sock.close()
        raise Unavailable(f"{address}: {_reason(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_tcp(
    loop: asyncio.AbstractEventLoop, address: Address, found: Sequence[tuple[int, Any]] = ()
) -> socket.socket:
    """The first of the host's addresses, or of those `found` already, that answers; by Happy Eyeballs (RFC 8305), so
    that one that is silent costs a quarter of a second. Unavailable if none does."""
    try:
        found = found or await resolve(address)
        infos = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where) for family, where in found]
        return await start_connection(infos, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop)
    except OSError as error:
        raise Unavailable(f"{address}: {_reason(error)}") from error


def watch_over(sock: socket.socket, stall_timeout: float) -> None:
    """Lets the kernel notice that a TCP socket's peer is gone: one that does not acknowledge what was sent to it, and
    one that was silent for a minute and does not answer probes. A peer whose process is merely busy is not hit, since
    its kernel answers; one that does not read is the reactor's to drop, after `stall_timeout` seconds and with a
    reason, so this comes later. A socket that listens hands all of it down."""
    milliseconds = min(round((stall_timeout + _LATER_SECONDS) * 1000), 0x7FFFFFFF)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
