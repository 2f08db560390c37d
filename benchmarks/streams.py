"""One stream between two Python processes: items per second, and the memory that a slow consumer costs.

python benchmarks/streams.py     both, once
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import zcrpc
from zcrpc.lab.service import Bench, ServiceOptions, ServiceProcess

MIB = 1 << 20
PAUSE_SECONDS = 0.001  # of a slow consumer, per item

Way: TypeAlias = Literal["download", "upload"]


@dataclass(slots=True, frozen=True)
class Rate:
    """Of one stream."""

    items_per_second: float
    bytes_per_second: float
    client_cpu_us_per_item: float


@dataclass(slots=True, frozen=True)
class Slow:
    """A fast producer of a slow consumer: how far the server's memory rose above that of an idle one."""

    grown_bytes: int
    seconds: float


def rate(way: Way, size: int, count: int, **options: Any) -> Rate:
    """So many items of so many bytes, from the server or to it."""
    with ServiceProcess(ServiceOptions(**options)) as server:
        seconds, cpu_seconds = zcrpc.run(_with_client(server, lambda bench: _timed(_transfer(bench, way, size, count))))
    return Rate(count / seconds, count * size / seconds, cpu_seconds * 1e6 / count)


def slow_consumer(way: Way, size: int, count: int) -> Slow:
    """The same with a consumer that rests after each item; on the server's side for uploads, else on the client's."""
    with ServiceProcess(ServiceOptions()) as server:
        zcrpc.run(_with_client(server, lambda bench: bench.echo(memoryview(bytes(64)))))  # loads what it needs
        before = server.snapshot().resident_bytes
        seconds, _ = zcrpc.run(
            _with_client(server, lambda bench: _timed(_transfer(bench, way, size, count, PAUSE_SECONDS)))
        )
        return Slow(server.snapshot().resident_peak_bytes - before, seconds)


async def _with_client(server: ServiceProcess, use: Callable[[Bench], Awaitable[Any]]) -> Any:
    async with zcrpc.connect(server.ready.address, Bench) as bench:
        return await use(bench)


async def _timed(work: Awaitable[Any]) -> tuple[float, float]:
    began, began_cpu = time.perf_counter(), time.process_time()
    await work
    return time.perf_counter() - began, time.process_time() - began_cpu


async def _transfer(bench: Bench, way: Way, size: int, count: int, pause: float = 0) -> None:
    total = 0
    if way == "upload":
        total = await bench.take(_items(size, count), pause)
    else:
        async for item in bench.items(size, count):
            total += len(item)
            if pause:
                await asyncio.sleep(pause)
    assert total == size * count


async def _items(size: int, count: int) -> AsyncIterator[memoryview]:
    for item in itertools.repeat(memoryview(bytes(size)), count):
        yield item


def main() -> None:
    """Prints both."""
    ways: tuple[Way, Way] = ("download", "upload")
    for way in ways:
        for size, count in ((64, 300_000), (4096, 50_000), (MIB, 1000)):
            found = rate(way, size, count)
            gigabytes, cpu_us = found.bytes_per_second / 1e9, found.client_cpu_us_per_item
            speed = f"{found.items_per_second:,.0f} items/s, {gigabytes:.2f} GB/s"
            print(f"{way}, {size} bytes: {speed}, {cpu_us:.2f} µs of the client's CPU each")
        slow = slow_consumer(way, MIB, 1024)
        print(f"1 GiB {way}, slow consumer: {slow.grown_bytes / MIB:.1f} MiB more memory, {slow.seconds:.1f} s")


if __name__ == "__main__":
    main()
