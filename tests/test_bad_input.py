"""What bad input gets: an error frame where the stream is intact, else a closed connection with the reason logged.

Each test is one clause of that promise, with a peer that speaks the wire by hand. After each, `serving` checks that no
lease is left, and `alive` that the server serves on.
"""

import asyncio
import contextlib
import logging
import os
import resource
import socket
from typing import Any

import msgspec
import pytest
from conftest import Serving, Waits, until
from raw_peer import (
    CANCEL,
    CHUNK,
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
    RawPeer,
    RawServer,
    frame,
    hello,
)

import zcrpc
from zcrpc.errors import Status

MIB = 1 << 20


class Bench(Waits):
    @zcrpc.method
    async def echo(self, value: memoryview) -> memoryview:
        return value

    @zcrpc.method
    async def add(self, a: int, b: int) -> int:
        return a + b

    @zcrpc.method
    async def size(self, n: int) -> bytes:
        return bytes(n)

    @zcrpc.method
    def text(self, n: int) -> str:
        return "x" * n

    @zcrpc.method
    async def fail(self, kind: str) -> None:
        raise {"zcrpc": zcrpc.NotFound("no such key", details={"key": [1]}), "other": LookupError("lost")}[kind]

    @zcrpc.method
    def unsendable(self) -> Any:
        return object()


@pytest.fixture(params=[0, 2], ids=["inline", "threads"])
def threads(request: pytest.FixtureRequest) -> int:
    return request.param


async def alive(address: str) -> None:
    async with zcrpc.connect(address) as client:
        assert await client.call("Bench.add", 1, 2, timeout=5) == 3


def rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


# ---- the connection is closed, and the reason logged


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak zcrpc"),
        (b"ZCRPC\r\n\x02" + hello(), "another version"),
        (b"ZCRPC\n\x01" + hello(), "does not speak zcrpc"),
        (PREFACE + frame(PING), "no hello"),
        (PREFACE + frame(REQUEST, [[1, 2]], method=1, stream=1), "no hello"),
        (PREFACE + hello() + hello(), "hello"),
        (PREFACE + hello() + frame(0), "unknown kind"),
        (PREFACE + hello() + frame(13), "unknown kind"),
        (PREFACE + hello() + frame(255, b"x" * 100), "unknown kind"),
        (PREFACE + hello() + frame(DATA, [1], stream=1), "items on stream 1, where none may come"),
        (PREFACE + hello() + frame(END, stream=1), "an end of items on stream 1, where none may come"),
        (PREFACE + hello() + frame(CREDIT), "a credit of 0 bytes"),
        (PREFACE + hello() + frame(CREDIT, deadline_ms=(1 << 31) - 1), "credit of 2164260863 bytes in all"),
        (PREFACE + hello() + frame(END, b"", b"x", stream=1), "payload"),
        (PREFACE + hello() + frame(CREDIT, b"", b"x", deadline_ms=1), "payload"),
        (PREFACE + hello() + frame(REQUEST, method=1, stream=1, header_length=65537), "header over the limit"),
        (PREFACE + hello() + frame(REQUEST, method=1, stream=1, header_length=0xFFFFFFFF), "header over the limit"),
        (PREFACE + frame(HELLO, header_length=0xFFFFFFFF), "header over the limit"),
        (PREFACE + hello() + frame(CHUNK, b"", b"x", stream=1), "chunk that continues nothing"),
        (PREFACE + hello() + frame(CANCEL, b"", b"x", stream=1), "payload where none may be"),
        (PREFACE + hello() + frame(PING, b"x" * 65), "ping of 65 bytes"),
        (PREFACE + hello() + frame(REQUEST, [[1, 2]], method=1, stream=0), "stream 0"),
        (PREFACE + hello(chunk=5), "chunk"),
        (PREFACE + hello(limits=None), "limits"),
        (PREFACE + frame(HELLO, b"\x91" * 30000), "hello"),
        (PREFACE + frame(HELLO, b"\xdf\xff\xff\xff\xff"), "hello"),
        (PREFACE + frame(HELLO, b""), "hello"),
    ],
)
async def test_broken_stream_is_closed_and_logged(
    serving: Serving, caplog: pytest.LogCaptureFixture, threads: int, data: bytes, reason: str
) -> None:
    async with serving(Bench(), receive_threads=threads) as (server, address), await RawPeer.connect(address) as peer:
        peer.send(data)
        await peer.closed()
        await peer.close()
        await until(lambda: server.stats().connections == 0)
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert any(reason in text for text in warnings), warnings
        await alive(address)


