"""A proxy in front of a server, on which connections go wrong."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Final

from zcrpc.address import Address, parse
from zcrpc.errors import Unavailable
from zcrpc.sockets import bind_tcp, connect_tcp, connect_unix
from zcrpc.testing.faults import NONE, FaultsFor, Link, faults_of

_BACKLOG: Final = 128


class Proxy:
    """Listens on a free port of 127.0.0.1 and carries connections to a server.

        async with zcrpc.testing.Proxy(address, to_client=Faults(delay=0.01)) as proxied:
            client = await zcrpc.connect(proxied)

    to_server, to_client: what goes wrong in each direction; see `Faults`. seed: of what is random. `links`: the
    connections, in the order in which they were made. `refuses`: set to True, new connections are closed at once. A
    proxy speaks TCP, but pages of what goes through it cannot be mapped.
    """

    def __init__(
        self, address: str, *, to_server: FaultsFor = NONE, to_client: FaultsFor = NONE, seed: int = 0
    ) -> None:
        self._target = parse(address)
        self._to_server = to_server
        self._to_client = to_client
        self._seed = seed
        self.links: list[Link] = []
        self.refuses = False
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> str:
        self._listener, bound = await bind_tcp(Address(host="127.0.0.1"))
        self._listener.listen(_BACKLOG)
        self._task = asyncio.get_running_loop().create_task(self._accept(self._listener))
        return str(bound)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        assert self._listener is not None
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._listener.close()
        for link in self.links:
            await link.close()

    def cut(self) -> None:
        """Resets every connection that there is now."""
        for link in self.links:
            link.cut()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            if self.refuses:
                client.close()
                continue
            try:
                server = await (connect_unix if self._target.is_unix else connect_tcp)(loop, self._target)
            except Unavailable:
                client.close()
                continue
            for sock in (client, server):
                sock.setblocking(False)
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = len(self.links)
            to_server, to_client = faults_of(self._to_server, number), faults_of(self._to_client, number)
            self.links.append(Link(client, server, to_server, to_client, f"{self._seed}.{number}"))
