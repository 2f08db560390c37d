"""Calls of every shape and end, many times over: what they leave behind is nothing, without the garbage collector."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import zcrpc
import zcrpc.testing
from zcrpc import _path
from zcrpc.context import SCOPE
from zcrpc.metadata import NOTHING

# How often, and how many bytes may be left of each time: less than the smallest object has; where tasks are cancelled,
# what asyncio's set of all tasks grows by.
_ROUNDS, _BYTES = 4000, 24
_SLOW_ROUNDS, _SLOW_BYTES = 200, 160
_WARM = 300
_SLOW = ("cancelled", "expired")
_COUNTED = (_path.Pending, _path.Call)


class Ways(zcrpc.Service):
    def __init__(self) -> None:
        self.never = asyncio.Event()

    @zcrpc.method
    async def echo(self, data: bytes) -> bytes:
        return data

    @zcrpc.method
    async def view(self, data: memoryview) -> memoryview:
        return data

    @zcrpc.method
    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    @zcrpc.method
    async def suspends(self, number: int) -> int:
        await asyncio.sleep(0)
        return number

    @zcrpc.method
    async def fails(self, data: bytes) -> None:
        raise zcrpc.NotFound("no")

    @zcrpc.method
    async def hangs(self, data: bytes) -> None:
        await self.never.wait()

    @zcrpc.method
    def plain(self, data: bytes) -> int:
        return len(data)


async def _ends_with(kind: type[BaseException], call: Awaitable[Any]) -> None:
    try:  # pytest.raises makes a cycle of the error and the frame
        await call
    except kind:
        return
    raise AssertionError


async def _cancelled(client: Ways) -> None:
    task = asyncio.ensure_future(client.hangs(b"x"))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait((task,))


async def _abandoned(client: Ways) -> None:
    client.echo(b"x").send(None)  # type: ignore[attr-defined]
    client.echo(b"x").close()
    await asyncio.sleep(0)


async def _together(client: Ways) -> None:
    await asyncio.gather(*(client.add(number) for number in range(2)), client.suspends(1))


_WAYS: dict[str, Callable[[Ways], Awaitable[Any]]] = {
    "inline": lambda client: client.echo(b"x" * 100),
    "bytes": lambda client: client.echo(b"x" * 1000),
    "view": lambda client: client.view(memoryview(bytes(1000))),
    "numbers": lambda client: client.add(1, 1 << 40),
    "keywords": lambda client: client.add(1, right=2),
    "deadline": lambda client: client.echo(b"x", timeout=5),  # type: ignore[call-arg]
    "suspended": lambda client: client.suspends(3),
    "plain": lambda client: client.plain(b"x"),
    "cancelled": _cancelled,
    "expired": lambda client: _ends_with(zcrpc.DeadlineExceeded, client.hangs(b"x", timeout=0.001)),  # type: ignore[call-arg],
    "failed": lambda client: _ends_with(zcrpc.NotFound, client.fails(b"x")),
    "refused": lambda client: _ends_with(zcrpc.InvalidArgument, client.add("text")),
    "unsendable": lambda client: _ends_with(TypeError, client.echo(object())),
    "abandoned": _abandoned,
    "together": _together,
}


@pytest.fixture
def collector() -> Iterator[None]:
    """Switched off."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _left() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) in _COUNTED]


def _references(*more: Any) -> list[int]:
    """What is counted wrongly in C need not be anything that is allocated."""
    return [sys.getrefcount(each) for each in (None, True, NOTHING, SCOPE, *_COUNTED, *more)]


@pytest.mark.parametrize("way", _WAYS)
async def test_calls_leave_nothing_behind(collector: None, way: str) -> None:
    make = _WAYS[way]
    count, most = (_SLOW_ROUNDS, _SLOW_BYTES) if way in _SLOW else (_ROUNDS, _BYTES)
    async with zcrpc.testing.pair(Ways(), client={"retries": None}) as client:  # a retry's error holds its own frame
        channel = client.client._channel  # type: ignore[attr-defined]
        connection = channel.only

        async def rounds(count: int) -> None:
            for _ in range(count):
                await make(client)
            await asyncio.sleep(0.01)

        def references() -> list[int]:
            return _references(connection, connection.reactor, connection.methods, channel)

        await rounds(50)
        assert not _left()
        before = references()
        tracemalloc.start()
        try:
            await rounds(_WARM)  # tables have grown to their size
            gc.collect()
            begun = tracemalloc.get_traced_memory()[0]
            await rounds(count)
            assert not _left()
            gc.collect()  # of workers whose handlers were cancelled
            grown = tracemalloc.get_traced_memory()[0] - begun
        finally:
            tracemalloc.stop()
        assert not connection.pending
        assert grown < count * most
        assert max(now - then for now, then in zip(references(), before, strict=True)) < count // 2


async def test_calls_whose_connection_is_lost_leave_nothing_behind(collector: None) -> None:
    for _ in range(20):
        async with zcrpc.testing.pair(Ways(), client={"retries": None}) as client:
            calls = [asyncio.ensure_future(client.hangs(b"x")) for _ in range(20)]
            await asyncio.sleep(0.001)
            await client.client.close()  # type: ignore[attr-defined]
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in found} == {zcrpc.Unavailable}
            del calls, found
        assert not [each for each in _left() if type(each) is _path.Call]
    gc.collect()
    assert not _left()
    # Of 20 pairs, no more than the last one's.
    assert len([each for each in gc.get_objects() if isinstance(each, _path.Connection)]) <= 2
