import asyncio
import contextvars
import gc
import logging
import os
import select
import socket
import struct
import threading
import weakref
from typing import Any

import pytest
from conftest import Serving, Waits, until
from raw_peer import CANCEL, CHUNK, ERROR, GOAWAY, REQUEST, RESPONSE, UNPROCESSED, RawPeer, frame

import zcrpc
from zcrpc import calibration
from zcrpc.errors import Status

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class Work(Waits):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    @zcrpc.method
    async def add(self, a: int, b: int) -> int:
        return a + b

    @zcrpc.method
    def add_plain(self, a: int, b: int) -> int:
        return a + b

    @zcrpc.method
    async def clean_up(self, seconds: float) -> str:
        self.began += 1
        try:
            await self.gate.wait()
        finally:
            await asyncio.sleep(seconds)
            self.cancelled += 1
        return "done"

    @zcrpc.method
    async def keep(self, value: memoryview) -> int:
        self.kept.append(value)
        return len(self.kept)

    @zcrpc.method
    async def times_out(self) -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(30)
        except TimeoutError:
            return "timed out"
        return "never"

    @zcrpc.method
    async def see(self, value: str, wait: bool) -> tuple[str, bool]:
        before = request_id.get()
        request_id.set(value)
        if wait:
            await asyncio.sleep(0)
        return before, asyncio.current_task() is not None and request_id.get() == value

    @zcrpc.method
    async def cancel_myself(self) -> None:
        raise asyncio.CancelledError


# ---- listening


async def test_port_zero_yields_the_bound_address(serving: Serving) -> None:
    async with serving(Work()) as (_, address):
        assert address.startswith("tcp://127.0.0.1:")
        assert int(address.rsplit(":", 1)[1]) > 0


async def test_listens_on_several_addresses_at_once(tmp_path: Any) -> None:
    server = zcrpc.Server(Work())
    path = tmp_path / "work.sock"
    async with (
        server.listen("tcp://127.0.0.1:0") as first,
        server.listen(f"unix://{path}") as second,
        server.listen("tcp://localhost:0") as third,
    ):
        assert second == f"unix://{path}"
        for address in (first, second, third):
            async with zcrpc.connect(address) as client:
                assert await client.call("Work.add", 1, 2) == 3
    assert not path.exists()
    assert server.stats().connections == 0


async def test_ipv6() -> None:
    server = zcrpc.Server(Work())
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:  # this machine has none: then neither have we
        with pytest.raises(OSError, match=r"."):
            await server.listen("tcp://[::1]:0")
        return
    async with server.listen("tcp://[::1]:0") as address, zcrpc.connect(address) as client:
        assert address.startswith("tcp://[::1]:")
        assert await client.call("Work.add", 1, 2) == 3


async def test_leaving_one_of_two_listeners_closes_nothing_else() -> None:
    server = zcrpc.Server(Work())
    async with server.listen("tcp://127.0.0.1:0") as first:
        async with server.listen("tcp://127.0.0.1:0") as second:
            client = await zcrpc.connect(second)
        assert await client.call("Work.add", 1, 2) == 3
        with pytest.raises(zcrpc.Unavailable):
            await zcrpc.connect(second)
        async with zcrpc.connect(first) as other:
            assert await other.call("Work.add", 1, 2) == 3
        await client.close()


async def test_address_in_use_and_nonsense(tmp_path: Any) -> None:
    server = zcrpc.Server(Work())
    async with server.listen("tcp://127.0.0.1:0") as address:
        with pytest.raises(OSError, match="in use"):
            await server.listen(address)
        for nonsense in (
            "127.0.0.1:80",
            "http://x:1",
            "tcp://",
            "tcp://host",
            "tcp://host:x",
            "tcp://h:1/path",
            "unix://",
            "",
        ):
            with pytest.raises(ValueError, match=r"expected|path|Port|port"):
                server.listen(nonsense)
        path = tmp_path / "s"
        async with zcrpc.Server(Work()).listen(f"unix://{path}"):
            with pytest.raises(OSError, match="in use"):
                await server.listen(f"unix://{path}")
        path.write_text("a file of the user's")
        with pytest.raises(OSError, match="in use"):
            await server.listen(f"unix://{path}")
        assert path.read_text() == "a file of the user's"


