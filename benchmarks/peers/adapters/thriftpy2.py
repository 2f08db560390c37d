"""thriftpy2's asyncio client and server: binary protocol, buffered transport."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.contrib.aio.processor import TAsyncProcessor
from thriftpy2.contrib.aio.rpc import make_client
from thriftpy2.contrib.aio.server import TAsyncServer
from thriftpy2.contrib.aio.socket import TAsyncServerSocket

from peers.connection import Connection
from peers.payloads import acknowledgement, summed
from peers.runtimes import Tasks
from peers.workloads import Work

RUNTIME = Tasks()
_PATIENCE_MS = 60_000
_schema = thriftpy2.load(str(Path(__file__).with_name("bench.thrift")), module_name="bench_thrift")


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    class Bench:
        async def echo(self, payload: bytes) -> bytes:
            return payload

        async def upload(self, payload: bytes) -> bytes:
            return acknowledgement(payload)

        async def download(self) -> bytes:
            return body

    transport = TAsyncServerSocket("127.0.0.1", 0, client_timeout=_PATIENCE_MS, backlog=1024)
    server = TAsyncServer(TAsyncProcessor(_schema.Bench, Bench()), transport)
    transport.listen()
    listening = await transport.accept(server.handle)  # as its `serve` does, in a loop that runs already
    ready(listening.sockets[0].getsockname()[1])
    await listening.serve_forever()


class Client(Connection):
    def __init__(self, client: Any) -> None:
        self._client = client
        self.echo = client.echo  # type: ignore[method-assign]
        self.upload = client.upload  # type: ignore[method-assign]

    async def download(self, size: int) -> bytes:
        return await self._client.download()  # type: ignore[no-any-return]

    async def close(self) -> None:
        self._client.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(await make_client(_schema.Bench, "127.0.0.1", port, timeout=_PATIENCE_MS))
