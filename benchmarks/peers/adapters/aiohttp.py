"""aiohttp: POST and GET, kept alive; a session with one connection for each connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import ClientSession, TCPConnector, web

from peers.connection import Connection
from peers.payloads import acknowledgement, summed
from peers.runtimes import Tasks
from peers.workloads import Work

RUNTIME = Tasks()


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def upload(request: web.Request) -> web.Response:
        return web.Response(body=acknowledgement(await request.read()))

    async def download(request: web.Request) -> web.Response:
        return web.Response(body=body)

    application = web.Application(client_max_size=1 << 40)
    application.add_routes(
        [web.post("/echo", echo), web.post("/upload", upload), web.get("/download", download)],
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    ready(runner.addresses[0][1])
    await asyncio.Event().wait()


class Client(Connection):
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = ClientSession(connector=TCPConnector(limit=1))

    async def echo(self, payload: bytes) -> bytes:
        async with self._session.post(f"{self._url}/echo", data=payload) as response:
            return await response.read()

    async def upload(self, payload: bytes) -> bytes:
        async with self._session.post(f"{self._url}/upload", data=payload) as response:
            return await response.read()

    async def download(self, size: int) -> bytes:
        async with self._session.get(f"{self._url}/download") as response:
            return await response.read()

    async def close(self) -> None:
        await self._session.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(port)
