"""Processes that are forked from one with servers and clients: what is the parent's stays the parent's."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trustme
from conftest import Serving, until

import zcrpc

# Python warns from 3.12 on; what it warns of is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

KIB = 1 << 10
MIB = 1 << 20


class Echo(zcrpc.Service):
    @zcrpc.method
    async def echo(self, data: memoryview) -> memoryview:
        return data

    @zcrpc.method
    async def pid(self) -> int:
        return os.getpid()

    @zcrpc.method(blocking=True)
    def blocks(self) -> int:
        return os.getpid()


async def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process. Its exception fails the test."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = True, work()
        except BaseException:
            answer = False, traceback.format_exc()
        os.write(theirs, pickle.dumps(answer))
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        good, result = pickle.loads(await asyncio.wait_for(asyncio.to_thread(pipe.read), 30))
    await asyncio.to_thread(os.waitpid, pid, 0)
    assert good, result
    return result


@contextmanager
def sleeping_child() -> Iterator[None]:
    """A forked process that does nothing."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def message(work: Callable[[], Any]) -> str:
    """Of the FailedPrecondition that it raises."""
    with pytest.raises(zcrpc.FailedPrecondition) as caught:
        result = work()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    return caught.value.message if isinstance(caught.value, zcrpc.ZcrpcError) else str(caught.value)


async def own_server_and_client() -> tuple[int, int]:
    server = zcrpc.Server(Echo(), receive="copy")
    async with server.listen("tcp://127.0.0.1:0") as address, zcrpc.connect(address, Echo) as echo:
        data = os.urandom(MIB)
        assert await echo.echo(data) == data
        return await echo.pid(), await echo.blocks()


@pytest.mark.parametrize("options", [{}, {"receive_threads": 2}], ids=["inline", "threaded"])
async def test_what_is_used_in_a_child_says_so(serving: Serving, options: dict[str, Any]) -> None:
    async with serving(Echo(), **options) as (server, address), zcrpc.connect(address) as client:
        assert await client.call("Echo.pid") == await client.call("Echo.blocks") == os.getpid()

        async def call() -> None:
            await client.call("Echo.pid")

        async def ping() -> None:
            await client.ping()

        async def stream() -> None:
            async for _ in client.stream("Echo.pid"):
                pass

        async def listen() -> None:
            await server.listen("tcp://127.0.0.1:0")

        async def close() -> None:
            await client.close()
            await server.close()

        def child() -> list[str]:
            told = [message(work) for work in (call, ping, stream, listen)]
            asyncio.run(close())
            assert server.stats().connections == client.stats().connections == 0
            gc.collect()
            return told

        told = await in_child(child)
        assert told == [f"this {what} was made in another process; a process that is forked makes its own"
                        for what in ("client", "client", "client", "server")]  # fmt: skip
        data = os.urandom(MIB)
        assert await client.call("Echo.echo", data) == data
        assert server.stats().connections == 1


async def test_a_child_makes_its_own(serving: Serving) -> None:
    async with serving(Echo()) as (_, address), zcrpc.connect(address, Echo) as echo:

        async def also_of_the_parent() -> int:
            async with zcrpc.connect(address, Echo) as mine:
                return await mine.pid()

        def child() -> Any:
            pid = asyncio.run(own_server_and_client())
            assert pid == (os.getpid(), os.getpid())
            return asyncio.run(also_of_the_parent()), zcrpc.run(own_server_and_client()) == pid

        assert await in_child(child) == (os.getpid(), True)
        assert await echo.pid() == os.getpid()


def sockets() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


async def test_a_child_keeps_no_socket_open(serving: Serving) -> None:
    before = sockets()
    async with serving(Echo()) as (_, address), zcrpc.connect(address) as client:
        await client.call("Echo.pid")
        assert len(sockets() - before) == 3
        assert not await in_child(lambda: sockets() - before)


async def test_connections_end_although_a_child_lives() -> None:
    server = zcrpc.Server(Echo())
    address = await server.listen("tcp://127.0.0.1:0")
    client = await zcrpc.connect(address)
    with sleeping_child():
        await client.close()
        await until(lambda: server.stats().connections == 0)
        await server.close()
        host, _, port = address.removeprefix("tcp://").partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))


async def test_tls_ends_although_a_child_lives() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    before = sockets()
    server = zcrpc.Server(Echo())
    address = await server.listen("tcp://127.0.0.1:0", ssl=context)
    client = await zcrpc.connect(address, ssl=trusting)
    assert await client.call("Echo.pid") == os.getpid()
    assert not await in_child(lambda: sockets() - before)
    assert await client.call("Echo.pid") == os.getpid()
    await client.close()
    await server.close()


@pytest.mark.parametrize("size", [64 * KIB, 4 * MIB])
async def test_payloads_can_be_read_on(serving: Serving, size: int) -> None:
    data = os.urandom(size)
    async with serving(Echo()) as (_, address), zcrpc.connect(address, receive="copy") as client:
        held = [await client.call("Echo.echo", data, returns=memoryview)]
        leases = client.stats().leases
        assert leases

        def child() -> bool:
            same = held[0] == data
            held.clear()
            gc.collect()
            return same

        assert await in_child(child)
        assert held[0] == data
        assert client.stats().leases == leases
        again = await client.call("Echo.echo", data, returns=memoryview)
        assert again == held[0]


async def test_forks_under_load_with_threads_that_receive(serving: Serving) -> None:
    """Whatever locks the threads held in that moment, no child waits for them."""
    data = os.urandom(256 * KIB)
    async with serving(Echo(), receive_threads=2) as (_, address), zcrpc.connect(address, Echo) as echo:

        async def call() -> None:
            while running:
                assert await echo.echo(data) == data

        running = True
        callers = [asyncio.ensure_future(call()) for _ in range(4)]
        for _ in range(8):
            await asyncio.sleep(0.01)
            assert await in_child(lambda: gc.collect() >= 0)
        pid = await in_child(lambda: (os.getpid(), asyncio.run(own_server_and_client())))
        assert pid[1] == (pid[0], pid[0])
        running = False
        await asyncio.gather(*callers)


async def test_a_region_map_is_its_process_s_own() -> None:
    with zcrpc.RegionMap(budget=8 * MIB) as regions:
        region = regions.attach(MIB)

        def child() -> str:
            regions.close()
            return message(lambda: regions.attach(MIB))

        assert "was made in another process" in await in_child(child)
        with regions.read(region.start) as found:
            assert found == region
        regions.detach(region)


def _call(address: str, queue: Any) -> None:
    async def call() -> int:
        async with zcrpc.connect(address, Echo) as echo:
            return await echo.pid()

    queue.put(asyncio.run(call()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_multiprocessing(serving: Serving, method: str) -> None:
    async with serving(Echo()) as (_, address), zcrpc.connect(address, Echo) as echo:
        context: Any = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=_call, args=(address, queue))
        process.start()
        assert await asyncio.to_thread(queue.get, timeout=60) == os.getpid()
        await asyncio.to_thread(process.join)
        assert process.exitcode == 0
        assert await echo.pid() == os.getpid()
