"""Handlers that block, in the threads of a server."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
from conftest import Serving, until

import zcrpc

MIB = 1 << 20


class Blocks(zcrpc.Service):
    """Handlers in threads; those of `hold` wait for `release`."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.holding = 0
        self.seen: list[Any] = []

    @zcrpc.method(blocking=True)
    def thread(self) -> str:
        return threading.current_thread().name

    @zcrpc.method(blocking=True)
    def hold(self, result: int = 0) -> int:
        self.holding += 1
        assert self.release.wait(10)
        return result

    @zcrpc.method(blocking=True)
    def total(self, data: memoryview, factor: int = 1) -> int:
        time.sleep(0.05)  # the sender's buffer is gone, the batch was dispatched
        return sum(data[:: 64 << 10]) * factor

    @zcrpc.method(blocking=True)
    def echo(self, data: memoryview) -> memoryview:
        return data

    @zcrpc.method(blocking=True)
    def who(self) -> list[Any]:
        call = zcrpc.context()
        call.response_metadata["by"] = "thread"
        return [call.method, call.metadata["tenant"], call.deadline is not None]

    @zcrpc.method(blocking=True)
    def outlives(self, wrong: bool) -> str:
        call = zcrpc.context()
        self.seen.append(call.cancelled())
        while not call.cancelled():
            time.sleep(0.002)
        self.seen.append(True)
        if wrong:
            raise ValueError("too late")
        return "too late"

    @zcrpc.method(blocking=True)
    def refuse(self) -> None:
        raise zcrpc.NotFound("no such thing", details={"key": 1})

    @zcrpc.method(blocking=True)
    def crash(self) -> None:
        raise ValueError("a bug")

    @zcrpc.method
    async def quick(self) -> str:
        return "quick"


async def test_runs_in_a_thread_and_leaves_the_loop_alone(serving: Serving) -> None:
    service = Blocks()
    async with serving(service, threads=2) as (server, address), zcrpc.connect(address, Blocks) as blocks:
        assert (await blocks.thread()).startswith("zcrpc")
        held = [asyncio.ensure_future(blocks.hold(number)) for number in range(5)]
        await until(lambda: service.holding == 2)
        assert await blocks.quick() == "quick"
        stats = server.stats()
        assert (stats.threads, stats.waiting, stats.calls) == (2, 3, 5)
        service.release.set()
        assert await asyncio.gather(*held) == list(range(5))
        await until(lambda: server.stats().threads == 0)
        assert server.stats().waiting == 0


