"""grpc.aio with generic handlers: bytes in, bytes out, no serializers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from peers.connection import Connection
from peers.payloads import ITEM, acknowledgement, items, summed
from peers.runtimes import Tasks
from peers.workloads import Work

RUNTIME = Tasks()
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a TCP connection for each channel
]


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    async def upload(request: bytes, _: Any) -> bytes:
        return acknowledgement(request)

    async def download(request: bytes, _: Any) -> bytes:
        return body

    async def stream(request: bytes, _: Any) -> AsyncIterator[bytes]:
        for item in items(int.from_bytes(request, "little")):
            yield item

    methods = {each.__name__: grpc.unary_unary_rpc_method_handler(each) for each in (echo, upload, download)}
    methods["stream"] = grpc.unary_stream_rpc_method_handler(stream)
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(port)
    await asyncio.Event().wait()


class Client(Connection):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.echo = channel.unary_unary("/Bench/echo")  # type: ignore[method-assign, assignment]
        self.upload = channel.unary_unary("/Bench/upload")  # type: ignore[method-assign, assignment]
        self._download = channel.unary_unary("/Bench/download")
        self._stream = channel.unary_stream("/Bench/stream")

    async def download(self, size: int) -> bytes:
        return await self._download(b"")  # type: ignore[no-any-return]

    async def stream(self, count: int) -> int:
        right = 0
        async for item in self._stream(count.to_bytes(8, "little")):
            right += item == ITEM
        return right

    async def close(self) -> None:
        await self._channel.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS))
