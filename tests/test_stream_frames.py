"""Frames of streams that are wrong, or come at the wrong time, from a peer that speaks the wire by hand."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from conftest import Serving, until
from raw_peer import (
    CANCEL,
    CREDIT,
    DATA,
    END,
    ERROR,
    GOAWAY,
    HELLO,
    PING,
    PONG,
    PREFACE,
    REQUEST,
    RESPONSE,
    STREAM_IN,
    STREAM_OUT,
    Frame,
    RawPeer,
    RawServer,
    frame,
    hello,
)

import zcrpc
from zcrpc.errors import Status

MIB = 1 << 20
WINDOW = 10_000


class Streams(zcrpc.Service):
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.taken = 0
        self.closed = 0

    @zcrpc.method
    async def sum(self, numbers: AsyncIterator[int], start: int = 0) -> int:
        async for number in numbers:
            start += number
        return start

    @zcrpc.method
    async def keep(self, items: AsyncIterator[bytes]) -> int:
        """Takes nothing until the gate is open."""
        await self.gate.wait()
        async for _ in items:
            self.taken += 1
        return self.taken

    @zcrpc.method
    async def first(self, items: AsyncIterator[Any]) -> Any:
        return await anext(items)

    @zcrpc.method
    async def count(self, until: int, text: str = "") -> AsyncIterator[Any]:
        try:
            for number in range(until):
                yield text or number
        finally:
            self.closed += 1

    @zcrpc.method
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item * 2

    @zcrpc.method
    async def add(self, a: int, b: int) -> int:
        return a + b


async def items_of(peer: RawPeer, stream: int) -> tuple[list[Any], Frame]:
    """All items of a stream, and the frame that ends it."""
    found: list[Any] = []
    while True:
        came = await peer.frame()
        assert came.stream == stream
        if came.kind != DATA:
            return found, came
        found += came.header


async def answer(peer: RawPeer) -> Frame:
    """The next frame that is not about credit."""
    while (came := await peer.frame()).kind == CREDIT:
        pass
    return came


def begin(peer: RawPeer, name: str, *arguments: Any, stream: int = 1, **options: Any) -> None:
    """A call with the flags that it is to have."""
    kinds = {
        "sum": STREAM_IN,
        "keep": STREAM_IN,
        "first": STREAM_IN,
        "count": STREAM_OUT,
        "double": STREAM_IN | STREAM_OUT,
    }
    peer.call(f"Streams.{name}", *arguments, stream=stream, **{"flags": kinds.get(name, 0)} | options)


async def test_streams_by_hand(serving: Serving) -> None:
    async with serving(Streams()) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, "sum", 100)
        peer.send(frame(DATA, [1, 2], stream=1) + frame(DATA, [3], stream=1) + frame(END, stream=1))
        assert await answer(peer) == Frame(RESPONSE, 0, 1, [106], b"")
        begin(peer, "count", 1000, stream=2)
        found, last = await items_of(peer, 2)
        assert found == list(range(1000))
        assert last == Frame(RESPONSE, 0, 2, None, b"")
        begin(peer, "double", stream=3)
        for number in range(5):
            peer.send(frame(DATA, [number], stream=3))
            assert await answer(peer) == Frame(DATA, 0, 3, [number * 2], b"")
        peer.send(frame(END, stream=3))
        assert (await answer(peer)).kind == RESPONSE
        reference = msgspec.msgpack.Ext(2, (0).to_bytes(8, "little") + (2 * MIB).to_bytes(8, "little"))
        begin(peer, "first", stream=4)
        data = frame(DATA, [reference], bytes(2 * MIB), stream=4)
        head, rest = data[:-MIB], data[-MIB:]
        peer.send(head + frame(PING) + frame(5, b"", rest, stream=4) + frame(END, stream=4))
        assert (await answer(peer)).kind == PONG
        result = await answer(peer)
        assert (result.kind, len(result.payload)) == (RESPONSE, 2 * MIB)
        assert server.stats().violations == 0


@pytest.mark.parametrize(
    ("name", "sent", "words"),
    [
        ("sum", frame(DATA, [1], stream=1) + frame(END, stream=1) + frame(DATA, [1], stream=1), "items on stream 1"),
        ("keep", frame(END, stream=1) + frame(DATA, [b""], stream=1), "items on stream 1"),
        ("keep", frame(END, stream=1) * 2, "an end of items on stream 1"),
        ("keep", frame(CANCEL, stream=1) + frame(DATA, [b""], stream=1), "items on stream 1"),
        ("keep", frame(DATA, [b""], stream=2), "items on stream 2"),
        ("keep", frame(DATA, [b""], stream=0), "items on stream 0"),
        ("keep", frame(CREDIT, stream=1, deadline_ms=0), "credit of 0 bytes"),
        ("count", frame(DATA, [1], stream=1), "items on stream 1"),
        ("count", frame(END, stream=1), "an end of items on stream 1"),
        ("add", frame(DATA, [1], stream=1), "items on stream 1"),
        ("keep", frame(REQUEST, [[]], method=1, stream=1, flags=STREAM_IN), "stream 1, which is in use"),
        ("keep", frame(REQUEST, [[]], method=1, stream=1), "stream 1, which is in use"),
        ("count", frame(REQUEST, [[1]], method=1, stream=0, flags=STREAM_OUT), "a call on stream 0"),
        ("add", frame(REQUEST, [[1]], method=1, stream=0, flags=STREAM_IN), "a call on stream 0"),
        ("keep", frame(REQUEST, [[]], method=1, stream=1, flags=STREAM_OUT), "stream 1, which is in use"),
    ],
)
async def test_frames_out_of_place_close_the_connection(
    serving: Serving, caplog: pytest.LogCaptureFixture, name: str, sent: bytes, words: str
) -> None:
    service = Streams()
    async with serving(service) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, name, *{"count": (5,), "add": (1, 2)}.get(name, ()))
        peer.send(sent)
        last = (await peer.closed())[-1]
        assert (last.kind, last.method) == (GOAWAY, Status.INVALID_ARGUMENT)
        assert words in last.header[0]
        assert any(words in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert server.stats().violations == 1
        await peer.close()
        await until(lambda: not server.calls)
        assert server.stats().streams == 0


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([], "array of them"),
        ({"a": 1}, "array of them"),
        (5, "array of them"),
        (b"", "truncated"),
        (b"\xc1", "."),
        ([b"x" * 3], "item 0: Expected `int`, got `bytes`"),
        ([1, 2, "x"], "item 2: Expected `int`, got `str`"),
        (b"\x91" * 3000, "."),
        ([msgspec.msgpack.Ext(1, b"\0" * 16)], "."),
        ([msgspec.msgpack.Ext(2, b"\x01" * 16)], "buffer of"),
        ([msgspec.msgpack.Ext(99, b"")], "extension 99"),
    ],
)
async def test_items_that_do_not_decode_end_the_call(serving: Serving, header: Any, words: str) -> None:
    async with serving(Streams()) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, "sum")
        peer.send(frame(DATA, header, stream=1))
        came = await answer(peer)
        assert (came.kind, came.method) == (ERROR, Status.INVALID_ARGUMENT)
        assert words in came.header[0]
        assert "'numbers'" in came.header[0]
        peer.send(frame(DATA, [1], stream=1) + frame(CANCEL, stream=1))  # was on its way
        begin(peer, "add", 1, 2, stream=2)
        assert (await answer(peer)).header == [3]
        assert server.stats().violations == 0
        assert server.stats().streams == 0


async def test_items_beyond_the_streams_credit_end_the_call(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    service = Streams()
    async with serving(service, stream_window=WINDOW) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, "keep")
        peer.send(frame(DATA, [bytes(500)] * 18, stream=1))  # under the window
        peer.send(frame(DATA, [bytes(500)] * 50, stream=1))  # overdraws: may
        begin(peer, "add", 1, 2, stream=2)
        assert (await answer(peer)).header == [3]
        peer.send(frame(DATA, [b""], stream=1))
        came = await answer(peer)
        assert (came.kind, came.method, came.stream) == (ERROR, Status.RESOURCE_EXHAUSTED, 1)
        assert "credit" in came.header[0]
        assert any("credit" in record.getMessage() for record in caplog.records)
        assert server.stats().errors == 1
        peer.send(frame(END, stream=1))
        begin(peer, "add", 1, 2, stream=3)
        assert (await answer(peer)).header == [3]


async def test_items_beyond_the_connections_credit_close_it(serving: Serving) -> None:
    service = Streams()
    async with serving(service, stream_window=WINDOW, connection_window=3 * WINDOW) as (server, address):
        async with await RawPeer.greeted(address) as peer:
            for stream in range(1, 6):
                begin(peer, "keep", stream=stream)
                peer.send(frame(DATA, [bytes(30_000)], stream=stream))  # counts a stream's window
            last = (await peer.closed())[-1]
            assert last.kind == GOAWAY
            assert "credit of the connection" in last.header[0]
            assert server.stats().violations == 1


async def test_credit_comes_as_items_are_taken(serving: Serving) -> None:
    service = Streams()
    async with serving(service, stream_window=WINDOW, connection_window=2 * WINDOW) as (_, address):
        async with await RawPeer.greeted(address) as peer:
            begin(peer, "keep")
            item = frame(DATA, [bytes(5500)], stream=1)
            peer.send(item * 2)
            begin(peer, "add", 1, 2, stream=2)
            assert await peer.frame() == Frame(RESPONSE, 0, 2, [3], b"")  # no credit yet
            service.gate.set()
            credit = await peer.frame()
            assert (credit.kind, credit.stream) == (CREDIT, 1)
            frames = [credit, *[await peer.frame() for _ in range(2)]]
            assert [(each.kind, each.stream) for each in frames] == [(CREDIT, 1), (CREDIT, 0), (CREDIT, 1)]
            assert frames[1].credit >= WINDOW  # a half
            assert frames[0].credit + frames[2].credit == 2 * len(item)
            for _ in range(50):  # for ever
                peer.send(item)
                while (came := await peer.frame()).stream != 1:
                    assert came.kind == CREDIT
            peer.send(frame(END, stream=1))
            assert (await answer(peer)).header == [52]


async def test_credit_of_what_is_discarded_comes_back(serving: Serving) -> None:
    """Of calls that were refused, answered early or cancelled, and of payloads over the limit."""
    async with serving(service := Streams(), stream_window=MIB, connection_window=WINDOW, max_message=100_000) as (
        server,
        address,
    ):
        async with await RawPeer.greeted(address) as peer:
            given = 0

            async def discarded(stream: int, sent: bytes) -> None:
                nonlocal given
                peer.send(sent)
                before = given
                while given == before:
                    came = await peer.frame()
                    given += came.credit if came.kind == CREDIT and came.stream == 0 else 0

            item = frame(DATA, [bytes(WINDOW)], stream=1)
            begin(peer, "first", "unexpected", "arguments")  # refused
            await discarded(1, item)
            peer.send(frame(END, stream=1))
            begin(peer, "first", stream=2)  # answered with the first
            await discarded(2, frame(DATA, [bytes(WINDOW)], stream=2))
            await discarded(2, frame(DATA, [bytes(WINDOW)], stream=2))
            peer.send(frame(CANCEL, stream=2))
            begin(peer, "keep", stream=3)  # cancelled
            await discarded(3, frame(DATA, [bytes(WINDOW)], stream=3) + frame(CANCEL, stream=3))
            begin(peer, "keep", stream=4)  # over the limit
            await discarded(4, frame(DATA, [0], bytes(100_001), stream=4))
            peer.send(frame(END, stream=4))
            peer.send(
                frame(REQUEST, [[]], bytes(100_001), method=peer.methods["Streams.keep"], stream=5, flags=STREAM_IN)
            )
            await discarded(5, frame(DATA, [bytes(WINDOW)], stream=5) + frame(END, stream=5))
            begin(peer, "add", 1, 2, stream=6)
            assert (await answer(peer)).header == [3]
            assert given > 5 * WINDOW
            assert server.stats().violations == 0
            assert server.stats().streams == 0
            assert not service.taken


async def test_a_payload_over_the_limit_ends_the_call(serving: Serving) -> None:
    async with serving(Streams(), max_message=100_000) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, "keep")
        peer.send(frame(DATA, [0], bytes(100_001), stream=1))
        came = await answer(peer)
        assert (came.kind, came.method) == (ERROR, Status.RESOURCE_EXHAUSTED)
        assert "100001 bytes" in came.header[0]
        peer.send(frame(DATA, [0], bytes(100_001), stream=1) + frame(END, stream=1))
        begin(peer, "add", 1, 2, stream=2)
        assert (await answer(peer)).header == [3]
        peer.send(frame(DATA, [0], bytes(100_001), stream=1))
        assert (await peer.closed())[-1].kind == GOAWAY
        assert server.stats().violations == 1


@pytest.mark.parametrize(
    ("name", "flags"),
    [("sum", 0), ("sum", STREAM_OUT), ("count", 0), ("count", STREAM_IN), ("double", STREAM_IN), ("add", STREAM_IN)],
)
async def test_flags_must_be_those_of_the_method(serving: Serving, name: str, flags: int) -> None:
    async with serving(Streams()) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, name, flags=flags)
        came = await answer(peer)
        assert (came.kind, came.method) == (ERROR, Status.FAILED_PRECONDITION)
        assert f"Streams.{name}()" in came.header[0]
        if flags & STREAM_IN:
            peer.send(frame(DATA, [1], stream=1) + frame(END, stream=1))
        begin(peer, "add", 1, 2, stream=1)
        assert (await answer(peer)).header == [3]
        assert server.stats().violations == 0


async def test_credit_for_streams_that_are_over_is_ignored(serving: Serving) -> None:
    async with serving(Streams()) as (server, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(CREDIT, stream=77, deadline_ms=5))
        begin(peer, "count", 3)
        found, _ = await items_of(peer, 1)
        assert found == [0, 1, 2]
        peer.send(frame(CREDIT, stream=1, deadline_ms=5))
        begin(peer, "add", 1, 2, stream=2)
        assert (await answer(peer)).header == [3]
        assert server.stats().violations == 0


async def test_credit_without_bound_closes_the_connection(serving: Serving) -> None:
    service = Streams()
    async with serving(service) as (server, address), await RawPeer.greeted(address) as peer:
        begin(peer, "count", 1 << 40, "x" * 1000)
        await peer.frame()
        peer.send(frame(CREDIT, stream=1, deadline_ms=(1 << 31) - 1) * 3)
        last = (await peer.closed())[-1]
        assert last.kind == GOAWAY
        assert "credit of" in last.header[0]
        await until(lambda: service.closed)
        assert server.stats().violations == 1


async def test_a_peer_with_much_credit_that_does_not_read_stops_the_producer(serving: Serving) -> None:
    service = Streams()
    most = (1 << 31) - 1
    limits = {"header": 65536, "payload": 1 << 30, "in_flight": 10, "stream_window": most, "connection_window": most}
    async with serving(service) as (server, address):
        peer = await RawPeer.connect(address, receive_buffer=4096)
        peer.send(PREFACE + hello(limits=limits))
        await peer.read_hello()
        for stream in range(1, 4):
            begin(peer, "count", 1 << 40, "x" * 1000, stream=stream)
        highest = 0
        for _ in range(50):
            await asyncio.sleep(0.01)
            highest = max(highest, server.stats().outbound_bytes)
        assert MIB < highest < 4 * MIB
        peer.abort()
        await until(lambda: service.closed == 3)


async def test_streams_that_are_answered_and_never_ended_are_limited(serving: Serving) -> None:
    async with serving(Streams(), max_in_flight=4) as (server, address), await RawPeer.greeted(address) as peer:
        for stream in range(1, 100):
            begin(peer, "first", 1, 2, 3, stream=stream)
        last = (await peer.closed())[-1]
        assert last.kind == GOAWAY
        assert "not ended" in last.header[0]
        await peer.close()
        await until(lambda: not server.stats().streams)


async def test_too_many_calls_in_flight_are_refused_with_their_items(serving: Serving) -> None:
    service = Streams()
    async with serving(service, max_in_flight=2) as (server, address), await RawPeer.greeted(address) as peer:
        for stream in range(1, 4):
            begin(peer, "keep", stream=stream)
            peer.send(frame(DATA, [b"x"], stream=stream))
        came = await answer(peer)
        assert (came.kind, came.method, came.stream) == (ERROR, Status.RESOURCE_EXHAUSTED, 3)
        service.gate.set()
        peer.send(b"".join(frame(DATA, [b"x"], stream=stream) + frame(END, stream=stream) for stream in range(1, 4)))
        assert sorted([(await answer(peer)).header[0] for _ in range(2)])[-1] == 4
        assert server.stats().streams == 0
        assert server.stats().violations == 0


async def test_a_call_that_is_put_off_keeps_its_items(serving: Serving) -> None:
    """While the peer does not read large results, calls with streams wait like others, their ends included."""

    class Large(Streams):
        @zcrpc.method
        async def large(self) -> bytes:
            return bytes(16 * MIB)

    async with serving(Large(), max_unsent=MIB) as (server, address):
        async with await RawPeer.greeted(address) as peer:
            numbers = peer.methods
            for stream in (1, 2):
                peer.send(frame(REQUEST, [[]], method=numbers["Large.large"], stream=stream))
            peer.writer.transport.pause_reading()
            await until(lambda: server.stats().requests >= 1)
            for stream, ends in ((3, True), (4, False), (5, False), (6, True)):
                peer.send(frame(REQUEST, [[]], method=numbers["Large.sum"], stream=stream, flags=STREAM_IN))
                peer.send(frame(DATA, [stream, 1], stream=stream) + (frame(END, stream=stream) if ends else b""))
            peer.send(frame(CANCEL, stream=5))
            await until(lambda: server.stats().requests == 6)
            assert server.stats().items_in == 0
            peer.writer.transport.resume_reading()
            peer.send(frame(DATA, [10], stream=4) + frame(END, stream=4))
            found = {}
            for _ in range(5):
                came = await answer(peer)
                found[came.stream] = came.header if came.kind == RESPONSE else came
            assert {stream: found[stream] for stream in (3, 4, 6)} == {3: [4], 4: [15], 6: [7]}
            await until(lambda: not server.stats().streams)


# ---- servers that misbehave


async def served(peer: RawPeer, **methods: int) -> Frame:
    """Greets, and takes the first request."""
    peer.send(PREFACE + hello(methods={f"S.{name}": number for name, number in methods.items()}))
    assert (await peer.read_hello()).kind == HELLO
    return await peer.frame()


async def test_a_stream_where_one_result_was_to_come_fails_the_call() -> None:
    async def behave(peer: RawPeer) -> None:
        request = await served(peer, call=1)
        peer.send(frame(DATA, [1], stream=request.stream))
        cancel = await peer.frame()
        assert (cancel.kind, cancel.stream) == (CANCEL, request.stream)
        peer.send(frame(DATA, [1], stream=request.stream))  # ignored
        again = await peer.frame()
        peer.send(frame(RESPONSE, [5], stream=again.stream))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.Internal, match="a stream, where one result"):
            await client.call("S.call")
        assert await client.call("S.call") == 5


async def test_a_response_alone_is_an_empty_stream_and_items_after_it_are_ignored() -> None:
    async def behave(peer: RawPeer) -> None:
        request = await served(peer, stream=1)
        peer.send(frame(RESPONSE, [5], stream=request.stream) + frame(DATA, [1], stream=request.stream))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        assert [item async for item in client.stream("S.stream")] == []


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ((END, [], 0), "an end of items"),
        ((CREDIT, [], 0), "a credit of 0"),
        ((DATA, [], 0), "array of them"),
        ((DATA, {}, 0), "array of them"),
    ],
)
async def test_a_server_that_sends_nonsense_fails_the_stream(sent: tuple[int, Any, int], words: str) -> None:
    async def behave(peer: RawPeer) -> None:
        request = await served(peer, stream=1)
        kind, header, credit = sent
        peer.send(frame(kind, header if kind == DATA else b"", stream=request.stream, deadline_ms=credit))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.ZcrpcError, match=words):
            await anext(client.stream("S.stream"))


async def test_a_server_that_heeds_no_credit_fails_the_stream() -> None:
    async def behave(peer: RawPeer) -> None:
        request = await served(peer, stream=1)
        for _ in range(20):
            peer.send(frame(DATA, [bytes(1000)], stream=request.stream))
        with contextlib.suppress(TimeoutError):
            while (came := await peer.frame()).kind == CREDIT:
                pass
            assert came.kind == CANCEL
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address, stream_window=5000) as client:
        stream = client.stream("S.stream")
        with pytest.raises(zcrpc.ResourceExhausted, match="credit"):
            await anext(stream)
            await asyncio.sleep(0.1)
            while True:
                await anext(stream)


async def test_a_server_may_refuse_a_stream_before_its_end() -> None:
    """The producer is stopped, and the server is told that nothing more comes."""

    async def behave(peer: RawPeer) -> None:
        request = await served(peer, call=1)
        assert (await peer.frame()).kind == DATA
        peer.send(frame(ERROR, ["no"], method=Status.PERMISSION_DENIED, stream=request.stream))
        while (came := await peer.frame()).kind == DATA:
            pass
        assert (came.kind, came.stream) == (CANCEL, request.stream)
        await peer.closed()

    closed = []

    async def produce() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.PermissionDenied):
            await client.call("S.call", produce())
        assert closed


async def test_cancel_comes_after_the_items_that_are_being_sent() -> None:
    """Else a server could not tell them from nonsense."""
    seen: list[int] = []

    async def behave(peer: RawPeer) -> None:
        request = await served(peer, call=1)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(frame(ERROR, ["no"], method=Status.ABORTED, stream=request.stream))
        await asyncio.sleep(0.1)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while True:
            came = await peer.frame()
            seen.append(came.kind)
            if came.kind == CANCEL:
                break
            assert len(came.payload) == 32 * MIB
        await peer.closed()

    async def produce() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.02)
        yield bytes(32 * MIB)

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.Aborted):
            await client.call("S.call", produce())
        await until(lambda: CANCEL in seen)
    assert seen in ([DATA, CANCEL], [CANCEL])
