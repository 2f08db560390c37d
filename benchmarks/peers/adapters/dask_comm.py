"""Dask's comm: messages of an operation and a body; bulk bodies as arrays, which travel out of band."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy
from distributed import comm as comms
from distributed.protocol import to_serialize

from peers.connection import Connection
from peers.payloads import ITEM, acknowledgement, items, summed
from peers.runtimes import Tasks
from peers.workloads import Work

RUNTIME = Tasks()


def _bulk(body: bytes) -> Any:
    return to_serialize(numpy.frombuffer(body, numpy.uint8))


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    async def handle(comm: Any) -> None:
        try:
            while True:
                message = await comm.read()
                await answer(comm, message["op"], message["body"])
        except comms.CommClosedError:
            pass

    async def answer(comm: Any, op: Work, payload: Any) -> None:
        if op == "echo":
            await comm.write({"body": payload})
        elif op == "upload":
            await comm.write({"body": acknowledgement(memoryview(payload))})
        elif op == "download":
            await comm.write({"body": _bulk(body)})
        else:
            for item in items(payload):
                await comm.write({"body": item})

    listener = await comms.listen("tcp://127.0.0.1:0", handle)
    ready(int(listener.contact_address.rpartition(":")[2]))
    await asyncio.Event().wait()


class Client(Connection):
    def __init__(self, comm: Any) -> None:
        self._comm = comm

    async def _ask(self, op: Work, body: Any) -> Any:
        await self._comm.write({"op": op, "body": body})
        return (await self._comm.read())["body"]

    async def echo(self, payload: bytes) -> bytes:
        return await self._ask("echo", payload)  # type: ignore[no-any-return]

    async def upload(self, payload: bytes) -> bytes:
        return await self._ask("upload", _bulk(payload))  # type: ignore[no-any-return]

    async def download(self, size: int) -> memoryview:
        return memoryview(await self._ask("download", 0))

    async def stream(self, count: int) -> int:
        right = (await self._ask("stream", count)) == ITEM
        for _ in range(count - 1):
            right += (await self._comm.read())["body"] == ITEM
        return right

    async def close(self) -> None:
        await self._comm.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(await comms.connect(f"tcp://127.0.0.1:{port}"))
