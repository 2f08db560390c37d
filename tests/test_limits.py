"""Limits of a server: what is over them is refused at once, with a status, and counted."""

import asyncio
from typing import Any

import pytest
from conftest import Serving, Waits, until
from raw_peer import CANCEL, ERROR, HEAD, RESPONSE, RawPeer, frame

import zcrpc
from zcrpc.errors import Status

MIB = 1 << 20


class Work(Waits):
    @zcrpc.method
    async def add(self, a: int, b: int) -> int:
        return a + b

    @zcrpc.method
    def plain(self, a: int) -> int:
        return a

    @zcrpc.method
    async def big(self) -> bytes:
        return bytes(8 * MIB)


async def test_calls_in_all_connections(serving: Serving) -> None:
    service = Work()
    async with serving(service, max_calls=3) as (server, address):
        clients = [await zcrpc.connect(address, Work) for _ in range(4)]
        waiting = [asyncio.ensure_future(work.wait()) for work in clients[:3]]
        await until(lambda: server.stats().calls == 3)
        for work in clients:  # also one of whose connection nothing is in flight
            with pytest.raises(zcrpc.ResourceExhausted, match="3 calls are in flight, the server's limit"):
                await work.wait()
            with pytest.raises(zcrpc.ResourceExhausted):
                await work.add(1, 2)
        assert {name: count for name, count in server.stats().exhausted.items() if count} == {"calls": 8}
        assert service.began == 3
        service.gate.set()
        assert await asyncio.gather(*waiting) == ["waited"] * 3
        assert await clients[3].add(1, 2) == 3
        for work in clients:
            await work.close()  # type: ignore[attr-defined]


async def test_cancelled_calls_make_room(serving: Serving) -> None:
    service = Work()
    async with serving(service, max_calls=1) as (_, address), zcrpc.connect(address, Work) as work:
        for _ in range(3):
            with pytest.raises(zcrpc.DeadlineExceeded):
                await work.wait(timeout=0.02)  # type: ignore[call-arg]
            await until(lambda: service.cancelled == service.began)
        assert await work.plain(5) == 5


async def test_calls_of_one_connection_and_large_messages_are_counted(serving: Serving) -> None:
    service = Work()
    async with serving(service, max_in_flight=2, max_message=1000) as (server, address):
        async with await RawPeer.greeted(address) as peer:
            for stream in (1, 2, 3):
                peer.call("Work.wait", stream=stream)
            answer = await peer.frame()
            assert (answer.kind, answer.stream, answer.method) == (ERROR, 3, Status.RESOURCE_EXHAUSTED)
            peer.call("Work.plain", stream=9, payload=bytes(1001))
            answer = await peer.frame()
            assert (answer.kind, answer.stream, answer.method) == (ERROR, 9, Status.RESOURCE_EXHAUSTED)
            assert server.stats().exhausted["in_flight"] == 1
            assert server.stats().exhausted["message"] == 1
            service.gate.set()
            assert [(await peer.frame()).kind for _ in range(2)] == [RESPONSE] * 2


@pytest.mark.parametrize("then", ["take", "cancel", "leave"])
async def test_calls_that_wait_to_be_begun(serving: Serving, then: str) -> None:
    """A peer that does not take its results: its calls are put off, and no more than max_queued of them."""
    async with serving(Work(), max_unsent=1, max_queued=2) as (server, address):
        peer = await RawPeer.greeted(address, receive_buffer=4096)
        reading = peer.reader._transport  # type: ignore[attr-defined]
        reading.pause_reading()
        peer.call("Work.big", stream=1)
        for stream in range(2, 6):
            peer.call("Work.plain", stream, stream=stream)
        await until(lambda: server.stats().exhausted["queued"] == 2)
        assert server.stats().queued == 2
        async with zcrpc.connect(address, Work) as other:
            assert await other.plain(7) == 7
        if then == "cancel":
            peer.send(frame(CANCEL, stream=2) + frame(CANCEL, stream=3) + frame(CANCEL, stream=99))
            await until(lambda: server.stats().queued == 0)
        if then == "leave":
            peer.abort()
            await until(lambda: server.stats().connections == 0)
        else:
            reading.resume_reading()
            ends = {(4, ERROR), (5, ERROR)}
            if then == "take":
                ends |= {(2, RESPONSE), (3, RESPONSE)}
            assert await small_answers(peer, len(ends)) == ends
            await peer.close()
        assert server.stats().queued == 0


