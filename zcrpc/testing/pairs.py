"""A server and a client that are connected by a socketpair."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Final, Generic, TypeVar, cast

from zcrpc.address import Address
from zcrpc.client import Client, connect
from zcrpc.errors import Unavailable
from zcrpc.server import Server
from zcrpc.service import Service
from zcrpc.testing.faults import NONE, FaultsFor, Link, faults_of

S = TypeVar("S", bound=Service)

_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType({})


class Pair(Generic[S]):
    """What `pair` returns: an async context manager that yields the typed client.

    `server`, `client`: the two. `links`: the connections that were made, if faults were asked for.
    """

    def __init__(
        self,
        services: tuple[S, *tuple[Service, ...]],
        to_server: FaultsFor | None,
        to_client: FaultsFor | None,
        seed: int,
        server: Mapping[str, Any],
        client: Mapping[str, Any],
    ) -> None:
        self.server = Server(*services, **server)
        self.client: Client
        self.links: list[Link] = []
        self._service = type(services[0])
        self._to_server = to_server
        self._to_client = to_client
        self._seed = seed
        self._connected = 0
        address = Address(path="socketpair", connect=self._connect)
        self._connecting = connect(cast(str, address), **client)

    async def __aenter__(self) -> S:
        try:
            self.client = await self._connecting
        except BaseException:
            await self._close(grace=0)
            raise
        return self.client.use(self._service)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.close()
        await self._close(grace=5.0 if kind is None else 0.0)

    async def _close(self, grace: float) -> None:
        for link in self.links:
            await link.close()
        await self.server.close(grace)

    async def _connect(self) -> socket.socket:
        number = self._connected
        self._connected += 1
        if self.server.closing:
            raise Unavailable("the server of this pair is closed")
        ours, theirs = _socketpair()
        if self._to_server is not None or self._to_client is not None:
            to_server = faults_of(self._to_server or NONE, number)
            to_client = faults_of(self._to_client or NONE, number)
            left, (right, theirs) = theirs, _socketpair()
            self.links.append(Link(left, right, to_server, to_client, f"{self._seed}.{number}"))
        await self.server.adopt(theirs)
        return ours


def _socketpair() -> tuple[socket.socket, socket.socket]:
    made = socket.socketpair()
    for sock in made:
        sock.setblocking(False)
    return made


def pair(
    service: S,
    /,
    *more: Service,
    to_server: FaultsFor | None = None,
    to_client: FaultsFor | None = None,
    seed: int = 0,
    server: Mapping[str, Any] = _DEFAULTS,
    client: Mapping[str, Any] = _DEFAULTS,
) -> Pair[S]:
    """A server of `service` and a client of it, in this event loop, connected by a socketpair: no address, no port.

        async with zcrpc.testing.pair(Store()) as store: ...

        both = zcrpc.testing.pair(Store(), Log(), server={"max_in_flight": 1})
        async with both as store:
            log = both.client.use(Log)
            both.server.stats()

    more: services that are served besides. server, client: options of `zcrpc.Server` and `zcrpc.connect`. to_server,
    to_client: what goes wrong in each direction; see `Faults`. seed: of what is random in that. Payloads are copied, as
    on any Unix socket.
    """
    return Pair((service, *more), to_server, to_client, seed, server, client)
