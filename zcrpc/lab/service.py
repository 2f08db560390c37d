"""A real server with Python handlers, in a process of its own.

python -m zcrpc.lab.service     takes `ServiceOptions` as JSON, gives `Ready`, then a `Snapshot` for each line that it
                                hears; ends when its standard input does
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import zcrpc
from zcrpc import calibration
from zcrpc.calibration import Cost, Receive, WayCost
from zcrpc.lab.processes import Child, hear, say

PAGE = 4096


def page_sum(payload: bytes | memoryview) -> int:
    """The sum of the first byte of each page: what touching a payload costs, and a check of its contents."""
    return sum(
        bytes(payload[::PAGE])
    )  # gathered first: the misses of a strided read overlap, those of an iterator do not


def summed(size: int) -> bytes:
    """Random bytes, at least 8; the last 8 are the sum of their pages' first bytes."""
    body = os.urandom(size - 8)
    return body + page_sum(body).to_bytes(8, "little")


class Bench(zcrpc.Service):
    """What is measured."""

    _download = memoryview(b"")

    @zcrpc.method
    async def echo(self, payload: memoryview) -> memoryview:
        """Returns its payload."""
        return payload

    @zcrpc.method
    async def put(self, payload: memoryview) -> bytes:
        """Touches every page of its payload; returns 16 bytes, the last 8 of them the sum of the pages' first bytes."""
        return bytes(8) + page_sum(payload).to_bytes(8, "little")

    @zcrpc.method
    async def get(self, size: int) -> memoryview:
        """`summed` of that size, the same each time. A view: annotated as bytes, the caller would be given a copy."""
        if len(self._download) != size:
            self._download = memoryview(summed(size))
        return self._download

    @zcrpc.method
    async def items(self, size: int, count: int) -> AsyncIterator[memoryview]:
        """So many items of so many bytes."""
        item = memoryview((bytes(range(256)) * (size // 256 + 1))[:size])
        for _ in range(count):
            yield item

    @zcrpc.method
    async def take(self, items: AsyncIterator[memoryview], pause: float) -> int:
        """Takes items, and rests for so many seconds after each; returns their bytes."""
        total = 0
        async for item in items:
            total += len(item)
            if pause:
                await asyncio.sleep(pause)
        return total

    @zcrpc.method
    async def wait(self, seconds: float) -> None:
        """Sleeps."""
        await asyncio.sleep(seconds)

    @zcrpc.method
    async def fail(self, text: str) -> None:
        """Raises NotFound."""
        raise zcrpc.NotFound(text)


@dataclass(slots=True, frozen=True, kw_only=True)
class ServiceOptions:
    """Options of the `zcrpc.Server` that are set; the others keep their defaults.

    whole_pages_from: with receive="auto", what calibration is to have found: bytes from which on mapping pays; 0: what
        it does find.
    """

    receive: Receive = "auto"
    whole_pages_from: int = 0
    locks: str = "per-region"
    receive_threads: int = 0
    uvloop: bool = True
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Ready:
    """Where the server listens, and its methods' numbers."""

    address: str
    port: int
    methods: dict[str, int]


@dataclass(slots=True, frozen=True, kw_only=True)
class Snapshot(zcrpc.Stats):
    """Of the server, and of its process's memory (KiB → bytes) now and at its peak."""

    resident_bytes: int
    resident_peak_bytes: int


class ServiceProcess:
    """A running server; leaving the context ends it."""

    def __init__(self, options: ServiceOptions) -> None:
        self._child = Child("zcrpc.lab.service", options)
        self.ready = self._child.receive(Ready)

    @property
    def pid(self) -> int:
        return self._child.pid

    def snapshot(self) -> Snapshot:
        """What the server has done so far."""
        self._child.send("snapshot")
        return self._child.receive(Snapshot)

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)


def resident_bytes(which: str = "VmRSS") -> int:
    """This process's memory, now ("VmRSS") or at its peak ("VmHWM")."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[which].split()[0]) * 1024


def _snapshot(server: zcrpc.Server) -> Snapshot:
    stats = server.stats()
    return Snapshot(
        resident_bytes=resident_bytes(),
        resident_peak_bytes=resident_bytes("VmHWM"),
        **{each.name: getattr(stats, each.name) for each in dataclasses.fields(stats)},
    )


async def _serve(options: ServiceOptions) -> None:
    if options.whole_pages_from:
        calibration.assume([Cost(options.whole_pages_from, copy=WayCost(1.0, 1.0), map=WayCost(0.5, 0.5))])
    server = zcrpc.Server(
        Bench(), receive=options.receive, locks=options.locks, receive_threads=options.receive_threads, **options.more
    )
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with server.listen("tcp://127.0.0.1:0") as address:
        say(Ready(address, int(address.rpartition(":")[2]), server.methods))
        while await orders.readline():
            say(_snapshot(server))


def main() -> None:
    """The child's main."""
    options = hear(ServiceOptions)
    if options.uvloop:
        zcrpc.run(_serve(options))
    else:
        asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
