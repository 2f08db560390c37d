"""From an address to a connection that calls can be made over: socket, TLS, hello."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zcrpc._native import lib
from zcrpc.address import Address
from zcrpc.calling import ClientConnection
from zcrpc.compression import FEATURE, Packing
from zcrpc.credentials import Token, present
from zcrpc.errors import DeadlineExceeded, Unavailable, ZcrpcError
from zcrpc.keepalive import Watching
from zcrpc.pool import Pool
from zcrpc.sockets import connect_tcp, connect_unix, watch_over
from zcrpc.tls import Tunnel, describe, open_tunnel
from zcrpc.wire import Hello, Limits


@dataclass(slots=True, kw_only=True)
class Dialer:
    """Makes a client's connections. `timeout`: seconds for socket, TLS and hello together. `limits`,
    `map_from`: see `Hello`; the latter of connections that payloads can be mapped on."""

    pool: Pool
    limits: Limits
    map_from: int
    timeout: float | None
    tls: ssl.SSLContext | None
    server_hostname: str | None
    watching: Watching
    token: Token | None = None
    packing: Packing | None = None
    _tunnels: set[Tunnel] = field(default_factory=set)

    async def dial(
        self, address: Address, found: Sequence[tuple[int, Any]] = (), timeout: float | None = None
    ) -> ClientConnection:
        """A connection that is ready. Raises Unavailable if there is nobody, or not who it should be; DeadlineExceeded
        if it takes longer than `timeout` or the dialer's own; or what the server refuses it with."""
        timeout = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(timeout):
                return await self._dial(address, found)
        except TimeoutError:
            raise DeadlineExceeded(f"{address}: no connection within {timeout:.3g} s") from None

    async def dial_first(self, addresses: Sequence[Address]) -> ClientConnection:
        """A connection to the first of several servers that takes one. Each has its share of the time that is left."""
        loop, errors = self.pool.reactor.loop, list[ZcrpcError]()
        until = None if self.timeout is None else loop.time() + self.timeout
        for index, address in enumerate(addresses):
            share = None if until is None else max(0.0, (until - loop.time()) / (len(addresses) - index))
            try:
                return await self.dial(address, timeout=share)
            except ZcrpcError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        raise Unavailable("; ".join(error.message for error in errors))

    async def _dial(self, address: Address, found: Sequence[tuple[int, Any]]) -> ClientConnection:
        loop, map_from = self.pool.reactor.loop, 0
        shown = await present(self.token)
        if address.is_unix:
            sock = await connect_unix(loop, address)
        else:
            sock = await connect_tcp(loop, address, found)
            watch_over(sock, self.pool.options.reactor.stall_ms / 1000)
            map_from = 0 if self.tls is not None else self.map_from
        if self.tls is None:
            return await self._greet(address, sock, map_from, shown, None)
        hostname = self.server_hostname or address.host or None
        try:
            tunnel = await open_tunnel(loop, sock, self.tls, server_side=False, server_hostname=hostname)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{address}: TLS: {describe(error)}") from error
        self._tunnels.add(tunnel)
        tunnel.on_close = lambda: self._tunnels.discard(tunnel)
        return await self._greet(address, tunnel.inner, map_from, shown, tunnel)

    async def _greet(
        self, address: Address, sock: socket.socket, map_from: int, shown: str, tunnel: Tunnel | None
    ) -> ClientConnection:
        """Takes over the socket, and waits for the server's hello."""
        hello = Hello(
            limits=self.limits,
            chunk=lib.ZC_CHUNK_BYTES,
            map_from=map_from,
            features=[] if self.packing is None else [FEATURE],
            token=shown,
        )
        connection = None
        try:
            connection = ClientConnection(
                self.pool.reactor,
                sock.fileno(),
                map_from > 0,
                hello,
                str(address),
                self.watching,
                tunnel,
                self.packing,
            )
            sock.detach()
            await connection.greeted_event.wait()
            if connection.draining is not None:
                raise connection.draining
            if connection.ended is not None:
                raise connection.loss(unprocessed=True)
            return connection
        except BaseException:
            if connection is not None:
                connection.abort("connecting failed")
            else:
                sock.close()
            if tunnel is not None:
                tunnel.close()
            raise

    def close(self) -> None:
        """Ends the TLS of connections that are closed, but were not closed in good order."""
        for tunnel in list(self._tunnels):
            tunnel.close()