async def test_more_chunk_than_was_announced_is_closed(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Bench()) as (_, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(REQUEST, [[1]], bytes(MIB), method=1, stream=1, payload_length=MIB + 10))
        peer.send(frame(CHUNK, b"", bytes(20), stream=1))
        await peer.closed()
        assert "chunk" in caplog.text
        await alive(address)


async def test_second_large_payload_before_the_first_ended_is_closed(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Bench()) as (_, address), await RawPeer.greeted(address) as peer:
        for stream in (1, 2):
            peer.send(frame(REQUEST, [[1]], bytes(MIB), method=1, stream=stream, payload_length=2 * MIB))
        await peer.closed()
        assert "a payload where none may be" in caplog.text
        await alive(address)


@pytest.mark.parametrize("cut", [1, 12, 24, 30, 24 + 20 + 100, 24 + 20 + 50_000])
async def test_truncated_frame(serving: Serving, caplog: pytest.LogCaptureFixture, threads: int, cut: int) -> None:
    async with serving(Bench(), receive_threads=threads) as (server, address):
        peer = await RawPeer.greeted(address)
        reference = msgspec.msgpack.Ext(1, bytes(8) + (100_000).to_bytes(8, "little"))
        whole = frame(REQUEST, [[reference]], bytes(100_000), method=peer.methods["Bench.echo"], stream=1)
        peer.send(whole[:cut])
        await peer.close()
        await until(lambda: server.stats().connections == 0)
        assert "in the middle of a frame" in caplog.text
        await alive(address)


async def test_reset_in_the_middle_of_a_payload(serving: Serving, threads: int) -> None:
    async with serving(Bench(), receive_threads=threads) as (server, address):
        peer = await RawPeer.greeted(address)
        peer.send(frame(REQUEST, [[1]], bytes(300_000), method=1, stream=1, payload_length=900_000))
        await until(lambda: server.stats().leases == 1)
        peer.abort()
        await until(lambda: server.stats().connections == 0)
        assert server.stats().leases == 0
        await alive(address)


# ---- an error frame, and the stream goes on


async def refused(peer: RawPeer, stream: int = 1) -> tuple[Status, str]:
    answer = await peer.frame()
    assert (answer.kind, answer.stream) == (ERROR, stream)
    return Status(answer.method), answer.header[0]


async def still_good(peer: RawPeer) -> None:
    peer.call("Bench.add", 20, 22, stream=77)
    answer = await peer.frame()
    assert (answer.kind, answer.stream, answer.header) == (RESPONSE, 77, [42])


@pytest.mark.parametrize("method", [0, 999, 65535])
async def test_unknown_method(serving: Serving, method: int) -> None:
    async with serving(Bench()) as (_, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(REQUEST, [[]], method=method, stream=1))
        assert (await refused(peer))[0] == Status.UNIMPLEMENTED
        await still_good(peer)


