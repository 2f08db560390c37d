import asyncio
import gc
import os
import sys
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
from conftest import Serving, Waits, until
from raw_peer import CANCEL, GOAWAY, HELLO, PING, PONG, PREFACE, REQUEST, RESPONSE, RawPeer, RawServer, frame, hello

import zcrpc
from zcrpc import client as client_module
from zcrpc import pool as pools


class Point(msgspec.Struct):
    x: int
    data: memoryview | None = None


class Store(Waits):
    """Keeps values."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, bytes] = {}

    @zcrpc.method
    async def put(self, key: str, value: bytes) -> int:
        """Keeps a value; returns how many there are."""
        self.values[key] = value
        return len(self.values)

    @zcrpc.method
    async def get(self, key: str) -> memoryview:
        return memoryview(self.values[key])

    @zcrpc.method
    async def get_bytes(self, key: str, *, twice: bool = False) -> bytes:
        return self.values[key] * (1 + twice)

    @zcrpc.method
    async def point(self, x: int) -> Point:
        return Point(x, memoryview(b"d" * 1000))

    @zcrpc.method
    async def lie(self) -> int:
        return "not a number"  # type: ignore[return-value]

    @zcrpc.method
    async def anything(self, value: Any) -> Any:
        return value


async def test_typed_and_untyped(serving: Serving) -> None:
    async with serving(Store()) as (_, address):
        async with zcrpc.connect(address, Store) as store:
            assert await store.put("k", b"v") == 1
            assert await store.put(key="k", value=b"v" * 100_000) == 1
            assert await store.get_bytes("k", twice=True) == b"v" * 200_000
            assert (await store.get("k")) == b"v" * 100_000
        async with zcrpc.connect(address) as client:
            assert await client.call("Store.put", "k", b"w", timeout=2) == 1
            assert await client.call("Store.get_bytes", "k", twice=True) == b"ww"
            assert "Store.put" in client.methods
            assert await client.use(Store).put("l", b"") == 2


async def test_connect_can_be_awaited(serving: Serving) -> None:
    async with serving(Store()) as (server, address):
        client = await zcrpc.connect(address)
        assert await client.call("Store.put", "k", b"") == 1
        await client.close()
        await client.close()
        store = await zcrpc.connect(address, Store)
        assert await store.put("l", b"") == 2
        await store.close()  # type: ignore[attr-defined]
        with pytest.raises(zcrpc.Unavailable, match="client was closed"):
            await client.call("Store.put", "k", b"")
        await until(lambda: server.stats().connections == 0)


async def test_proxy_looks_like_the_service() -> None:
    kind = client_module._proxy_class(Store)
    assert kind.__name__ == "Store"
    assert kind.__doc__ == "Keeps values."
    assert kind.put.__doc__ == "Keeps a value; returns how many there are."  # type: ignore[attr-defined]
    assert client_module._proxy_class(Store) is kind
    assert not hasattr(kind, "gate")


async def test_names_of_a_service_go_before_those_of_the_client(serving: Serving) -> None:
    class Door(zcrpc.Service):
        @zcrpc.method
        def close(self) -> str:
            return "door closed"

    async with serving(Door()) as (_, address), zcrpc.connect(address, Door) as door:
        assert await door.close() == "door closed"  # type: ignore[misc]
        assert await door.client.ping() > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 100, 1000, 40_000, 3_000_000])
async def test_results_arrive_as_annotated(serving: Serving, size: int) -> None:
    data = os.urandom(size)
    async with serving(Store()) as (_, address), zcrpc.connect(address, Store) as store:
        await store.put("k", data)
        view, copy = await store.get("k"), await store.get_bytes("k")
        assert (type(view), type(copy)) == (memoryview, bytes)
        assert view == copy == data
        assert view.readonly
        client = store.client  # type: ignore[attr-defined]
        assert type(await client.call("Store.get", "k")) is memoryview
        assert type(await client.call("Store.get_bytes", "k")) is bytes
        assert type(await client.call("Store.get", "k", returns=bytes)) is bytes
        assert type(await client.call("Store.get_bytes", "k", returns=memoryview)) is memoryview
        assert await client.call("Store.get_bytes", "k", returns=memoryview) == data


async def test_results_are_converted_and_checked(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address, Store) as store:
        assert await store.point(3) == Point(3, memoryview(b"d" * 1000))
        client = store.client  # type: ignore[attr-defined]
        assert await client.call("Store.point", 3) == {"x": 3, "data": memoryview(b"d" * 1000)}
        assert await client.call("Store.point", 3, returns=Point) == Point(3, memoryview(b"d" * 1000))
        assert await client.call("Store.anything", [1, 2], returns=set[int]) == {1, 2}
        with pytest.raises(zcrpc.Internal, match="Expected `int`"):
            await store.lie()
        with pytest.raises(zcrpc.Internal, match="not as announced"):
            await client.call("Store.point", 3, returns=list[int])
        with pytest.raises(zcrpc.Internal, match="Expected `ndarray`, got `dict`"):
            await client.call("Store.point", 3, returns=np.ndarray)
        with pytest.raises(TypeError, match="complex"):
            await client.call("Store.point", 3, returns=complex)


async def test_arrays_and_nested_buffers(serving: Serving) -> None:
    array = np.arange(100_000, dtype="<f8")
    async with serving(Store()) as (_, address), zcrpc.connect(address) as client:
        back = await client.call("Store.anything", {"a": array, "b": [b"x" * 5000, {"c": bytearray(70_000)}], "n": 1})
        assert np.array_equal(np.frombuffer(back["a"], "<f8"), array)
        assert back["b"] == [b"x" * 5000, {"c": memoryview(bytes(70_000))}]
        assert np.frombuffer(back["a"], "<f8").flags.aligned


async def test_what_cannot_be_sent_fails_the_call_alone(serving: Serving) -> None:
    async with serving(Store()) as (server, address), zcrpc.connect(address, Store) as store:
        with pytest.raises(TypeError, match="object"):
            await store.anything(object())
        with pytest.raises(ValueError, match=r"."):
            await store.anything(1 << 70)
        with pytest.raises(zcrpc.ResourceExhausted, match="besides buffers"):
            await store.anything("x" * 70_000)
        assert await store.anything(1) == 1
        assert server.stats().requests == 1


async def test_request_over_the_servers_limit_is_not_sent(serving: Serving) -> None:
    async with serving(Store(), max_message=1000) as (server, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.ResourceExhausted, match="1001 bytes"):
            await client.call("Store.anything", bytes(1001))
        assert len(await client.call("Store.anything", bytes(1000))) == 1000
        assert server.stats().requests == 1


def test_options_that_make_no_sense() -> None:
    for options in (
        {"receive": "magic"},
        {"max_header": 10},
        {"place_from": 0},
        {"max_message": 0},
        {"stall_timeout": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            zcrpc.connect("tcp://127.0.0.1:1", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected tcp"):
        zcrpc.connect("nowhere")
    with pytest.raises(TypeError, match="belongs to the caller"):

        class Odd(zcrpc.Service):
            @zcrpc.method
            def wait(self, timeout: float) -> None: ...

        zcrpc.connect("tcp://127.0.0.1:1", Odd)


# ---- deadlines and cancelling


async def test_timeout(serving: Serving) -> None:
    service = Store()
    async with serving(service) as (server, address), zcrpc.connect(address, Store) as store:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(zcrpc.DeadlineExceeded):
            await store.wait(timeout=0.05)  # type: ignore[call-arg]
        assert 0.05 <= asyncio.get_running_loop().time() - begun < 0.5
        await until(lambda: service.cancelled == 1)
        with pytest.raises(zcrpc.DeadlineExceeded):
            await store.wait(timeout=0)  # type: ignore[call-arg]
        with pytest.raises(zcrpc.DeadlineExceeded):
            await store.wait(timeout=-1)  # type: ignore[call-arg]
        assert await store.put("k", b"", timeout=1e9) == 1  # type: ignore[call-arg]
        assert service.began == 1
        assert server.stats().calls == 0


async def test_thousand_timeouts(serving: Serving) -> None:
    service = Store()
    async with serving(service) as (_, address), zcrpc.connect(address, Store) as store:
        calls = [store.wait(timeout=0.02 + n / 20_000) for n in range(1000)]  # type: ignore[call-arg]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, zcrpc.DeadlineExceeded) for result in results)
        await until(lambda: service.cancelled == service.began)


async def test_cancelling_the_task_cancels_the_handler(serving: Serving) -> None:
    service = Store()
    async with serving(service) as (server, address), zcrpc.connect(address, Store) as store:
        task = asyncio.ensure_future(store.wait())
        await until(lambda: service.began == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: service.cancelled == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await store.wait()
        await until(lambda: service.cancelled == 2)
        assert await store.put("k", b"") == 1
        assert server.stats().errors == 0


async def test_cancel_follows_a_request_that_is_still_being_sent() -> None:
    seen: list[int] = []

    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello(methods={"Store.put": 1}))
        await peer.reader.readexactly(len(PREFACE))
        while True:
            seen.append((await peer.frame(timeout=20)).kind)
            if seen[-1] == REQUEST:
                continue
            if seen[-1] == CANCEL:
                return

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        task = asyncio.ensure_future(client.call("Store.put", bytes(30 << 20)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: CANCEL in seen, timeout=20)
        assert seen == [HELLO, REQUEST, CANCEL]


async def test_late_answers_are_ignored() -> None:
    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello(methods={"Store.wait": 1}))
        await peer.reader.readexactly(len(PREFACE))
        await peer.frame()
        first = await peer.frame()
        assert first.kind == REQUEST
        assert (await peer.frame()).kind == CANCEL
        peer.send(frame(RESPONSE, ["late"], bytes(100_000), stream=first.stream))
        second = await peer.frame()
        assert second.stream != first.stream
        peer.send(frame(RESPONSE, ["in time"], stream=second.stream))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.DeadlineExceeded):
            await client.call("Store.wait", timeout=0.02)
        assert await client.call("Store.wait", timeout=5) == "in time"
        assert client.stats().leases == 0


async def test_deadline_travels_as_time_left() -> None:
    left: list[int] = []

    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello(methods={"Store.wait": 1}))
        await peer.reader.readexactly(len(PREFACE))
        await peer.frame()
        for _ in range(2):
            head = await peer.reader.readexactly(24)
            left.append(int.from_bytes(head[12:16], "little"))
            peer.send(frame(RESPONSE, stream=int.from_bytes(head[4:8], "little")))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        await client.call("Store.wait", timeout=2.5)
        await client.call("Store.wait")
    assert 2000 < left[0] <= 2500
    assert left[1] == 0


async def test_stream_numbers_begin_again_and_skip_those_in_use(serving: Serving) -> None:
    service = Store()
    async with serving(service) as (_, address), zcrpc.connect(address) as client:
        waiting = asyncio.ensure_future(client.call("Store.wait"))
        await until(lambda: service.began == 1)
        client._connection.last_stream = (1 << 32) - 3
        for n in range(5):
            assert await client.call("Store.anything", n) == n
        assert client._connection.last_stream < 10
        service.gate.set()
        assert await waiting == "waited"


# ---- the connection


async def test_ping_and_stats(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address, receive="copy") as client:
        assert 0 < await client.ping(timeout=2) < 2
        assert len(await client.call("Store.anything", bytes(100_000))) == 100_000
        with pytest.raises(zcrpc.InvalidArgument):
            await client.call("Store.put", 1)
        stats = client.stats()
        assert (stats.requests, stats.errors, stats.calls, stats.connections) == (2, 1, 0, 1)
        assert stats.payload_bytes_copied == 100_000
    assert client.stats().requests == 2


async def test_ping_without_pong() -> None:
    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello())
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.DeadlineExceeded):
            await client.ping(timeout=0.02)


async def test_client_answers_pings() -> None:
    answers: list[Any] = []

    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello() + frame(PING, b"\xa3abc"))
        await peer.reader.readexactly(len(PREFACE))
        answers.append((await peer.frame()).kind)
        answers.append(await peer.frame())

    async with RawServer(behave) as address, zcrpc.connect(address):
        await until(lambda: len(answers) == 2)
    assert answers[0] == HELLO
    assert (answers[1].kind, answers[1].header) == (PONG, "abc")


async def test_goaway_ends_new_calls_and_lets_old_ones_finish() -> None:
    gone = asyncio.Event()
    others: list[Any] = []

    async def behave(peer: RawPeer) -> None:
        others.append(peer)
        if len(others) > 1:
            peer.send(PREFACE + hello(methods={"Store.wait": 1}))
            await peer.reader.readexactly(len(PREFACE))
            await peer.frame()
            peer.send(frame(RESPONSE, ["elsewhere"], stream=(await peer.frame()).stream))
            await peer.closed()
            return
        peer.send(PREFACE + hello(methods={"Store.wait": 1}))
        await peer.reader.readexactly(len(PREFACE))
        await peer.frame()
        request = await peer.frame()
        peer.send(frame(GOAWAY, ["maintenance"], method=14))
        await gone.wait()
        peer.send(frame(RESPONSE, ["finished"], stream=request.stream))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        old = asyncio.ensure_future(client.call("Store.wait"))
        await until(lambda: len(others) == 2)
        assert await client.call("Store.wait", timeout=2) == "elsewhere"
        gone.set()
        assert await old == "finished"


async def test_closing_fails_what_is_in_flight(serving: Serving) -> None:
    service = Store()
    async with serving(service) as (_, address):
        client = await zcrpc.connect(address)
        calls = [asyncio.ensure_future(client.call("Store.wait")) for _ in range(3)]
        await until(lambda: service.began == 3)
        await client.close()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, zcrpc.Unavailable)
        await until(lambda: service.cancelled == 3)


async def test_connect_can_be_cancelled(serving: Serving) -> None:
    async def behave(peer: RawPeer) -> None:
        await peer.closed()

    async with RawServer(behave) as address:
        task = asyncio.ensure_future(zcrpc.connect(address).__aenter__())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not pools._pools


async def test_clients_of_a_loop_share_a_reactor(serving: Serving) -> None:
    async with serving(Store()) as (_, address):
        async with zcrpc.connect(address) as one, zcrpc.connect(address) as two:
            async with zcrpc.connect(address, max_message=1 << 20) as other:
                assert one._pool is two._pool
                assert one._pool is not other._pool
                assert len(pools._pools) == 2
                assert await other.call("Store.anything", 1) == 1
            assert len(pools._pools) == 1
            assert await one.call("Store.anything", 1) == 1
    assert not pools._pools


def test_loops_in_several_threads_have_their_own(tmp_path: Any) -> None:
    async def client(address: str, results: list[int]) -> None:
        async with zcrpc.connect(address, Store) as store:
            results.append(sum(await asyncio.gather(*(store.anything(n) for n in range(500)))))

    async def main() -> None:
        server = zcrpc.Server(Store())
        results: list[int] = []
        async with server.listen("tcp://127.0.0.1:0") as address:
            factories = [asyncio.run, uvloop.run, asyncio.run, uvloop.run]
            threads = [threading.Thread(target=each, args=(client(address, results),)) for each in factories]
            for thread in threads:
                thread.start()
            await client(address, results)
            await until(lambda: len(results) == 5)
            for thread in threads:
                await asyncio.to_thread(thread.join)
        assert results == [sum(range(500))] * 5

    asyncio.run(main())
    assert not pools._pools


def test_client_that_was_never_closed_does_not_outlive_its_loop_for_long() -> None:
    async def forgetful() -> None:
        server = zcrpc.Server(Store())
        address = await server.listen("tcp://127.0.0.1:0")
        client = await zcrpc.connect(address)
        assert await client.call("Store.anything", 1) == 1
        await server.close()

    asyncio.run(forgetful())
    assert len(pools._pools) == 1
    gc.collect()

    async def next_one() -> None:
        async with zcrpc.Server(Store()).listen("tcp://127.0.0.1:0") as address, zcrpc.connect(address):
            assert len(pools._pools) == 1

    asyncio.run(next_one())
    assert not pools._pools


async def test_result_views_outlive_the_client(serving: Serving) -> None:
    async with serving(Store()) as (_, address):
        async with zcrpc.connect(address) as client:
            view = await client.call("Store.anything", bytes(range(250)) * 4000, returns=memoryview)
        assert view == bytes(range(250)) * 4000


async def test_buffers_are_let_go_when_they_are_sent(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address) as client:
        data = bytearray(5_000_000)
        before = sys.getrefcount(data)
        assert len(await client.call("Store.anything", data)) == 5_000_000
        await until(lambda: not client._connection.pins)
        gc.collect()
        assert sys.getrefcount(data) == before
        data.append(1)  # BufferError if it were still referenced


async def test_small_buffers_may_change_at_once(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address) as client:
        data = bytearray(b"a" * 10_000)
        call = asyncio.ensure_future(client.call("Store.anything", data))
        await asyncio.sleep(0)
        data[:] = b"b" * 10_000
        assert bytes(await call) == b"a" * 10_000