async def small_answers(peer: RawPeer, count: int) -> set[tuple[int, int]]:
    """Streams and kinds of the next answers without payload; others, and their chunks, are read and dropped."""
    found: set[tuple[int, int]] = set()
    async with asyncio.timeout(20):
        while len(found) < count:
            kind, _, _, stream, header_length, _, length = HEAD.unpack(await peer.reader.readexactly(HEAD.size))
            await peer.reader.readexactly(header_length + min(length, MIB))
            if not length:
                found.add((stream, kind))
    return found


async def test_queued_calls_find_the_server_full(serving: Serving) -> None:
    service = Work()
    async with serving(service, max_unsent=1, max_calls=1) as (server, address):
        async with await RawPeer.greeted(address, receive_buffer=4096) as peer:
            reading = peer.reader._transport  # type: ignore[attr-defined]
            reading.pause_reading()
            peer.call("Work.big", stream=1)
            for stream in (2, 3):
                peer.call("Work.plain", stream, stream=stream)
            await until(lambda: server.stats().queued == 2)
            async with zcrpc.connect(address, Work) as other:
                waiting = asyncio.ensure_future(other.wait())
                await until(lambda: service.began)
                reading.resume_reading()
                frames = [await peer.frame(timeout=20) for _ in range(3)]
                assert [(each.stream, each.kind) for each in frames] == [(1, RESPONSE), (2, ERROR), (3, ERROR)]
                assert server.stats().exhausted["calls"] == 2
                service.gate.set()
                await waiting


async def test_calls_that_take_too_long_are_answered_in_time(serving: Serving) -> None:
    """To a peer that does not look at the clock itself."""
    async with serving(Work()) as (server, address), await RawPeer.greeted(address) as peer:
        peer.call("Work.wait", stream=1, deadline_ms=20)
        answer = await peer.frame()
        assert (answer.kind, answer.method) == (ERROR, Status.DEADLINE_EXCEEDED)
        assert server.stats().expired == 1


async def test_calls_that_waited_too_long_are_not_begun(serving: Serving) -> None:
    async with serving(Work(), max_unsent=1) as (server, address):
        async with await RawPeer.greeted(address, receive_buffer=4096) as peer:
            reading = peer.reader._transport  # type: ignore[attr-defined]
            reading.pause_reading()
            peer.call("Work.big", stream=1)
            peer.call("Work.plain", 2, stream=2, deadline_ms=20)
            peer.call("Work.plain", 3, stream=3)
            await until(lambda: server.stats().queued == 2)
            await asyncio.sleep(0.05)
            reading.resume_reading()
            frames = {each.stream: each for each in [await peer.frame(timeout=20) for _ in range(3)]}
            assert (frames[2].kind, frames[2].method) == (ERROR, Status.DEADLINE_EXCEEDED)
            assert frames[2].header == ["the deadline passed before the call was begun"]
            assert frames[3].kind == RESPONSE
            assert server.stats().expired == 1


@pytest.mark.parametrize("name", ["max_calls", "max_queued", "max_in_flight", "max_connections"])
def test_limits_are_at_least_one(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
        zcrpc.Server(Work(), **options)


def test_metadata_limit_is_not_negative() -> None:
    with pytest.raises(ValueError, match="max_metadata=-1"):
        zcrpc.Server(Work(), max_metadata=-1)
    with pytest.raises(ValueError, match="max_metadata=-1"):
        zcrpc.connect("tcp://127.0.0.1:1", max_metadata=-1)