async def test_unknown_name_is_unimplemented_at_the_client(serving: Serving) -> None:
    async with serving(Bench()) as (_, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.Unimplemented, match=r"Bench\.nothing"):
            await client.call("Bench.nothing")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"", "misses 'a'"),
        ([[]], "misses 'a'"),
        ([[1]], "misses 'b'"),
        ([[1, 2, 3]], "takes 2"),
        ([["1", 2]], "'a'"),
        ([[1, 2.5]], "'b'"),
        ([[1], {"c": 2}], "'c'"),
        ([[1], {"a": 2}], "'a' twice"),
        ([[1], {2: 2}], "no parameter"),
        ([[1, 2], [3]], "keywords"),
        ([1, 2], "header of a request"),
        ({}, "header of a request"),
        (None, "header of a request"),
        ([], "header of a request"),
        (b"\xc1", "invalid"),
        (b"\x92", "truncated"),
        (b"\x91\x92\x01\x02\x00", "trailing"),
        (b"\x91\x92\x01\xa1\xff", "utf-8"),
        (b"\x91" * 60_000, "."),
        (b"\x81\x01" * 30_000, "."),
        (b"\x91\xdd\xff\xff\xff\xff", "truncated"),
        (b"\x91\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x91\xc6\xff\xff\xff\xff", "truncated"),
        (b"\xdc\xff\xff" * 900, "truncated"),
        ([[msgspec.msgpack.Ext(1, bytes(16)), msgspec.msgpack.Ext(1, bytes(8) + b"\x01" + bytes(7))]], "buffer"),
        ([[msgspec.msgpack.Ext(2, b"\xff" * 16), 1]], "buffer"),
        ([[msgspec.msgpack.Ext(1, b"x"), 1]], "extension"),
        ([[msgspec.msgpack.Ext(99, bytes(16)), 1]], "extension"),
    ],
)
async def test_bad_arguments_and_bombs(
    serving: Serving, caplog: pytest.LogCaptureFixture, header: Any, says: str
) -> None:
    caplog.set_level("DEBUG", "zcrpc.server")
    async with serving(Bench()) as (server, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(REQUEST, header, method=peer.methods["Bench.add"], stream=1))
        status, message = await refused(peer)
        assert status == Status.INVALID_ARGUMENT
        assert says == "." or says in message
        assert "Bench.add()" in message
        assert f"INVALID_ARGUMENT: {message}" in caplog.text
        assert server.stats().errors == 1
        await still_good(peer)


@pytest.mark.parametrize("length", [MIB + 1, 5 * MIB + 17])
async def test_payload_over_the_limit_leaves_the_stream_intact(serving: Serving, threads: int, length: int) -> None:
    async with (
        serving(Bench(), receive_threads=threads, max_message=MIB) as (server, address),
        await RawPeer.greeted(address) as peer,
    ):
        peer.send(frame(REQUEST, [[1]], bytes(MIB), method=1, stream=1, payload_length=length))
        status, message = await refused(peer)
        assert status == Status.RESOURCE_EXHAUSTED
        assert str(MIB) in message
        for begin in range(MIB, length, MIB):
            peer.send(frame(CHUNK, b"", bytes(min(MIB, length - begin)), stream=1))
        await still_good(peer)
        assert server.stats().payload_bytes_copied == 0
        assert server.stats().arena_bytes == 0


async def test_small_payload_over_a_small_limit(serving: Serving) -> None:
    async with (
        serving(Bench(), max_message=1000, place_from=500) as (_, address),
        await RawPeer.greeted(address) as peer,
    ):
        peer.send(frame(REQUEST, [[1]], bytes(1001), method=1, stream=1))
        assert (await refused(peer))[0] == Status.RESOURCE_EXHAUSTED
        await still_good(peer)


async def test_what_is_only_claimed_is_not_allocated(serving: Serving, threads: int) -> None:
    async with serving(Bench(), receive_threads=threads) as (server, address):
        before = rss()
        peers = [await RawPeer.greeted(address) for _ in range(4)]
        peers[0].send(frame(REQUEST, [[1]], b"x", method=1, stream=1, payload_length=(1 << 63) - 1))
        assert (await refused(peers[0]))[0] == Status.RESOURCE_EXHAUSTED
        for peer in peers[1:]:
            peer.send(frame(REQUEST, [[1]], b"x", method=1, stream=1, payload_length=200 * MIB))
        await until(lambda: server.stats().leases == 3)
        await asyncio.sleep(0.05)
        assert rss() - before < 16 * MIB
        await alive(address)
        for peer in peers:
            await peer.close()
        await until(lambda: server.stats().leases == 0)


