"""pycapnp: two-party RPC; Data fields arrive as bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capnp

from peers.connection import Connection
from peers.payloads import acknowledgement, summed
from peers.runtimes import Tasks
from peers.workloads import Work

RUNTIME = Tasks(asyncio.run, capnp.kj_loop)
_NO_LIMIT = 1 << 61  # words that a message may have
_Bench = capnp.load(str(Path(__file__).with_name("bench.capnp"))).Bench


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    class Server(_Bench.Server):  # type: ignore[misc, name-defined]
        async def echo(self, payload: bytes, **_: Any) -> bytes:
            return payload

        async def upload(self, payload: bytes, **_: Any) -> bytes:
            return acknowledgement(payload)

        async def download(self, **_: Any) -> bytes:
            return body

    async def connected(stream: Any) -> None:
        party = capnp.TwoPartyServer(stream, bootstrap=Server(), traversal_limit_in_words=_NO_LIMIT)
        await party.on_disconnect()

    server = await capnp.AsyncIoStream.create_server(connected, "127.0.0.1", 0, backlog=1024)
    ready(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class Client(Connection):
    def __init__(self, party: Any) -> None:
        self._party = party
        self._bench = party.bootstrap().cast_as(_Bench)

    async def echo(self, payload: bytes) -> bytes:
        return (await self._bench.echo(payload)).payload  # type: ignore[no-any-return]

    async def upload(self, payload: bytes) -> bytes:
        return (await self._bench.upload(payload)).sum  # type: ignore[no-any-return]

    async def download(self, size: int) -> bytes:
        return (await self._bench.download()).payload  # type: ignore[no-any-return]

    async def close(self) -> None:
        self._party.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    stream = await capnp.AsyncIoStream.create_connection("127.0.0.1", port)
    return Client(capnp.TwoPartyClient(stream, traversal_limit_in_words=_NO_LIMIT))
