"""Sockets that listen, and sockets that connect."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat

from zcrpc.address import Address, resolve
from zcrpc.errors import Unavailable


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


async def bind_tcp(address: Address) -> tuple[socket.socket, Address]:
    """On the first address that the host's name has; OSError if it cannot be had."""
    family, where = (await resolve(address))[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


async def connect_tcp(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    """The first of the host's addresses that answers."""
    try:
        found = await resolve(address)
    except OSError as error:
        raise Unavailable(f"{address}: {_reason(error)}") from error
    failure: OSError | None = None
    for family, where in found:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(sock, where)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise Unavailable(f"{address}: {_reason(failure) if failure else 'no address'}") from failure


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
