"""The whole stack through real sockets: both loops, both kinds of socket, with and without receiving threads, each way
of receiving."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from conftest import serving, until

import zcrpc

MIB = 1 << 20
Main = Callable[[], Coroutine[Any, Any, None]]


class Files(zcrpc.Service):
    @zcrpc.method
    async def digest(self, data: memoryview) -> bytes:
        return hashlib.blake2b(data, digest_size=16).digest()

    @zcrpc.method
    async def echo(self, data: memoryview) -> memoryview:
        return data

    @zcrpc.method
    def add(self, a: int, b: int) -> int:
        return a + b

    @zcrpc.method
    async def slowly(self, data: memoryview) -> int:
        await asyncio.sleep(0.001)
        return sum(data[::4096])

    @zcrpc.method
    async def fail(self) -> None:
        raise zcrpc.FailedPrecondition("on purpose")


def digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_main(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return run_main


@pytest.fixture(params=["tcp", "unix"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp://127.0.0.1:0" if request.param == "tcp" else f"unix://{tmp_path}/s"


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("receive", ["copy", "zerocopy", "auto"])
def test_everything_together(run: Any, where: str, threads: int, receive: Any) -> None:
    """Calls of all sizes at once over several connections, with failures among them."""
    sizes = [0, 1, 511, 512, 4096, 16_383, 16_384, 32_767, 32_768, 65_535, 65_536, 100_001, MIB, MIB + 1, 5 * MIB + 13]
    values = [os.urandom(size) for size in sizes]

    async def talk(files: Any) -> None:
        calls = [files.digest(value) for value in values]
        calls += [files.echo(value) for value in values]
        calls += [files.add(n, 1) for n in range(50)]
        calls += [files.slowly(value) for value in values]
        failing = asyncio.gather(*(files.fail() for _ in range(5)), return_exceptions=True)
        results = await asyncio.gather(*calls)
        count = len(values)
        assert results[:count] == [digest(value) for value in values]
        assert all(map(bytes.__eq__, map(bytes, results[count : 2 * count]), values))
        assert results[2 * count : 2 * count + 50] == [n + 1 for n in range(50)]
        assert results[2 * count + 50 :] == [sum(value[::4096]) for value in values]
        assert all(isinstance(error, zcrpc.FailedPrecondition) for error in await failing)

    async def main() -> None:
        async with serving(Files(), address=where, receive=receive, receive_threads=threads) as (server, address):
            clients = [await zcrpc.connect(address, Files, receive=receive) for _ in range(3)]
            await asyncio.gather(*(talk(files) for files in clients))
            for files in clients:
                await files.close()  # type: ignore[attr-defined]
            await until(lambda: server.stats().connections == 0)
            stats = server.stats()
            assert stats.requests == 3 * (3 * len(values) + 55)
            assert stats.errors == 15
            assert stats.payload_bytes_copied + stats.payload_bytes_mapped >= 9 * sum(sizes[3:])

    run(main())


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("size", [MIB, 16 * MIB])
def test_zerocopy_maps_at_least_99_percent(run: Any, threads: int, size: int) -> None:
    async def main() -> None:
        async with (
            serving(Files(), receive="zerocopy", receive_threads=threads) as (server, address),
            zcrpc.connect(address, Files, receive="zerocopy") as files,
        ):
            for round_ in range(4):
                value = os.urandom(size)
                assert await files.digest(value) == digest(value)
                view = await files.echo(memoryview(value)[round_:])
                assert view == memoryview(value)[round_:]
                del view
            both = (server.stats(), files.stats())  # type: ignore[attr-defined]
            for stats in both:
                assert stats.mapped_percent >= 99
                assert sum(stats.fallbacks.values()) == 0
            assert both[0].payload_bytes_mapped >= 0.99 * 8 * size - 100
            assert both[1].payload_bytes_mapped >= 0.99 * 4 * size - 100

    run(main())


@pytest.mark.parametrize("receive", ["copy", "auto"])
def test_copy_maps_nothing_and_says_why(run: Any, receive: Any) -> None:
    async def main() -> None:
        async with serving(Files(), receive="copy") as (server, address), zcrpc.connect(address, Files) as files:
            await files.digest(bytes(MIB))
            stats = server.stats()
            assert (stats.payload_bytes_mapped, stats.mapped_percent, stats.fallbacks["policy"]) == (0, 0.0, 1)

    run(main())


def test_unix_sockets_copy_whatever_was_asked_for(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(Files(), address=f"unix://{tmp_path}/s", receive="zerocopy") as (server, address),
            zcrpc.connect(address, Files, receive="zerocopy") as files,
        ):
            value = os.urandom(MIB)
            assert await files.digest(value) == digest(value)
            assert server.stats().fallbacks["unsupported"] == 1

    run(main())


def test_mapping_receiver_and_copying_one_understand_each_other(run: Any) -> None:
    async def main() -> None:
        for at_server, at_client in (("zerocopy", "copy"), ("copy", "zerocopy")):
            async with (
                serving(Files(), receive=at_server) as (server, address),
                zcrpc.connect(address, Files, receive=at_client) as files,
            ):
                value = os.urandom(3 * MIB + 5)
                assert await files.echo(value) == value
                mapped = server.stats().mapped_percent, files.stats().mapped_percent  # type: ignore[attr-defined]
                assert mapped == ((100, 0) if at_server == "zerocopy" else (0, 100))

    run(main())


def test_small_calls_pass_large_ones(run: Any) -> None:
    async def main() -> None:
        async with serving(Files(), receive="copy") as (_, address), zcrpc.connect(address, Files) as files:
            order: list[str] = []
            large = asyncio.ensure_future(files.digest(os.urandom(64 * MIB)))
            large.add_done_callback(lambda _: order.append("large"))
            await asyncio.sleep(0)
            for n in range(20):
                assert await files.add(n, 1) == n + 1  # type: ignore[misc]
                order.append("small")
            await large
            assert order.index("large") >= 2  # if they waited for it, none would have come back before

    run(main())


def test_many_connections(run: Any) -> None:
    async def main() -> None:
        async with serving(Files()) as (server, address):
            clients = await asyncio.gather(*(zcrpc.connect(address, Files).__aenter__() for _ in range(200)))
            for _ in range(3):
                results = await asyncio.gather(*(files.add(n, n) for n, files in enumerate(clients)))
                assert results == [2 * n for n in range(200)]
            assert server.stats().connections == 200
            await asyncio.gather(*(files.close() for files in clients))  # type: ignore[attr-defined]
            await until(lambda: server.stats().connections == 0)

    run(main())


def test_run_is_uvloop() -> None:
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert zcrpc.run(main()).startswith("uvloop")
