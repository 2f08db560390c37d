"""Streams through real sockets: all three kinds, values and views, and every way in which they can end."""

import asyncio
import contextvars
import gc
import os
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
from conftest import Serving, until

import zcrpc
from zcrpc.service import plans

MIB = 1 << 20


class Entry(msgspec.Struct):
    number: int
    data: bytes = b""


class Log(zcrpc.Service):
    """Streams of every kind; notes what its generators did and how they ended."""

    def __init__(self) -> None:
        self.yielded = 0
        self.taken = 0
        self.ended: list[str] = []
        self.gate = asyncio.Event()

    @zcrpc.method
    async def tail(self, count: int, since: int = 0) -> AsyncIterator[Entry]:
        """Entries."""
        try:
            for number in range(since, since + count):
                self.yielded += 1
                yield Entry(number, b"x" * (number % 5))
            self.ended.append("done")
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise

    @zcrpc.method
    async def wait(self, before: int) -> AsyncGenerator[int, None]:
        """Some numbers; then waits."""
        try:
            for number in range(before):
                yield number
            await self.gate.wait()
            yield -1
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        finally:
            await asyncio.sleep(0)
            self.ended.append("cleaned up")

    @zcrpc.method
    async def load(self, rows: AsyncIterator[bytes], table: str = "t", *, most: int = 1 << 60) -> list[Any]:
        """Takes rows; returns the table, how many they were, and their bytes."""
        count = size = 0
        async for row in rows:
            assert type(row) is bytes
            count, size = count + 1, size + len(row)
            if count == most:
                break
        return [table, count, size]

    @zcrpc.method
    async def slowly(self, rows: AsyncIterable[memoryview]) -> int:
        """Takes a row whenever the gate is open."""
        taken = 0
        async for row in rows:
            assert type(row) is memoryview
            taken += 1
            self.taken += 1
            del row
            await self.gate.wait()
        return taken

    @zcrpc.method
    async def exchange(self, items: AsyncIterator[Any], *, times: int = 1) -> AsyncIterator[Any]:
        async for item in items:
            for _ in range(times):
                yield item

    @zcrpc.method
    async def entries(self, items: AsyncIterator[Entry]) -> int:
        total = 0
        async for item in items:
            assert type(item) is Entry
            total += item.number
        return total

    @zcrpc.method
    async def blobs(self, sizes: list[int]) -> AsyncIterator[memoryview]:
        """The same buffer, again and again."""
        buffer = bytearray(max(sizes))
        for number, size in enumerate(sizes):
            buffer[:size] = bytes([number % 251]) * size
            yield memoryview(buffer)[:size]

    @zcrpc.method
    async def fails(self, after: int) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise zcrpc.NotFound("no more", details={"after": after})

    @zcrpc.method
    async def endless(self, size: int) -> AsyncIterator[bytes]:
        item = b"x" * size
        try:
            while True:
                self.yielded += 1
                yield item
        finally:
            self.ended.append("endless")

    @zcrpc.method
    async def wrong(self) -> AsyncIterator[Any]:
        yield 1
        yield object()

    @zcrpc.method
    async def lies(self) -> AsyncIterator[int]:
        yield 1
        yield 2
        yield "three"  # type: ignore[misc]

    @zcrpc.method
    def plain(self, count: int) -> AsyncIterator[int]:
        """Not a generator, but returns one."""
        return self._numbers(count)

    @zcrpc.method
    async def awaited(self, count: int) -> AsyncIterator[int]:  # as an interface would declare it
        return self._numbers(count)

    async def _numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @zcrpc.method
    async def nothing(self) -> AsyncIterator[int]:
        return None  # type: ignore[return-value]

    @zcrpc.method
    async def add(self, a: int, b: int) -> int:
        return a + b


async def numbers(count: int, pause: float | None = None) -> AsyncIterator[int]:
    for number in range(count):
        if pause is not None:
            await asyncio.sleep(pause)
        yield number


