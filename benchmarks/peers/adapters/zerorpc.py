"""zerorpc on gevent, heartbeats as they are by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zerorpc
import zmq

from peers.connection import Connection
from peers.payloads import ITEM, acknowledgement, items, summed
from peers.runtimes import Greenlets
from peers.workloads import Work

RUNTIME = Greenlets()
_PATIENCE_SECONDS = 60


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    class Bench:
        def echo(self, payload: bytes) -> bytes:
            return payload

        def upload(self, payload: bytes) -> bytes:
            return acknowledgement(payload)

        def download(self, size: int) -> bytes:
            return body

        @zerorpc.stream
        def stream(self, count: int) -> Iterator[bytes]:
            return items(count)

    server = zerorpc.Server(Bench(), heartbeat=5)
    server.bind("tcp://127.0.0.1:*")
    endpoint = server._events._socket.getsockopt(zmq.LAST_ENDPOINT)  # it has no other way to tell
    ready(int(endpoint.rpartition(b":")[2]))
    server.run()


class Client(Connection):
    def __init__(self, client: zerorpc.Client) -> None:
        self._client = client

    async def echo(self, payload: bytes) -> bytes:
        return self._client.echo(payload)  # type: ignore[no-any-return]

    async def upload(self, payload: bytes) -> bytes:
        return self._client.upload(payload)  # type: ignore[no-any-return]

    async def download(self, size: int) -> bytes:
        return self._client.download(size)  # type: ignore[no-any-return]

    async def stream(self, count: int) -> int:
        return sum(item == ITEM for item in self._client.stream(count))

    async def close(self) -> None:
        self._client.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    client = zerorpc.Client(timeout=_PATIENCE_SECONDS)
    client.connect(f"tcp://127.0.0.1:{port}")
    return Client(client)