async def test_stream_in_use_closes_the_connection(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    service = Bench()
    async with serving(service) as (_, address), await RawPeer.greeted(address) as peer:
        peer.call("Bench.wait", stream=5)
        peer.call("Bench.add", 1, 2, stream=5)
        frames = await peer.closed()
        assert [each.kind for each in frames] == [GOAWAY]
        assert "in use" in caplog.text
        await until(lambda: service.cancelled == 1)


async def test_frames_that_answer_nothing_are_ignored(serving: Serving) -> None:
    async with serving(Bench()) as (server, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(RESPONSE, [1], stream=9) + frame(ERROR, ["x"], stream=9, method=3) + frame(CANCEL, stream=9))
        peer.send(frame(PONG, b"abc") + frame(GOAWAY, b"\xc1", method=77))
        peer.send(frame(RESPONSE, [1], bytes(100_000), stream=9))
        await still_good(peer)
        assert server.stats().connections == 1


async def test_ping_is_answered_with_the_same(serving: Serving) -> None:
    async with serving(Bench()) as (_, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(PING, b"p" * 64))
        peer.writer.write(b"")
        async with asyncio.timeout(5):
            head = await peer.reader.readexactly(24)
            assert head[0] == PONG
            assert await peer.reader.readexactly(64) == b"p" * 64


# ---- peers that stop


async def test_peer_that_stops_half_way_is_dropped(
    serving: Serving, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    async with serving(Bench(), receive_threads=threads, stall_timeout=0.3) as (server, address):
        halves = [
            frame(REQUEST, [[1, 2]], method=1, stream=1)[:20],
            frame(REQUEST, [[1, 2]], method=1, stream=1)[:26],
            frame(REQUEST, [[1]], bytes(100), method=1, stream=1, payload_length=200),
            frame(REQUEST, [[1]], bytes(100_000), method=1, stream=1, payload_length=500_000),
            frame(REQUEST, [[1]], bytes(MIB), method=1, stream=1, payload_length=5 * MIB),
        ]
        peers = [await RawPeer.greeted(address) for _ in halves]
        async with zcrpc.connect(address) as client:
            for peer, half in zip(peers, halves, strict=True):
                peer.send(half)
            for peer in peers:
                assert await peer.closed(timeout=5) == []
                await peer.close()
            await until(lambda: server.stats().connections == 1)
            assert caplog.text.count("stopped in the middle of a frame") == len(halves)
            assert await client.call("Bench.add", 1, 2) == 3  # whoever is only idle is not dropped


async def test_peer_without_hello_is_dropped(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Bench(), hello_timeout=0.1) as (server, address):
        for data in (b"", PREFACE[:3], PREFACE, PREFACE + hello()[:30]):
            async with await RawPeer.connect(address) as peer:
                peer.send(data)
                await peer.closed()
        await until(lambda: server.stats().connections == 0)
        assert caplog.text.count("no hello within 0.1 s") == 4
        assert server.stats().timed_out == 4
        await alive(address)


async def test_peer_that_does_not_read_costs_bounded_memory_and_is_dropped(
    serving: Serving, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    limit, reply, count = 256 * 1024, 500, 200_000
    async with serving(Bench(), receive_threads=threads, max_unread=limit, stall_timeout=0.5) as (server, address):
        async with await RawPeer.greeted(address, receive_buffer=4096) as peer:
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
            request = frame(REQUEST, [[reply]], method=peer.methods["Bench.text"], stream=1)
            peer.send(request * count)
            most = 0
            async with asyncio.timeout(20):
                while server.stats().connections:
                    most = max(most, server.stats().outbound_bytes)
                    await asyncio.sleep(0.001)
            assert "does not read" in caplog.text
            # What came in at once is answered, even if that is beyond the limit: two receives of 64 KiB at most, in
            # each of the batches that are on their way.
            assert limit < most < limit + (4 if threads else 1) * 2 * 65536 / len(request) * (reply + 60)
            assert server.requests < count
        await alive(address)


async def test_peer_that_does_not_read_large_results_is_not_served_more(
    serving: Serving, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    size, count = 8 * MIB, 100
    async with serving(Bench(), receive_threads=threads, max_unsent=20 * MIB, stall_timeout=0.5) as (server, address):
        async with await RawPeer.greeted(address, receive_buffer=4096) as peer:
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
            before, most = rss(), 0
            for stream in range(1, count):
                peer.call("Bench.size", size, stream=stream)
            async with asyncio.timeout(20):
                while server.stats().connections:
                    most = max(most, rss())
                    await asyncio.sleep(0.001)
            assert "does not read" in caplog.text
            assert most - before < 60 * MIB
        await alive(address)


async def test_calls_that_were_put_off_are_served_when_the_peer_reads(serving: Serving) -> None:
    async with serving(Bench(), max_unsent=1, max_in_flight=10) as (server, address):
        await alive(address)
        async with await RawPeer.greeted(address, receive_buffer=4096) as peer:
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
            for stream in range(1, 5):
                peer.call("Bench.size", 3 * MIB, stream=stream)
            peer.call("Bench.add", 1, 2, stream=5)
            peer.call("Bench.size", 3 * MIB, stream=6, deadline_ms=50)
            peer.call("Bench.size", 3 * MIB, stream=7)
            peer.send(frame(CANCEL, stream=7))
            for stream in range(8, 16):
                peer.call("Bench.add", 1, 2, stream=stream)
            await until(lambda: server.stats().requests == 16)
            await asyncio.sleep(0.1)
            peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
            answers = {}
            for _ in range(14):
                answer = await peer.frame(timeout=20)
                answers[answer.stream] = answer
            assert [len(answers[stream].payload) for stream in range(1, 5)] == [3 * MIB] * 4
            assert answers[5].header == [3]
            assert (answers[6].kind, answers[6].method) == (ERROR, Status.DEADLINE_EXCEEDED)
            assert 7 not in answers
            kinds = [answers[stream].kind for stream in range(8, 16)]
            assert kinds == [RESPONSE] * 5 + [ERROR] * 3  # ten in flight, of which one was cancelled
            assert {answers[stream].method for stream in range(13, 16)} == {Status.RESOURCE_EXHAUSTED}


# ---- too many


async def test_too_many_connections_are_told_so(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Bench(), max_connections=2) as (server, address):
        first = await zcrpc.connect(address)
        second = await zcrpc.connect(address)
        for _ in range(3):
            with pytest.raises(zcrpc.ResourceExhausted, match="2 connections"):
                await zcrpc.connect(address)
        async with await RawPeer.connect(address) as peer:
            peer.send(PREFACE + hello() + frame(REQUEST, [[1, 2]], method=1, stream=1))
            await peer.read_hello()
            assert (await peer.frame()).kind == GOAWAY
            await peer.closed()
        await until(lambda: server.stats().connections == 2)
        assert server.stats().refused == 4
        assert await first.call("Bench.add", 1, 2) == 3
        await first.close()
        await until(lambda: server.stats().connections == 1)
        await alive(address)
        await second.close()
        assert "refused" in caplog.text


async def test_refused_connections_that_do_not_go_are_closed(serving: Serving) -> None:
    async with serving(Bench(), max_connections=1, hello_timeout=0.2) as (server, address):
        async with zcrpc.connect(address) as client:
            peers = [await RawPeer.connect(address) for _ in range(20)]
            await asyncio.gather(*(peer.closed() for peer in peers))
            await asyncio.gather(*(peer.close() for peer in peers))
            await until(lambda: server.stats().connections == 1)
            assert await client.call("Bench.add", 1, 2) == 3


async def test_too_many_calls_in_flight_are_refused_with_a_status(serving: Serving) -> None:
    service = Bench()
    async with serving(service, max_in_flight=3) as (server, address), await RawPeer.greeted(address) as peer:
        for stream in range(1, 6):
            peer.call("Bench.wait", stream=stream)
        for stream in (4, 5):
            status, message = await refused(peer, stream)
            assert status == Status.RESOURCE_EXHAUSTED
            assert "3 calls are in flight" in message
        assert server.stats().calls == 3
        service.gate.set()
        assert [(await peer.frame()).header for _ in range(3)] == [["waited"]] * 3
        await still_good(peer)


async def test_cancelled_handlers_that_go_on_count_too(serving: Serving) -> None:
    class Stubborn(zcrpc.Service):
        def __init__(self) -> None:
            self.end = asyncio.Event()
            self.began = 0

        @zcrpc.method
        async def stay(self) -> None:
            self.began += 1
            while not self.end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.end.wait()

    service = Stubborn()
    async with serving(service, max_in_flight=2) as (server, address), await RawPeer.greeted(address) as peer:
        for stream in range(1, 20):
            peer.call("Stubborn.stay", stream=stream)
            if stream <= 4:
                await until(lambda stream=stream: service.began == stream)  # type: ignore[misc]
            peer.send(frame(CANCEL, stream=stream))
        await until(lambda: server.stats().requests == 19)
        assert server.stats().calls == 4
        service.end.set()
        await until(lambda: server.stats().calls == 0)


async def test_clients_of_ours_wait_for_their_turn_instead(serving: Serving) -> None:
    service = Bench()
    async with serving(service, max_in_flight=3) as (server, address), zcrpc.connect(address, Bench) as bench:
        calls = [asyncio.ensure_future(bench.wait()) for _ in range(10)]
        await until(lambda: service.began == 3)
        await asyncio.sleep(0.02)
        assert service.began == 3
        late = asyncio.ensure_future(bench.add(1, 2, timeout=0.05))  # type: ignore[call-arg]
        with pytest.raises(zcrpc.DeadlineExceeded):
            await late
        calls[9].cancel()
        service.gate.set()
        assert await asyncio.gather(*calls[:9]) == ["waited"] * 9
        assert server.stats().errors == 0


async def test_more_memory_than_the_budget_waits_and_nothing_fails(serving: Serving, threads: int) -> None:
    class Holder(zcrpc.Service):
        def __init__(self) -> None:
            self.held: list[memoryview] = []

        @zcrpc.method
        async def hold(self, value: memoryview) -> int:
            self.held.append(value)
            return len(self.held)

        @zcrpc.method
        async def drop(self) -> None:
            self.held.clear()

    service = Holder()
    budget = 16 * MIB
    async with serving(service, receive_threads=threads, budget=budget, receive="copy") as (server, address):
        async with zcrpc.connect(address, Holder) as holder, zcrpc.connect(address, Holder) as other:
            data = os.urandom(4 * MIB)
            calls = [asyncio.ensure_future(holder.hold(data)) for _ in range(6)]
            await until(lambda: server.stats().paused == 1)
            assert 2 <= len(service.held) < 6
            assert server.stats().arena_bytes <= budget
            while not all(call.done() for call in calls):
                await other.drop()
                await asyncio.sleep(0.01)
            assert server.stats().errors == 0
            with pytest.raises(zcrpc.ResourceExhausted):
                await holder.hold(bytes(budget + 1))
            await other.drop()


# ---- handlers


async def test_handler_that_raises_fails_its_caller_alone(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Bench()) as (server, address), zcrpc.connect(address, Bench) as bench:
        with pytest.raises(zcrpc.NotFound) as caught:
            await bench.fail("zcrpc")
        assert (caught.value.message, caught.value.details) == ("no such key", {"key": [1]})
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        with pytest.raises(zcrpc.Unknown, match="LookupError: lost"):
            await bench.fail("other")
        assert any(record.name == "zcrpc.server" and record.exc_info for record in caplog.records)
        with pytest.raises(zcrpc.Internal, match="cannot be sent"):
            await bench.unsendable()
        assert await bench.add(1, 2) == 3
        assert server.stats().errors == 3


async def test_connection_that_dies_fails_all_its_calls_at_once(serving: Serving) -> None:
    service = Bench()
    async with serving(service) as (server, address):
        client = await zcrpc.connect(address, retries=None)
        calls = [asyncio.ensure_future(client.call("Bench.wait")) for _ in range(20)]
        large = asyncio.ensure_future(client.call("Bench.echo", bytes(50 * MIB)))
        await until(lambda: service.began == 20)
        for connection in list(server._connections):
            connection.abort()
        begun = asyncio.get_running_loop().time()
        results = await asyncio.gather(*calls, large, return_exceptions=True)
        assert asyncio.get_running_loop().time() - begun < 0.5
        assert all(isinstance(result, zcrpc.Unavailable) for result in results)
        await until(lambda: service.cancelled == 20)
        assert await client.call("Bench.add", 1, 2) == 3  # over another connection
        await client.close()


# ---- a server that misbehaves, and our client


async def misled(behave: Any, **options: Any) -> Any:
    async with RawServer(behave) as address:
        async with zcrpc.connect(address, timeout=2, **options) as client:
            return await client.call("Bench.add", 1, 2, timeout=2)


async def greet(peer: RawPeer) -> None:
    peer.send(PREFACE + hello(methods={"Bench.add": 1}))
    await peer.reader.readexactly(len(PREFACE))
    assert (await peer.frame()).kind == HELLO


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", zcrpc.Unavailable),
        (PREFACE + frame(PING), zcrpc.Unavailable),
        (PREFACE + frame(HELLO, {"chunk": 1}), zcrpc.Unavailable),
        (PREFACE + frame(HELLO, b"\xc1"), zcrpc.Unavailable),
        (b"", zcrpc.Unavailable),
    ],
)
async def test_server_that_is_none(data: bytes, error: type[Exception]) -> None:
    async def behave(peer: RawPeer) -> None:
        peer.send(data)
        await peer.writer.drain()
        await asyncio.sleep(0.01)

    with pytest.raises(error):
        await misled(behave)


async def test_server_that_says_nothing() -> None:
    async def behave(peer: RawPeer) -> None:
        await peer.closed(timeout=5)

    async with RawServer(behave) as address:
        with pytest.raises(zcrpc.DeadlineExceeded, match="no connection within"):
            await zcrpc.connect(address, timeout=0.1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (frame(RESPONSE, b"\xc1", stream=1), zcrpc.Internal),
        (frame(RESPONSE, [], stream=1), zcrpc.Internal),
        (frame(RESPONSE, 5, stream=1), zcrpc.Internal),
        (frame(RESPONSE, b"\x91" * 60_000, stream=1), zcrpc.Internal),
        (frame(RESPONSE, [msgspec.msgpack.Ext(1, b"\xff" * 16)], b"x", stream=1), zcrpc.Internal),
        (frame(RESPONSE, [1], bytes(2000), stream=1, payload_length=1 << 40), zcrpc.ResourceExhausted),
        (frame(ERROR, b"\xc1", stream=1, method=5), zcrpc.NotFound),
        (frame(ERROR, [7, 8], stream=1, method=5), zcrpc.NotFound),
        (frame(ERROR, b"", stream=1, method=500), zcrpc.Unknown),
        (frame(ERROR, ["ok?"], stream=1, method=0), zcrpc.Unknown),
        (frame(200), zcrpc.Unavailable),
        (frame(RESPONSE, stream=1, header_length=1 << 31), zcrpc.Unavailable),
        (frame(RESPONSE, [3], stream=1)[:-1], zcrpc.Unavailable),
        (frame(RESPONSE, [9], stream=2) + frame(REQUEST, [[]], stream=1), zcrpc.Unavailable),
    ],
)
async def test_nonsense_for_an_answer(answer: bytes, error: type[Exception]) -> None:
    async def behave(peer: RawPeer) -> None:
        await greet(peer)
        assert (await peer.frame()).kind == REQUEST
        peer.send(answer)
        await peer.writer.drain()

    with pytest.raises(error):
        await misled(behave)


async def test_nonsense_between_answers_does_not_matter() -> None:
    async def behave(peer: RawPeer) -> None:
        await greet(peer)
        request = await peer.frame()
        peer.send(
            frame(RESPONSE, [9], stream=99) + frame(ERROR, b"", stream=98) + frame(PONG, b"?") + frame(CANCEL, stream=4)
        )
        peer.send(frame(REQUEST, [[]], method=1, stream=3))
        peer.send(frame(RESPONSE, [3], stream=request.stream))
        refusal = await peer.frame()
        assert (refusal.kind, refusal.method) == (ERROR, Status.UNIMPLEMENTED)
        await peer.closed()

    assert await misled(behave) == 3


async def test_server_that_drops_the_connection_fails_pending_calls_at_once() -> None:
    async def behave(peer: RawPeer) -> None:
        await greet(peer)
        for _ in range(10):
            await peer.frame()
        peer.abort()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        calls = [client.call("Bench.add", n, n) for n in range(10)]
        begun = asyncio.get_running_loop().time()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert asyncio.get_running_loop().time() - begun < 1
        assert all(isinstance(result, zcrpc.Unavailable) for result in results)


def test_nothing_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

    async def main() -> None:
        with pytest.raises(zcrpc.Unavailable, match="refused"):
            await zcrpc.connect(f"tcp://127.0.0.1:{port}")
        with pytest.raises(zcrpc.Unavailable):
            await zcrpc.connect("unix:///nowhere/at/all.sock")

    asyncio.run(main())