class Producer:
    """Yields an item over and over, and notes how it ended."""

    def __init__(self, item: Any, count: int = 1 << 60) -> None:
        self.item = item
        self.count = count
        self.yielded = 0
        self.ended: list[str] = []

    async def __call__(self) -> AsyncIterator[Any]:
        try:
            while self.yielded < self.count:
                self.yielded += 1
                yield self.item
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        finally:
            self.ended.append("closed")


# ---- what arrives


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    def run(main: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run


def test_all_kinds_on_both_loops(run: Callable[[Any], Any], serving: Serving) -> None:
    async def main() -> None:
        async with serving(Log()) as (server, address), zcrpc.connect(address, Log) as log:
            found = [entry async for entry in log.tail(1000, since=5)]
            assert found == [Entry(number, b"x" * (number % 5)) for number in range(5, 1005)]
            assert await log.load(Producer(b"row", 10_000)()) == ["t", 10_000, 30_000]
            assert [item async for item in log.exchange(numbers(300))] == list(range(300))
            assert [item async for item in log.exchange(numbers(20, pause=0.001), times=2)] == sorted([*range(20)] * 2)
            stats = server.stats()
            assert stats.streams == 0
            assert (stats.items_in, stats.items_out) == (10_320, 1340)

    run(main())


async def test_with_receive_threads(serving: Serving) -> None:
    async with serving(Log(), receive_threads=2) as (_, address), zcrpc.connect(address, Log) as log:
        assert len([entry async for entry in log.tail(5000)]) == 5000
        assert await log.load(Producer(bytes(100_000), 50)()) == ["t", 50, 5_000_000]
        assert [len(item) async for item in log.exchange(Producer(bytes(MIB + 5), 9)())] == [MIB + 5] * 9


async def test_items_stand_anywhere_among_the_arguments(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        assert await log.load([b"a", b"b"]) == ["t", 2, 2]  # type: ignore[arg-type]
        assert await log.load((b"a" for _ in range(3)), "u") == ["u", 3, 3]  # type: ignore[arg-type]
        assert await log.load(rows=Producer(b"ab", 2)(), table="v", most=1) == ["v", 1, 2]
        assert await log.load(table="w", rows=Producer(b"", 0)()) == ["w", 0, 0]
        with pytest.raises(TypeError, match="misses 'rows'"):
            await log.load()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="iterable of items, not bytes"):
            await log.load(b"abc")  # type: ignore[arg-type]
        with pytest.raises(zcrpc.InvalidArgument, match="'table'"):
            await log.load([b""], 5)  # type: ignore[arg-type, list-item]


async def test_untyped(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address) as client:
        assert [item async for item in client.stream("Log.tail", 2)] == [
            {"number": 0, "data": b""},
            {"number": 1, "data": b"x"},
        ]
        assert [item async for item in client.stream("Log.tail", count=1, returns=Entry)] == [Entry(0)]
        assert await client.call("Log.load", Producer(b"abc", 5)(), "u", most=4) == ["u", 4, 12]
        assert await client.call("Log.load", rows=Producer(b"abc", 5)(), timeout=5, returns=list) == ["t", 5, 15]
        assert [item async for item in client.stream("Log.exchange", numbers(3), times=1)] == [0, 1, 2]
        with pytest.raises(TypeError, match="one stream of items"):
            await client.call("Log.load", numbers(1), numbers(1))
        with pytest.raises(TypeError, match="one stream of items"):
            client.stream("Log.exchange", numbers(1), x=numbers(1))
        with pytest.raises(TypeError):
            await client.call("Log.add", object(), 1)


async def test_a_call_of_another_kind_says_which(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address) as client:
        for call, words in (
            (lambda: client.call("Log.tail", 1), "has a stream of results: use stream"),
            (lambda: client.call("Log.load"), "takes a stream of items and has one result"),
            (lambda: client.call("Log.add", numbers(1)), "takes no stream and has one result: use call"),
            (lambda: anext(client.stream("Log.add", 1, 2)), "takes no stream"),
            (lambda: anext(client.stream("Log.load", numbers(1))), "one result: use call"),
            (lambda: anext(client.stream("Log.exchange")), "use stream"),
            (lambda: client.call("Log.exchange", numbers(1)), "use stream"),
        ):
            with pytest.raises(zcrpc.FailedPrecondition, match=words):
                await call()
        with pytest.raises(zcrpc.Unimplemented):
            await anext(client.stream("Log.none"))
        assert await client.call("Log.add", 1, 2) == 3


@pytest.mark.parametrize("receive", ["copy", "zerocopy"])
async def test_views_of_every_size_arrive_whole_and_are_given_back(serving: Serving, receive: Any) -> None:
    sizes = [1, 0, 500, 20_000, MIB, 100, 3 * MIB + 17, 40_000, 5, 16_384, 16_383, 2 * MIB, 0, 7] * 2
    async with (
        serving(Log(), receive=receive) as (server, address),
        zcrpc.connect(address, Log, receive=receive) as log,
    ):
        seen = 0
        async for view in log.blobs(sizes):
            assert type(view) is memoryview
            assert view.readonly
            assert view == bytes([seen % 251]) * sizes[seen]
            seen += 1
            del view
            assert log.stats().leases == 0 or seen < len(sizes)  # type: ignore[attr-defined]
        assert seen == len(sizes)
        sent = [random.Random(size).randbytes(size) for size in sizes]
        found = [bytes(item) async for item in log.exchange(bytearray(item) for item in sent)]  # type: ignore[arg-type]
        assert found == sent
        if receive == "zerocopy":
            assert server.stats().payload_bytes_mapped > 0


async def test_a_producer_may_use_its_buffers_and_values_again(serving: Serving) -> None:
    async def blobs() -> AsyncIterator[bytearray]:
        buffer = bytearray(3 * MIB)
        for number in range(20):
            buffer[:] = bytes([number]) * len(buffer)
            yield buffer

    async def records() -> AsyncIterator[Any]:
        record: dict[str, Any] = {"tags": []}
        for number in range(200):
            record["number"] = number
            record["tags"].append(number)
            yield record
            record["tags"].clear()

    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        number = 0
        async for item in log.exchange(blobs()):
            assert item == bytes([number]) * (3 * MIB)
            number += 1
        assert number == 20
        found = [item async for item in log.exchange(records())]
        assert found == [{"number": number, "tags": [number]} for number in range(200)]


async def test_views_that_are_kept_stay_right(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        kept = [view async for view in log.blobs([100_000] * 40)]
        assert all(view == bytes([number]) * 100_000 for number, view in enumerate(kept))


async def test_small_and_large_items_keep_their_order(serving: Serving) -> None:
    generator = random.Random(1)
    items: list[Any] = [
        generator.randbytes(generator.choice([0, 10, 600, 5000, 20_000, 70_000, 1_500_000]))
        if generator.random() < 0.5
        else generator.randrange(1 << 60)
        for _ in range(400)
    ]

    async def produce() -> AsyncIterator[Any]:
        for item in items:
            if generator.random() < 0.1:
                await asyncio.sleep(0)
            yield item

    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        found = [item async for item in log.exchange(produce())]
        assert found == items


async def test_an_item_is_here_when_the_producer_waits(serving: Serving) -> None:
    service = Log()
    async with serving(service) as (_, address), zcrpc.connect(address, Log) as log:
        async with asyncio.timeout(5):
            stream = log.wait(3)
            assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
            service.gate.set()
            assert await anext(stream) == -1
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


async def test_a_conversation(serving: Serving) -> None:
    """Each side waits for the other's last word."""
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        words: asyncio.Queue[int | None] = asyncio.Queue()

        async def say() -> AsyncIterator[int]:
            while (word := await words.get()) is not None:
                yield word

        async with asyncio.timeout(5):
            words.put_nowait(0)
            async for word in log.exchange(say()):
                words.put_nowait(word + 1 if word < 50 else None)
            assert word == 50


async def test_other_ways_to_serve_a_stream(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        assert [item async for item in log.plain(5)] == [0, 1, 2, 3, 4]
        assert [item async for item in log.awaited(5)] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]
        with pytest.raises(zcrpc.Internal, match="no stream but NoneType"):
            await anext(log.nothing())  # type: ignore[call-overload]
        assert [item async for item in log.tail(0)] == []


async def test_frames_of_items_stay_within_the_peers_limits(serving: Serving) -> None:
    text = "x" * 900
    async with serving(Log(), max_header=1024, max_message=100_000) as (_, address), zcrpc.connect(address, Log) as log:
        assert [item async for item in log.exchange(Producer(text, 100)())] == [text] * 100
        blob = bytes(60_000)
        assert [item async for item in log.exchange(Producer([blob], 10)())] == [[blob]] * 10
        with pytest.raises(zcrpc.ResourceExhausted, match=r"an item of Log\.exchange"):
            _ = [item async for item in log.exchange(Producer(text * 2, 2)())]
        with pytest.raises(zcrpc.ResourceExhausted, match=r"an item of Log\.load"):
            await log.load(Producer(bytes(100_001), 1)())
        assert await log.add(1, 2) == 3


# ---- types


async def test_items_are_validated_by_the_annotation(serving: Serving) -> None:
    async def some() -> AsyncIterator[Any]:
        for number in range(70):
            yield {"number": number}
        yield {"number": "x"}

    async with serving(Log()) as (server, address), zcrpc.connect(address, Log) as log:
        assert await log.entries([{"number": 1}, Entry(2)]) == 3  # type: ignore[arg-type, list-item]
        with pytest.raises(
            zcrpc.InvalidArgument, match=r"'items': item 70: Expected `int`, got `str` - at `\$.number`"
        ):
            await log.entries(some())
        with pytest.raises(zcrpc.InvalidArgument, match=r"Log.load\(\): 'rows': item 0: Expected `bytes`"):
            await log.load([3])  # type: ignore[arg-type, list-item]
        found = []
        with pytest.raises(zcrpc.Internal, match=r"Log.lies\(\): item 2: Expected `int`"):
            async for item in log.lies():
                found += [item]
        assert found == [1, 2]
        assert server.stats().streams == 0


async def test_what_cannot_be_sent_is_said(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        found = []
        with pytest.raises(zcrpc.Internal, match=r"an item of Log.wrong\(\) cannot be sent"):
            async for item in log.wrong():
                found += [item]
        assert found == [1]
        producer = Producer(object())
        with pytest.raises(TypeError, match=r"an item of Log.load\(\) cannot be sent"):
            await log.load(producer())
        assert producer.ended[-1] == "closed"
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(TypeError, match="nested too deeply"):
            await log.load([loop])  # type: ignore[arg-type, list-item]


_default: Any = None


async def test_arrays_are_items_like_others(serving: Serving) -> None:
    class Frames(zcrpc.Service):
        @zcrpc.method
        async def halves(self, frames: AsyncIterator[np.ndarray]) -> AsyncIterator[np.ndarray]:
            async for frame in frames:
                assert not frame.flags.owndata
                yield frame / 2

    async def produce() -> AsyncIterator[np.ndarray]:
        frame = np.zeros((100, size), np.float32)
        for number in range(10):
            frame[:] = number
            yield frame

    async with serving(Frames()) as (_, address), zcrpc.connect(address, Frames) as frames:
        for size in (1, 10, 100, 10_000):
            number = 0
            async for half in frames.halves(produce()):
                assert type(half) is np.ndarray
                assert half.shape == (100, size)
                assert (half == number / 2).all()
                number += 1
            assert number == 10
        with pytest.raises(zcrpc.InvalidArgument, match="'frames': item 0: Expected `ndarray`"):
            await anext(frames.halves(numbers(1)))  # type: ignore[call-overload]
        del half


def test_signatures_that_cannot_be_served() -> None:
    class Two(zcrpc.Service):
        @zcrpc.method
        async def f(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> int: ...  # type: ignore[empty-body]

    class Rest(zcrpc.Service):
        @zcrpc.method
        async def f(self, *a: AsyncIterator[int]) -> int: ...  # type: ignore[empty-body]

    class Default(zcrpc.Service):
        @zcrpc.method
        async def f(self, a: AsyncIterator[int] = _default) -> int: ...  # type: ignore[empty-body]

    class Odd(zcrpc.Service):
        @zcrpc.method
        async def f(self) -> AsyncIterator[complex]:
            yield 1j

    class Wrong(zcrpc.Service):
        @zcrpc.method
        async def f(self) -> int:  # type: ignore[misc]
            yield 1

    for service, words in (
        (Two, "'a' is one"),
        (Rest, "one stream from the caller"),
        (Default, "no default"),
        (Odd, "its items: cannot arrive"),
        (Wrong, "returns AsyncIterator"),
    ):
        with pytest.raises(TypeError, match=words):
            plans(service)


# ---- how streams end


async def test_errors_come_after_the_items_before_them(serving: Serving) -> None:
    async with serving(Log()) as (server, address), zcrpc.connect(address, Log) as log:
        for after in (0, 3, 1000):
            stream, found = log.fails(after), []
            with pytest.raises(zcrpc.NotFound) as caught:
                async for item in stream:
                    found += [item]
            assert found == list(range(after))
            assert caught.value.details == {"after": after}
            with pytest.raises(zcrpc.NotFound):  # still
                await anext(stream)
        assert server.stats().errors == 3
        assert log.stats().errors == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["break", "raise", "aclose", "with", "cancel", "timeout"])
async def test_leaving_a_stream_stops_its_producer(serving: Serving, how: str) -> None:
    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:

        async def consume() -> None:
            if how == "aclose":
                stream = log.wait(3)
                await anext(stream)
                await stream.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            elif how == "with":
                async with log.wait(3) as stream:  # type: ignore[attr-defined]
                    await anext(stream)
            elif how == "timeout":
                async for _ in log.client.stream("Log.wait", 3, timeout=0.05):  # type: ignore[attr-defined]
                    pass
            else:
                async for item in log.wait(3):
                    if how == "break" and item == 2:
                        break
                    if how == "raise" and item == 2:
                        raise LookupError

        task = asyncio.create_task(consume())
        if how == "cancel":
            await until(lambda: server.calls)
            await asyncio.sleep(0.01)
            task.cancel()
        kind = {"raise": LookupError, "cancel": asyncio.CancelledError, "timeout": zcrpc.DeadlineExceeded}.get(how)
        if kind is None:
            await task
        else:
            with pytest.raises(kind):
                await task
        await until(lambda: service.ended)
        await until(lambda: not server.calls)
        assert service.ended == ["CancelledError", "cleaned up"]
        assert server.stats().streams == 0
        assert log.stats().streams == 0  # type: ignore[attr-defined]
        assert log.stats().calls == 0  # type: ignore[attr-defined]


async def test_a_stream_that_is_dropped_in_another_thread_is_cancelled(serving: Serving) -> None:
    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:
        held = [log.wait(1)]
        assert await anext(held[0]) == 0
        thread = threading.Thread(target=held.clear)
        thread.start()
        await until(lambda: service.ended)
        thread.join()
        await until(lambda: not server.calls)


async def test_a_stream_that_was_never_begun_costs_nothing(serving: Serving) -> None:
    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:
        stream = log.tail(5)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        log.tail(5)
        await log.add(1, 2)
        assert server.stats().requests == 1
        assert not service.ended


async def test_a_generator_that_is_cancelled_between_items_is_closed(serving: Serving) -> None:
    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:
        async for _ in log.endless(1000):
            break
        await until(lambda: service.ended)
        await until(lambda: not server.calls)
        await asyncio.sleep(0.02)
        assert service.ended == ["endless"]


async def test_an_answer_before_the_end_stops_the_callers_producer(serving: Serving) -> None:
    async with serving(Log()) as (server, address), zcrpc.connect(address, Log) as log:
        for item in (b"row", bytes(2 * MIB)):
            producer = Producer(item)
            assert (await log.load(producer(), most=3))[1] == 3
            assert producer.ended[-1] == "closed"
            with pytest.raises(zcrpc.InvalidArgument):
                await log.load(producer(), table=5)  # type: ignore[arg-type]
            with pytest.raises(zcrpc.InvalidArgument, match="item 0"):
                await log.entries(producer())
        await until(lambda: not server.stats().streams)
        assert await log.add(1, 2) == 3
        assert server.stats().violations == 0


async def test_an_error_of_the_callers_producer_is_the_callers(serving: Serving) -> None:
    async def broken(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"row"
        raise LookupError("lost")

    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:
        for count in (0, 3, 1000):
            with pytest.raises(LookupError, match="lost"):
                await log.load(broken(count))
            with pytest.raises(LookupError, match="lost"):
                async for _ in log.exchange(broken(count)):
                    pass
        await until(lambda: not server.calls)
        assert server.stats().streams == 0
        assert service.ended == []


async def test_a_cancelled_call_stops_its_producer_and_its_handler(serving: Serving) -> None:
    async with serving(Log()) as (server, address), zcrpc.connect(address, Log) as log:
        producer = Producer(b"row")
        task = asyncio.ensure_future(log.load(producer()))
        await until(lambda: producer.yielded > 1000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert producer.ended[-1] == "closed"
        await until(lambda: not server.calls)
        assert server.stats().streams == 0


async def test_a_handler_that_heeds_no_cancellation_does_not_take_it_for_the_end(serving: Serving) -> None:
    seen: list[Any] = []

    class Stubborn(zcrpc.Service):
        @zcrpc.method
        async def load(self, rows: AsyncIterator[int]) -> None:
            while True:
                try:
                    async for row in rows:
                        seen.extend([row])
                    seen.append("the end")
                    return
                except asyncio.CancelledError:
                    seen.append("cancelled")
                except zcrpc.Cancelled:
                    seen.append("over")
                    return

    async with serving(Stubborn()) as (server, address), zcrpc.connect(address, Stubborn) as stubborn:
        task = asyncio.ensure_future(stubborn.load(numbers(1000, pause=0.01)))
        await until(lambda: seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not server.calls)
        assert seen[-2:] == ["cancelled", "over"]


async def test_deadlines_end_streams(serving: Serving) -> None:
    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:
        client = log.client  # type: ignore[attr-defined]
        with pytest.raises(zcrpc.DeadlineExceeded):
            async for _ in client.stream("Log.endless", 10, timeout=0.1):
                await asyncio.sleep(0.001)
        await until(lambda: service.ended)
        producer = Producer(b"row")
        with pytest.raises(zcrpc.DeadlineExceeded):
            await client.call("Log.load", producer(), timeout=0.1)
        assert producer.ended[-1] == "closed"
        with pytest.raises(zcrpc.DeadlineExceeded):
            await client.call("Log.load", producer(), timeout=-1)
        with pytest.raises(zcrpc.DeadlineExceeded):
            async for _ in client.stream("Log.exchange", numbers(100, pause=0.01), timeout=0.1):
                pass
        await until(lambda: not server.calls)
        assert server.stats().streams == 0


async def test_a_lost_connection_fails_streams_at_once(serving: Serving) -> None:
    service = Log()
    async with serving(service) as (server, address):
        client = await zcrpc.connect(address)
        producer = Producer(b"row")

        async def consume() -> list[Any]:
            return [item async for item in client.stream("Log.wait", 3)]

        tasks = [
            asyncio.create_task(consume()),
            asyncio.ensure_future(client.call("Log.slowly", producer())),
            asyncio.ensure_future(client.call("Log.load", numbers(10, pause=1))),
        ]
        await until(lambda: server.calls == 3)
        await asyncio.sleep(0.02)
        for connection in list(server._connections):
            connection.abort("a test")
        async with asyncio.timeout(2):
            for task in tasks:
                with pytest.raises(zcrpc.Unavailable):
                    await task
        assert producer.ended[-1] == "closed"
        await until(lambda: not server.calls)
        assert "cleaned up" in service.ended
        await client.close()
        with pytest.raises(zcrpc.Unavailable):
            await anext(client.stream("Log.tail", 1))
        assert server.stats().streams == 0


async def test_a_client_that_vanishes_stops_its_streams(serving: Serving) -> None:
    async with serving(service := Log()) as (_, address):
        client = await zcrpc.connect(address)
        stream = client.stream("Log.wait", 1)
        await anext(stream)
        client._connection.abort()
        await until(lambda: service.ended)
        with pytest.raises(zcrpc.Unavailable):
            await anext(stream)
        await client.close()


async def test_a_closing_server_lets_streams_finish_within_the_grace(serving: Serving) -> None:
    for grace, last in ((5.0, -1), (0.05, None)):
        service = Log()
        server = zcrpc.Server(service)
        address = await server.listen("tcp://127.0.0.1:0")
        async with zcrpc.connect(address) as client:
            stream = client.stream("Log.wait", 1)
            assert await anext(stream) == 0
            closing = asyncio.create_task(server.close(grace))
            await asyncio.sleep(0.02)
            if last is not None:
                service.gate.set()
                assert [item async for item in stream] == [last]
            else:
                with pytest.raises(zcrpc.Unavailable, match="gone away"):
                    await anext(stream)
                assert service.ended == ["CancelledError", "cleaned up"]
            with pytest.raises(zcrpc.Unavailable):
                await anext(client.stream("Log.tail", 1))
            await closing


async def test_one_consumer_at_a_time(serving: Serving) -> None:
    async with serving(service := Log()) as (_, address), zcrpc.connect(address, Log) as log:
        stream = log.wait(0)
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: log.stats().calls)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="one consumer"):
            await anext(stream)
        service.gate.set()
        assert await first == -1


async def test_waiting_for_an_item_can_be_given_up(serving: Serving) -> None:
    async with serving(service := Log()) as (_, address), zcrpc.connect(address, Log) as log:
        stream = log.wait(1)
        assert await anext(stream) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.02)
        service.gate.set()
        assert await anext(stream) == -1


async def test_calls_in_flight_are_limited_for_streams_too(serving: Serving) -> None:
    async with serving(service := Log(), max_in_flight=2) as (server, address), zcrpc.connect(address, Log) as log:
        streams = [log.wait(1) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        third = asyncio.ensure_future(anext(log.tail(1)))
        fourth = asyncio.ensure_future(log.load([b""]))  # type: ignore[arg-type, list-item]
        await asyncio.sleep(0.02)
        assert server.stats().requests == 2
        assert not third.done()
        await streams[0].aclose()
        assert (await third).number == 0
        assert (await fourth)[1] == 1
        service.gate.set()
        assert [item async for item in streams[1]] == [-1]
        with pytest.raises(zcrpc.DeadlineExceeded):
            holders = [log.wait(1) for _ in range(2)]
            service.gate.clear()
            for holder in holders:
                await anext(holder)
            await anext(log.client.stream("Log.tail", 1, timeout=0.05))  # type: ignore[attr-defined]


# ---- inside handlers and producers

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


async def test_asyncio_works_in_generators_as_elsewhere(serving: Serving) -> None:
    class Tasks(zcrpc.Service):
        @zcrpc.method
        async def run(self, items: AsyncIterator[int]) -> AsyncIterator[str]:
            task = asyncio.current_task()
            variable.set("mine")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(1)
            yield variable.get()
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            async for item in items:
                assert asyncio.current_task() is task
                yield f"{variable.get()} {item}"

    async with serving(Tasks()) as (_, address), zcrpc.connect(address, Tasks) as tasks:
        assert [item async for item in tasks.run(numbers(3, pause=0.001))] == ["mine", "mine 0", "mine 1", "mine 2"]
        assert variable.get() == ""


async def test_a_generator_that_never_waits_lets_others_run(serving: Serving) -> None:
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log, zcrpc.connect(address) as other:
        consumed = 0

        async def consume() -> None:
            nonlocal consumed
            async for _ in log.endless(8):
                consumed += 1

        task = asyncio.create_task(consume())
        await until(lambda: consumed > 1000)
        slowest = max([await other.ping() for _ in range(50)])
        assert slowest < 0.5
        assert await log.add(1, 2) == 3
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# ---- flow control


async def test_a_slow_consumer_stops_a_fast_producer_and_nobody_else(serving: Serving) -> None:
    service = Log()
    async with serving(service) as (server, address), zcrpc.connect(address, Log) as log:
        producer = Producer(bytes(100_000), 300)
        slow = asyncio.ensure_future(log.slowly(producer()))
        await until(lambda: service.taken)
        await asyncio.sleep(0.1)
        assert service.taken == 1
        assert producer.yielded < 20  # a window, a frame and a batch
        assert server.stats().leased_bytes < 3 * MIB
        assert await log.load(Producer(bytes(100_000), 300)()) == ["t", 300, 30_000_000]
        assert [len(item) async for item in log.blobs([MIB] * 30)] == [MIB] * 30
        assert log.stats().credit_stalls > 0  # type: ignore[attr-defined]
        service.gate.set()
        assert await slow == 300


async def test_a_slow_client_stops_a_fast_server(serving: Serving) -> None:
    async with serving(service := Log()) as (server, address), zcrpc.connect(address, Log) as log:
        stream = log.endless(64)
        await anext(stream)
        await asyncio.sleep(0.1)
        assert service.yielded < 20_000
        assert server.stats().outbound_bytes < 2 * MIB
        for _ in range(50_000):
            assert await anext(stream) == b"x" * 64
        assert server.stats().credit_stalls > 0
        await stream.aclose()
        await until(lambda: not server.calls)


async def test_tiny_windows_only_slow_things_down(serving: Serving) -> None:
    windows = {"stream_window": 1, "connection_window": 1}
    async with serving(Log(), **windows) as (_, address), zcrpc.connect(address, Log, **windows) as log:  # type: ignore[arg-type]
        items = [0, b"x" * 100, b"y" * 100_000, "z"] * 20

        async def exchange() -> list[Any]:
            return [item async for item in log.exchange(item for item in items)]  # type: ignore[arg-type]

        for found in await asyncio.gather(*(exchange() for _ in range(10))):
            assert found == items


async def test_a_connections_window_is_shared(serving: Serving) -> None:
    service = Log()
    async with serving(service, stream_window=100_000, connection_window=400_000) as (server, address):
        async with zcrpc.connect(address, Log) as log:
            producers = [Producer(bytes(30_000), 100) for _ in range(10)]
            calls = [asyncio.ensure_future(log.slowly(producer())) for producer in producers]
            await until(lambda: server.calls == 10)
            await asyncio.sleep(0.1)
            assert server.stats().leased_bytes + server.stats().bytes_in < 1_500_000
            service.gate.set()
            assert await asyncio.gather(*calls) == [100] * 10


async def test_many_streams_at_once(serving: Serving) -> None:
    async with serving(Log()) as (server, address), zcrpc.connect(address, Log) as log:

        async def one(number: int) -> None:
            generator = random.Random(number)
            items = [generator.randbytes(generator.choice([3, 700, 30_000])) for _ in range(generator.randrange(60))]
            if number % 3 == 0:
                assert [bytes(item) async for item in log.exchange(item for item in items)] == items  # type: ignore[arg-type]
            elif number % 3 == 1:
                assert (await log.load(item for item in items))[1] == len(items)  # type: ignore[arg-type]
            else:
                async for _ in log.tail(1000):
                    if generator.random() < 0.01:
                        break

        await asyncio.gather(*(one(number) for number in range(150)))
        await until(lambda: not server.calls)
        assert server.stats().streams == 0
        assert server.stats().violations == 0
        assert log.stats().streams == 0  # type: ignore[attr-defined]


def test_windows_are_checked() -> None:
    for name in ("stream_window", "connection_window"):
        for wrong in (0, -1, 1 << 31):
            with pytest.raises(ValueError, match=f"{name}={wrong}"):
                zcrpc.Server(Log(), **{name: wrong})  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=f"{name}={wrong}"):
                zcrpc.connect("tcp://127.0.0.1:1", **{name: wrong})  # type: ignore[arg-type]


async def test_nothing_of_an_item_is_kept(serving: Serving) -> None:
    """Memory is given back as the consumer goes on, while it waits for the next."""
    async with serving(Log()) as (_, address), zcrpc.connect(address, Log) as log:
        gate = asyncio.Event()

        async def produce() -> AsyncIterator[bytes]:
            yield os.urandom(MIB)
            await gate.wait()

        stream = log.exchange(produce())
        item = await anext(stream)
        assert len(item) == MIB
        following = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0.02)
        del item
        gc.collect()
        assert log.stats().leases == 0  # type: ignore[attr-defined]
        gate.set()
        assert await following is None
