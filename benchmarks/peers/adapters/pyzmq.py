"""pyzmq's asyncio sockets: a ROUTER, a DEALER for each connection; a msgpack header in one frame, the body in another,
both ways without a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

import msgspec
import zmq
import zmq.asyncio

from peers.connection import Connection
from peers.payloads import acknowledgement, summed
from peers.runtimes import Tasks
from peers.workloads import Work

RUNTIME = Tasks()
_context = zmq.asyncio.Context(io_threads=1)
_context.set(zmq.MAX_SOCKETS, 4096)
_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)
    router = _context.socket(zmq.ROUTER)
    ready(router.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        sender, header, payload = await router.recv_multipart(copy=False)
        work, _ = _decode(header.buffer)
        answer = {"echo": lambda p=payload: p, "upload": lambda p=payload: acknowledgement(p.buffer)}.get(work)
        await router.send_multipart([sender, header, answer() if answer else body], copy=False)


class Client(Connection):
    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[memoryview]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            header, payload = await self._socket.recv_multipart(copy=False)
            self._waiting.pop(_decode(header.buffer)[1]).set_result(payload.buffer)

    async def _ask(self, work: str, payload: bytes) -> memoryview:
        number = next(self._numbers)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_multipart([_encode((work, number)), payload], copy=False)
        return await reply

    async def echo(self, payload: bytes) -> memoryview:
        return await self._ask("echo", payload)

    async def upload(self, payload: bytes) -> memoryview:
        return await self._ask("upload", payload)

    async def download(self, size: int) -> memoryview:
        return await self._ask("download", b"")

    async def close(self) -> None:
        self._reader.cancel()
        self._socket.close(linger=0)


async def connect(port: int, work: Work, payload: int) -> Client:
    socket = _context.socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return Client(socket)