@pytest.mark.parametrize("size", [100, 4 * MIB])
async def test_views_are_valid_as_long_as_the_thread_has_them(serving: Serving, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with serving(Blocks(), receive="copy") as (server, address), zcrpc.connect(address, Blocks) as blocks:
        totals = await asyncio.gather(*(blocks.total(data, factor=factor) for factor in range(6)))
        assert totals == [sum(data[:: 64 << 10]) * factor for factor in range(6)]
        assert bytes(await blocks.echo(data)) == data
        await until(lambda: not server.regions.stats().leases)


async def test_context_is_that_of_the_call(serving: Serving) -> None:
    async with serving(Blocks()) as (_, address), zcrpc.connect(address) as client:
        with zcrpc.outgoing(metadata={"tenant": "blue"}, timeout=5) as out:
            assert await client.call("Blocks.who") == ["Blocks.who", "blue", True]
        assert out.response_metadata == {"by": "thread"}


@pytest.mark.parametrize("wrong", [False, True])
async def test_a_cancelled_call_runs_on_and_its_result_is_discarded(
    serving: Serving, caplog: pytest.LogCaptureFixture, wrong: bool
) -> None:
    service = Blocks()
    async with serving(service, threads=1) as (server, address), zcrpc.connect(address, Blocks) as blocks:
        with pytest.raises(zcrpc.DeadlineExceeded):
            await blocks.outlives(wrong, timeout=0.1)  # type: ignore[call-arg]
        await until(lambda: server.stats().threads == 0)
        assert service.seen == [False, True]
        assert await blocks.quick() == "quick"
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == wrong
    assert not wrong or "Blocks.outlives() raised ValueError when nobody waited" in logged[0].getMessage()


async def test_a_call_that_is_cancelled_while_it_waits_is_never_begun(serving: Serving) -> None:
    service = Blocks()
    async with serving(service, threads=1) as (server, address), zcrpc.connect(address, Blocks) as blocks:
        first = asyncio.ensure_future(blocks.hold(1))
        await until(lambda: service.holding == 1)
        with pytest.raises(zcrpc.DeadlineExceeded):
            await blocks.hold(2, timeout=0.05)  # type: ignore[call-arg]
        await until(lambda: server.stats().waiting == 0)
        service.release.set()
        assert await first == 1
        assert await blocks.hold(3) == 3
        assert service.holding == 2


async def test_errors_reach_the_caller(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Blocks()) as (_, address), zcrpc.connect(address, Blocks) as blocks:
        with pytest.raises(zcrpc.NotFound, match="no such thing") as caught:
            await blocks.refuse()
        assert caught.value.details == {"key": 1}
        with pytest.raises(zcrpc.Unknown):
            await blocks.crash()
    assert "Blocks.crash() raised ValueError" in caplog.text
    assert "a bug" in caplog.text  # with its traceback


async def test_too_many_that_wait_are_refused_at_once(serving: Serving) -> None:
    service = Blocks()
    async with (
        serving(service, threads=1, max_waiting=2) as (server, address),
        zcrpc.connect(address, Blocks) as blocks,
    ):
        held = [asyncio.ensure_future(blocks.hold(number)) for number in range(3)]
        await until(lambda: server.stats().waiting == 2)
        with pytest.raises(zcrpc.ResourceExhausted, match="2 calls wait for a thread, the server's limit"):
            await blocks.hold()
        assert server.stats().exhausted["waiting"] == 1
        assert await blocks.quick() == "quick"
        service.release.set()
        assert await asyncio.gather(*held) == [0, 1, 2]


async def test_interceptors_surround_it_in_the_loop(serving: Serving) -> None:
    seen = []

    async def note(call: Any, proceed: Any) -> Any:
        seen.append((call.method, threading.current_thread() is threading.main_thread()))
        return await proceed(call) + "!"

    async with serving(Blocks(), interceptors=[note]) as (_, address), zcrpc.connect(address, Blocks) as blocks:
        assert (await blocks.thread()).endswith("!")
    assert seen == [("Blocks.thread", True)]


async def test_closing_waits_for_threads_only_for_the_grace() -> None:
    service = Blocks()
    server = zcrpc.Server(service, threads=1)
    address = await server.listen("tcp://127.0.0.1:0")
    client = await zcrpc.connect(address, retries=None)
    running, waiting = (asyncio.ensure_future(client.call("Blocks.hold")) for _ in range(2))
    await until(lambda: server.stats().waiting == 1)
    begun = time.monotonic()
    await server.close(grace=0.1)
    assert time.monotonic() - begun < 5
    for call in (running, waiting):
        with pytest.raises(zcrpc.Unavailable):
            await call
    service.release.set()
    await client.close()
    assert service.holding == 1


@pytest.mark.parametrize("options", [{"threads": 0}, {"max_waiting": 0}])
def test_limits_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        zcrpc.Server(Blocks(), **options)  # type: ignore[arg-type]


def test_what_is_asynchronous_cannot_block() -> None:
    async def waits(self: Any) -> None: ...

    async def yields(self: Any) -> Any:
        yield 1

    for function in (waits, yields):
        with pytest.raises(TypeError, match="does not block"):
            zcrpc.method(blocking=True)(function)

    class Overridden(Blocks):
        async def crash(self) -> None: ...  # type: ignore[override]

    with pytest.raises(TypeError, match="only a plain function without streams can be blocking"):
        zcrpc.Server(Overridden())
