"""A server in a thread of its own, for tests of what blocks, and of other processes."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import uvloop

import zcrpc

S = TypeVar("S", bound=zcrpc.Service)


class Running(Generic[S]):
    """A server in a thread, with a loop of its own."""

    def __init__(self, service: S, *, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        self.service = service
        self._tls = tls
        self.server = zcrpc.Server(service, **options)
        self.address = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self._thread.start()
        self._ready.wait(10)

    async def _run(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.server.listen("tcp://127.0.0.1:0", ssl=self._tls) as self.address:
            self._ready.set()
            await self._stop.wait()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
