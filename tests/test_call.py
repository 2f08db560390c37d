"""The coroutine of a call, beside one that Python has made: whatever is done to it, it does the same."""

import asyncio
import gc
import inspect
import warnings
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from by_hand import Ends, Frame, in_hand, response
from raw_peer import CANCEL, ERROR, REQUEST

import zcrpc
from zcrpc._path import Call


class Small(zcrpc.Service):
    @zcrpc.method
    async def half(self, number: int) -> int:
        return number // 2

    @zcrpc.method
    async def fails(self, text: str) -> None:
        raise zcrpc.NotFound(text)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    async with in_hand(Small()) as ends:
        yield ends


def half(ends: Ends) -> Coroutine[Any, Any, int]:
    call = ends.caller.use(Small).half(4)
    assert isinstance(call, Call)
    return call  # type: ignore[return-value]


def stream(ends: Ends) -> int:
    (number,) = ends.client.connection.pending
    return number


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_it_is_a_coroutine_to_whoever_looks(ends: Ends) -> None:
    call = half(ends)
    assert asyncio.iscoroutine(call)
    assert inspect.isawaitable(call)
    task = asyncio.create_task(call)
    assert "Small.half" in repr(task)
    task.print_stack()
    await settle()
    await ends.client.deal(response(stream(ends), b"\x91\x02"))
    assert await task == 2
    with pytest.raises(RuntimeError, match="already awaited"):
        await call


async def test_it_can_be_driven_by_hand(ends: Ends) -> None:
    call = half(ends)
    with pytest.raises(TypeError, match="just-started"):
        call.send(1)
    future = call.send(None)
    assert future._asyncio_future_blocking
    with pytest.raises(RuntimeError, match="await"):
        call.send(None)
    await ends.client.deal(response(stream(ends), b"\x91\x02"))
    with pytest.raises(StopIteration) as stop:
        call.send(None)
    assert stop.value.value == 2


async def test_who_drives_it_on_after_a_failure_gets_that(ends: Ends) -> None:
    call, connection = half(ends), ends.client.connection
    call.send(None)
    errors = connection.errors  # type: ignore[attr-defined]
    await ends.client.deal(Frame(ERROR, stream(ends), b"\x91\xa2no", method=zcrpc.Status.NOT_FOUND))
    with pytest.raises(zcrpc.NotFound, match="no"):
        call.send(None)
    assert connection.errors == errors + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["close", "throw", "del"])
async def test_who_gives_it_up_tells_the_server(ends: Ends, way: str) -> None:
    call = half(ends)
    call.send(None)
    number = stream(ends)
    if way == "close":
        call.close()
    elif way == "throw":
        with pytest.raises(ZeroDivisionError):
            call.throw(ZeroDivisionError())
    del call
    gc.collect()
    assert not ends.client.connection.pending
    await settle()
    assert [(frame.kind, frame.stream) for frame in ends.client.frames[-1:]] == [(CANCEL, number)]


async def test_a_call_that_is_never_awaited_is_told_and_sends_nothing(ends: Ends) -> None:
    gc.collect()
    threshold = gc.get_threshold()
    gc.set_threshold(1)  # the collector must not meet it half dead
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(50):
                half(ends)
    finally:
        gc.set_threshold(*threshold)
    assert len(told) == 50
    assert "Small.half() was never awaited" in str(told[0].message)
    call = half(ends)
    call.close()
    await settle()
    assert [frame for frame in ends.client.frames if frame.kind == REQUEST] == []


async def test_what_dies_while_it_waits_is_safe_from_the_collector(ends: Ends) -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            half(ends).send(None)
    finally:
        gc.set_threshold(*threshold)
    assert not ends.client.connection.pending


@pytest.mark.parametrize("length", [1, 20_000])
async def test_calls_that_fail_the_long_way_fail_with_what_is_wrong(length: int) -> None:
    """Made the short way or not, with retries or without: the error is the call's own."""
    for options in ({}, {"retries": None}):
        async with zcrpc.testing.pair(Small(), client=options) as small:
            with pytest.raises(zcrpc.NotFound):
                await small.fails("x" * length)
            with pytest.raises(TypeError):
                await small.fails(object())  # type: ignore[arg-type]
            with pytest.raises(zcrpc.DeadlineExceeded):
                await small.half(1, timeout=0)  # type: ignore[call-arg]
            await small.client.close()  # type: ignore[attr-defined]
            with pytest.raises(zcrpc.Unavailable):
                await small.half(1)