async def test_path_left_over_by_a_dead_server_is_taken_over(tmp_path: Any) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with zcrpc.Server(Work()).listen(f"unix://{path}") as address, zcrpc.connect(address) as client:
        assert await client.call("Work.add", 1, 2) == 3


def test_options_that_make_no_sense() -> None:
    for options in (
        {"receive": "magic"},
        {"max_in_flight": 0},
        {"max_connections": 0},
        {"receive_threads": -1},
        {"map_from": 0},
        {"place_from": 0},
        {"place_from": 65537, "map_from": 1 << 20},
        {"max_header": 1000},
        {"max_header": 1 << 18},
        {"max_message": 0},
        {"max_unread": -1},
        {"stall_timeout": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            zcrpc.Server(Work(), **options)  # type: ignore[arg-type]
    with pytest.raises(zcrpc.InvalidArgument, match="no-such-lock"):
        zcrpc.Server(Work(), locks="no-such-lock")


async def test_server_belongs_to_one_loop(serving: Serving) -> None:
    async with serving(Work()) as (server, _):

        async def elsewhere() -> None:
            with pytest.raises(zcrpc.FailedPrecondition):
                await server.listen("tcp://127.0.0.1:0")

        await asyncio.to_thread(asyncio.run, elsewhere())


# ---- dispatch


@pytest.mark.parametrize("locks", zcrpc.locks.names())
async def test_every_strategy_serves(serving: Serving, locks: str) -> None:
    service = Work()
    async with serving(service, locks=locks) as (server, address), zcrpc.connect(address, locks=locks) as client:
        assert await client.call("Work.keep", bytes(100_000)) == 1
        assert server.stats().lock.read_locks > 0
        service.kept.clear()


async def test_sync_and_async_handlers(serving: Serving) -> None:
    async with serving(Work()) as (_, address), zcrpc.connect(address, Work) as work:
        assert await work.add(1, 2) == 3
        assert await work.add_plain(1, 2) == 3  # type: ignore[misc]


async def test_timeouts_context_and_tasks_inside_handlers(serving: Serving) -> None:
    async with serving(Work()) as (_, address), zcrpc.connect(address, Work) as work:
        for _ in range(3):
            assert await work.times_out() == "timed out"
            for wait in (False, True):
                assert await work.see("x", wait) == ("none", True)
        with pytest.raises(zcrpc.Cancelled):
            await work.cancel_myself()
        assert await work.add(1, 2) == 3


async def test_hundreds_of_handlers_wait_at_once(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address), zcrpc.connect(address, Work) as work:
        calls = [asyncio.ensure_future(work.wait()) for _ in range(600)]
        await until(lambda: service.began == 600)
        assert server.stats().calls == 600
        assert await work.add(1, 2) == 3
        service.gate.set()
        assert await asyncio.gather(*calls) == ["waited"] * 600
        assert server.stats().calls == 0


async def test_cancel_frame_cancels_the_handler_and_is_not_answered(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address), await RawPeer.greeted(address) as peer:
        peer.call("Work.wait", stream=1)
        await until(lambda: service.began == 1)
        peer.send(frame(CANCEL, stream=1))
        await until(lambda: service.cancelled == 1 and server.stats().calls == 0)
        peer.call("Work.add", 1, 2, stream=1)  # the number is free again
        assert (await peer.frame()).header == [3]


async def test_deadline_cancels_the_handler_and_is_answered_at_once(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (_, address), await RawPeer.greeted(address) as peer:
        peer.call("Work.clean_up", 0.3, stream=1, deadline_ms=20)
        begun = asyncio.get_running_loop().time()
        answer = await peer.frame()
        assert 0.02 <= asyncio.get_running_loop().time() - begun < 0.25
        assert (answer.kind, answer.method) == (ERROR, Status.DEADLINE_EXCEEDED)
        await until(lambda: service.cancelled == 1)
        peer.call("Work.add", 1, 2, stream=2, deadline_ms=20)
        assert (await peer.frame()).header == [3]
        await asyncio.sleep(0.04)
        peer.call("Work.add", 3, 4, stream=3)
        assert (await peer.frame()).stream == 3  # nothing came in between


async def test_errors_details_that_cannot_be_sent_are_left_out(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(zcrpc.Service):
        @zcrpc.method
        def fail(self, kind: int) -> None:
            raise zcrpc.Aborted(
                ["x" * 100_000, "lone \ud800 surrogate", "m"][kind],
                details=[None, {"buffer": memoryview(b"b" * 1000)}, object()][kind],
            )

    async with serving(Odd()) as (_, address), zcrpc.connect(address, Odd) as odd:
        for kind in range(3):
            with pytest.raises(zcrpc.Aborted) as caught:
                await odd.fail(kind)  # type: ignore[func-returns-value, misc]
            assert len(caught.value.message) <= 2000
            assert caught.value.details == [None, {"buffer": b"b" * 1000}, None][kind]
        assert "details of an error" in caplog.text


async def test_result_that_the_peer_does_not_take_is_an_error(serving: Serving) -> None:
    class Big(zcrpc.Service):
        @zcrpc.method
        def text(self, n: int) -> str:
            return "x" * n

        @zcrpc.method
        def data(self, n: int) -> bytes:
            return bytes(n)

    async with serving(Big()) as (_, address), zcrpc.connect(address, Big, max_message=1 << 20) as big:
        with pytest.raises(zcrpc.ResourceExhausted, match="besides buffers"):
            await big.text(100_000)  # type: ignore[misc]
        with pytest.raises(zcrpc.ResourceExhausted, match="1048577"):
            await big.data((1 << 20) + 1)  # type: ignore[misc]
        assert len(await big.data(1 << 20)) == 1 << 20  # type: ignore[misc]
    async with serving(Big()) as (_, address), zcrpc.connect(address, Big, max_message=2000) as big:
        with pytest.raises(zcrpc.ResourceExhausted, match="2001"):
            await big.data(2001)  # type: ignore[misc]
        assert len(await big.data(2000)) == 2000  # type: ignore[misc]


# ---- statistics


async def test_stats(serving: Serving) -> None:
    service = Work()
    async with serving(service, receive="copy") as (server, address):
        empty = server.stats()
        assert (empty.connections, empty.requests, empty.errors, empty.mapped_percent, empty.leases) == (
            0,
            0,
            0,
            0.0,
            0,
        )
        assert set(empty.fallbacks) == {"policy", "unsupported", "unpadded", "small", "cheaper", "unmappable"}
        async with zcrpc.connect(address, Work) as work:
            for length in (10, 40_000, 3_000_000):
                await work.keep(os.urandom(length))
            with pytest.raises(zcrpc.InvalidArgument):
                await work.add("a", 1)  # type: ignore[arg-type]
            stats = server.stats()
            assert (stats.connections, stats.requests, stats.errors, stats.calls) == (1, 4, 1, 0)
            assert (stats.payload_bytes_copied, stats.payload_bytes_mapped) == (3_040_000, 0)
            assert stats.fallbacks["policy"] == 2
            assert stats.leases == 2
            assert stats.leased_bytes >= 3_040_000
            assert stats.regions >= 1
            assert stats.arena_bytes >= stats.leased_bytes
            assert stats.lock.read_locks >= 2
            assert stats.bytes_in > 3_040_000
            service.kept.clear()
            gc.collect()
            assert server.stats().leases == 0
    last = server.stats()
    assert (last.connections, last.requests, last.errors) == (0, 4, 1)


# ---- closing


async def test_close_lets_calls_in_flight_finish(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address), zcrpc.connect(address, Work) as work:
        call = asyncio.ensure_future(work.wait())
        await until(lambda: service.began == 1)
        forever = asyncio.ensure_future(server.serve_forever())
        closing = asyncio.ensure_future(server.close(grace=5))
        await asyncio.sleep(0.02)
        with pytest.raises(zcrpc.Unavailable, match="refused"):  # nobody listens any more
            await work.add(1, 2)
        with pytest.raises(zcrpc.Unavailable):
            await zcrpc.connect(address)
        assert not forever.done()
        service.gate.set()
        assert await call == "waited"
        await closing
        await asyncio.wait_for(forever, 1)
        await server.close()


async def test_close_cancels_what_does_not_finish_in_time(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address), zcrpc.connect(address, Work) as work:
        calls = [asyncio.ensure_future(work.wait()) for _ in range(3)]
        slow = asyncio.ensure_future(work.clean_up(0.05))
        await until(lambda: service.began == 4)
        begun = asyncio.get_running_loop().time()
        await server.close(grace=0.1)
        assert 0.1 <= asyncio.get_running_loop().time() - begun < 1
        for result in await asyncio.gather(*calls, slow, return_exceptions=True):
            assert isinstance(result, zcrpc.Unavailable)
            assert "gone away" in result.message
        assert service.cancelled == 4


async def test_a_server_that_closes_refuses_new_calls_on_the_wire(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address), await RawPeer.greeted(address) as peer:
        peer.call("Work.wait", stream=1)
        await until(lambda: service.began == 1)
        closing = asyncio.ensure_future(server.close(grace=5))
        assert (await peer.frame())[:2] == (GOAWAY, Status.UNAVAILABLE)
        peer.call("Work.add", 1, 2, stream=2)
        refusal = await peer.frame()
        assert (refusal.kind, refusal.method, refusal.stream) == (ERROR, Status.UNAVAILABLE, 2)
        assert refusal.flags == UNPROCESSED
        service.gate.set()
        answer = await peer.frame()
        assert (answer.kind, answer.stream, answer.header) == (RESPONSE, 1, ["waited"])
        (farewell,) = await peer.closed()
        assert (farewell.kind, farewell.flags) == (GOAWAY, UNPROCESSED)
        await peer.close()
        await closing


async def test_close_sends_large_results_to_the_end(serving: Serving) -> None:
    class Big(zcrpc.Service):
        @zcrpc.method
        async def data(self, n: int) -> bytes:
            return bytes(n)

    async with serving(Big()) as (server, address), zcrpc.connect(address, Big) as big:
        calls = [asyncio.ensure_future(big.data(20 << 20)) for _ in range(3)]
        await until(lambda: server.requests == 3)
        await server.close()
        assert [len(result) for result in await asyncio.gather(*calls)] == [20 << 20] * 3


async def test_handler_may_close_the_server() -> None:
    class Suicide(zcrpc.Service):
        @zcrpc.method
        async def end(self) -> None:
            await server.close(grace=0.05)

    server = zcrpc.Server(Suicide())
    address = await server.listen("tcp://127.0.0.1:0")
    async with zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.Unavailable):
            await client.call("Suicide.end")
        await asyncio.wait_for(server.serve_forever(), 5)


async def test_server_that_never_listened_can_be_closed() -> None:
    server = zcrpc.Server(Work())
    await server.close()
    await server.serve_forever()
    with pytest.raises(zcrpc.FailedPrecondition):
        await server.listen("tcp://127.0.0.1:0")


async def test_leaving_the_context_with_an_error_does_not_wait_for_the_grace_period() -> None:
    service = Work()
    server = zcrpc.Server(service)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(KeyError):
        async with server.listen("tcp://127.0.0.1:0") as address:
            client = await zcrpc.connect(address)
            call = asyncio.ensure_future(client.call("Work.wait"))
            await until(lambda: service.began == 1)
            raise KeyError
    assert asyncio.get_running_loop().time() - begun < 1.5
    with pytest.raises(zcrpc.Unavailable):
        await call
    await client.close()


async def test_closed_server_leaves_nothing_behind() -> None:
    await calibration.mapped_from("auto", 1)  # imports and allocates, once
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())
    for threads in (0, 2):
        server = zcrpc.Server(Work(), receive_threads=threads)
        async with server.listen("tcp://127.0.0.1:0") as address:
            async with zcrpc.connect(address, Work) as work:
                await asyncio.gather(*(work.times_out() for _ in range(10)))
        gone = weakref.ref(server)
        del server, work
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None
    assert (len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())) == before


# ---- leases


@pytest.mark.parametrize("receive", ["copy", "zerocopy"])
@pytest.mark.parametrize("threads", [0, 2])
def test_payload_outlives_connection_server_and_loop(receive: Any, threads: int) -> None:
    service = Work()
    data = os.urandom(1_500_000)
    regions = []

    async def main() -> None:
        server = zcrpc.Server(service, receive=receive, receive_threads=threads)
        regions.append(server.regions)
        async with server.listen("tcp://127.0.0.1:0") as address, zcrpc.connect(address, Work) as work:
            for _ in range(3):
                await work.keep(data)
            assert server.stats().leases == 3

    asyncio.run(main())
    gc.collect()
    assert all(view == data for view in service.kept)
    part = service.kept[1][1000:2000]
    service.kept.clear()
    gc.collect()
    assert part == data[1000:2000]
    thread = threading.Thread(target=part.release)  # any thread may be the last
    thread.start()
    thread.join()
    with pytest.raises(ValueError, match="released"):
        part[0]


async def test_lease_ends_with_the_last_view_of_it_in_whatever_thread(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address), zcrpc.connect(address, Work) as work:
        await work.keep(bytes(100_000))
        parts = [service.kept[0][n : n + 10] for n in range(0, 1000, 10)]
        service.kept.clear()
        assert server.stats().leases == 1
        last = parts.pop()
        parts.clear()
        assert server.stats().leases == 1
        holder = [last]
        del last
        await asyncio.to_thread(holder.clear)
        await until(lambda: server.stats().leases == 0)


async def test_views_are_read_only(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (_, address), zcrpc.connect(address, Work) as work:
        for length in (5, 100_000):
            await work.keep(bytearray(length))
            with pytest.raises(TypeError):
                service.kept[-1][0] = 1
        service.kept.clear()


async def test_errors_of_one_connection_stay_with_it(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """What should never happen, a bug in dispatch, closes that connection and is logged."""
    async with serving(Work()) as (server, address):
        async with zcrpc.connect(address) as good, zcrpc.connect(address) as bad:
            number = max(server._reactors[0].connections)
            server._reactors[0].connections[number].handlers = None
            with pytest.raises(zcrpc.Unavailable):
                await bad.call("Work.add", 1, 2)
            assert await good.call("Work.add", 1, 2) == 3
        assert any(record.name == "zcrpc.reactor" and record.levelno == logging.ERROR for record in caplog.records)


async def test_out_of_file_descriptors_is_survived(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    import resource

    async with serving(Work()) as (server, address):
        async with zcrpc.connect(address) as client:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
            taken = []
            try:
                with pytest.raises(OSError, match="Too many"):
                    while True:
                        taken.append(os.open("/dev/null", os.O_RDONLY))
                os.close(taken.pop())
                _, writer = await asyncio.open_connection("127.0.0.1", int(address.rsplit(":", 1)[1]))
                await until(lambda: "cannot accept" in caplog.text)
                assert await client.call("Work.add", 1, 2) == 3
            finally:
                for fd in taken:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await until(lambda: server.stats().connections == 2)
            writer.close()
            await writer.wait_closed()


async def test_request_after_request_in_one_segment(serving: Serving) -> None:
    async with serving(Work()) as (_, address), await RawPeer.greeted(address) as peer:
        method = peer.methods["Work.add"]
        peer.send(b"".join(frame(REQUEST, [[n, 1]], method=method, stream=n) for n in range(1, 5001)))
        assert [(await peer.frame()).header for _ in range(5000)] == [[n + 1] for n in range(1, 5001)]


class Slow(zcrpc.Service):
    """`look` sees, while it keeps the loop from running, whether anything has arrived at a socket."""

    def __init__(self) -> None:
        self.watched = -1

    @zcrpc.method
    def add(self, a: int, b: int) -> int:
        return a + b

    @zcrpc.method
    def look(self, value: memoryview) -> bool:
        return bool(select.select([self.watched], [], [], 1.0)[0])


async def test_small_calls_are_answered_before_a_large_payload_is_handled(serving: Serving) -> None:
    """They came in the same tick, and the large one first."""
    service, size = Slow(), 2 << 20
    async with serving(service, receive="copy") as (server, address):
        async with await RawPeer.greeted(address) as large, await RawPeer.greeted(address) as small:
            header = b"\x91\x91\xd8\x02" + struct.pack("<QQ", 0, size)
            first = frame(
                REQUEST, header, bytes(1 << 20), payload_length=size, method=large.methods["Slow.look"], stream=1
            )
            second = frame(CHUNK, payload=bytes(1 << 20), stream=1)
            before = server.stats().bytes_in
            large.send(first + second[:-1])
            await until(  # the core lets up to half a chunk lie until it is whole
                lambda: (
                    server.stats().bytes_in - before > len(first) + (1 << 19)
                    and not large.writer.transport.get_write_buffer_size()
                )
            )
            service.watched = small.writer.get_extra_info("socket").fileno()
            os.write(large.writer.get_extra_info("socket").fileno(), second[-1:])
            os.write(service.watched, frame(REQUEST, [[1, 2]], method=small.methods["Slow.add"], stream=1))
            assert (await small.frame()).header == [3]
            assert (await large.frame()).header == [True]
