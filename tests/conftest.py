import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

import zcrpc

Serving = Callable[..., AbstractAsyncContextManager[tuple[zcrpc.Server, str]]]


class Waits(zcrpc.Service):
    """A service with a handler that waits until its gate is opened, and counts."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began = 0
        self.cancelled = 0

    @zcrpc.method
    async def wait(self) -> str:
        self.began += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "waited"


async def until(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    """Waits for a condition, looking every few milliseconds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(
    *services: zcrpc.Service, address: str = "tcp://127.0.0.1:0", **options: Any
) -> AsyncIterator[tuple[zcrpc.Server, str]]:
    """A server that listens; at the end nothing of it may be left over."""
    server = zcrpc.Server(*services, **options)
    regions = server.regions
    async with server.listen(address) as bound:
        yield server, bound
        await until(lambda: not server.calls)
        gc.collect()
        await until(lambda: not regions.stats().leases)


@pytest.fixture(name="serving")
def _serving() -> Serving:
    return serving
