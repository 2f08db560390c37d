"""Who is at the other end of a connection: what it shows, and what a server makes of that."""

from __future__ import annotations

import inspect
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from zcrpc.errors import Unauthenticated
from zcrpc.wire import TOKEN_LIMIT

_ucred: Final = struct.Struct("3i")


@dataclass(slots=True, frozen=True)
class Process:
    """The process at the other end of a Unix socket, as it was when it connected, by the kernel's word
    (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@dataclass(slots=True)
class Caller:
    """Who calls over a connection, as far as it is known. Apart from the connection, so that what outlives a call may
    hold it without holding a server."""

    address: str
    process: Process | None
    identity: Any
    certificate: Mapping[str, Any] | None = None


@dataclass(slots=True, frozen=True, kw_only=True)
class Credentials:
    """What a client shows when it connects. What it does not have is None.

    `address`: where it is, as in `context().peer`. `token`: what `connect(token=…)` was given; compare it with
    `hmac.compare_digest`, which takes the same time wherever the difference is. `process`: of Unix sockets.
    `certificate`: the peer's, verified, as `ssl.SSLSocket.getpeercert` gives it.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    process: Process | None = None
    certificate: Mapping[str, Any] | None = None


Authenticate: TypeAlias = Callable[[Credentials], Any]
"""Gives the identity of who has these credentials, or raises `Unauthenticated`. May be async."""

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]


def peer_process(sock: socket.socket) -> Process | None:
    """Who is at the other end of a connected Unix socket."""
    if sock.family != socket.AF_UNIX:
        return None
    return Process(*_ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size)))


async def identify(authenticate: Authenticate, credentials: Credentials) -> Any:
    """The identity that a server's hook gives to credentials. Raises what the hook does, or Unauthenticated."""
    identity = authenticate(credentials)
    if inspect.isawaitable(identity):
        identity = await identity
    # Else a hook that only compares, or that forgets to return, would let everybody in.
    if identity is None or identity is False:
        raise Unauthenticated("these credentials are not accepted")
    return identity


async def present(token: Token | None) -> str:
    """The token to be shown, "" for none. TypeError or ValueError if it cannot be one."""
    if callable(token):
        made = token()
        token = await made if inspect.isawaitable(made) else made
        if not isinstance(token, str):
            raise TypeError(f"the token's callable gave {type(token).__name__}, not str")
    check_token(token)
    return token or ""


def check_token(token: Token | None) -> None:
    """TypeError or ValueError if it cannot be one."""
    if token is None or callable(token):
        return
    if not isinstance(token, str):
        raise TypeError(f"token is a str or a callable that gives one, not {type(token).__name__}")
    if len(token) > TOKEN_LIMIT:
        raise ValueError(f"a token of {len(token)} characters; {TOKEN_LIMIT} are the limit")
