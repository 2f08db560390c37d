"""zcrpc.testing: pairs, proxies, and the faults that they can have."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest
from conftest import Serving, Waits, until

import zcrpc
from zcrpc.testing import Faults, Link, Proxy, pair

BLOB = random.Random(7).randbytes(1_000_000)


class Store(zcrpc.Service):
    @zcrpc.method(idempotent=True)
    async def put(self, value: memoryview) -> int:
        return len(value)

    @zcrpc.method
    async def echo(self, value: bytes) -> bytes:
        return value

    @zcrpc.method
    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @zcrpc.method
    async def back(self, items: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for item in items:
            yield item[::-1]


# ---- pairs


async def test_a_pair_calls_and_streams() -> None:
    async with pair(Store()) as store:
        assert await store.put(BLOB) == len(BLOB)
        assert await store.echo(BLOB) == BLOB
        assert [number async for number in store.count(1000)] == list(range(1000))


async def test_a_pair_has_more_services_and_options() -> None:
    both = pair(Store(), Waits(), server={"max_message": 1000}, client={"max_message": 2000})
    async with both as store:
        assert await store.put(bytes(1000)) == 1000
        with pytest.raises(zcrpc.ResourceExhausted):
            await store.put(bytes(1001))
        waits = both.client.use(Waits)
        with pytest.raises(zcrpc.DeadlineExceeded):
            await waits.wait(timeout=0.01)  # type: ignore[call-arg]
        assert both.server.stats().connections == 1
    assert both.server.stats().connections == 0


async def test_a_handlers_peer_is_this_process() -> None:
    class Who(zcrpc.Service):
        @zcrpc.method
        async def am_i(self) -> str:
            return zcrpc.context().peer

    async with pair(Who()) as who:
        assert await who.am_i() == "unix://socketpair"


async def test_wrong_options_leave_nothing_open() -> None:
    with pytest.raises(TypeError):
        pair(Store(), client={"nonsense": 1})
    refused = pair(Store(), server={"authenticate": lambda peer: None})
    with pytest.raises(zcrpc.Unauthenticated):
        async with refused:
            pass
    assert refused.server.stats().connections == 0


async def test_an_adopted_tcp_socket() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = zcrpc.Server(Store())
    async with asyncio.TaskGroup() as group:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        accepting = group.create_task(loop.sock_accept(listener))
        connecting = group.create_task(
            zcrpc.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", Store).__aenter__()
        )
        accepted, _ = await accepting
        await server.adopt(accepted)
        store = await connecting
    assert await store.put(BLOB) == len(BLOB)
    await store.close()  # type: ignore[attr-defined]
    await server.close()
    listener.close()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(zcrpc.FailedPrecondition):
        await server.adopt(ours)


# ---- faults


async def test_faults_that_are_none_change_nothing() -> None:
    clean = pair(Store(), to_server=Faults(), to_client=Faults())
    async with clean as store:
        assert await store.echo(BLOB) == BLOB
    assert clean.links[0].passed[0] > len(BLOB)
    assert clean.links[0].passed[1] > len(BLOB)


async def test_delay_is_latency_not_throughput() -> None:
    loop = asyncio.get_running_loop()
    slow = pair(Store(), to_server=Faults(delay=0.02), to_client=Faults(delay=0.02, jitter=0.005))
    async with slow as store:
        begun = loop.time()
        await asyncio.gather(*(store.put(b"x") for _ in range(50)))
        assert 0.04 <= loop.time() - begun < 1.5, "one after the other they would take 2 s"
        assert await slow.client.ping() >= 0.04


async def test_rate() -> None:
    loop = asyncio.get_running_loop()
    async with pair(Store(), to_server=Faults(rate=2_000_000)) as store:
        begun = loop.time()
        await store.put(BLOB[:400_000])
        assert 0.15 < loop.time() - begun < 5


@pytest.mark.parametrize("piece", [1, 7, 4096])
async def test_slicing_changes_nothing(piece: int) -> None:
    async with pair(Store(), to_server=Faults(piece=piece), to_client=Faults(piece=piece)) as store:
        value = BLOB[: 3000 * min(piece, 100)]
        assert await store.echo(value) == value


@pytest.mark.parametrize("seed", range(3))
async def test_everything_at_once_over_a_bad_link(seed: int) -> None:
    draw = random.Random(seed)
    bad = Faults(piece=draw.choice([101, 1001, 8191]), delay=0.001, jitter=0.002)
    items = [BLOB[: draw.choice([0, 1, 100, 20_000, 70_000])] for _ in range(30)]

    async def sent() -> AsyncIterator[bytes]:
        for item in items:
            yield item

    async def streamed() -> None:
        assert [item async for item in store.back(sent())] == [item[::-1] for item in items]

    async def counted() -> None:
        assert [number async for number in store.count(500)] == list(range(500))

    async def echoed(length: int) -> None:
        assert await store.echo(BLOB[:length]) == BLOB[:length]

    async with pair(Store(), to_server=bad, to_client=bad, seed=seed) as store:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for work in (streamed(), counted(), *(echoed(draw.randrange(100_000)) for _ in range(10))):
                group.create_task(work)


@pytest.mark.parametrize("seed", range(4))
async def test_a_flipped_bit_anywhere_hurts_nobody_else(serving: Serving, seed: int) -> None:
    """The one whose bit it was gets an answer, or an error; the server serves everybody else."""
    draw = random.Random(seed)
    async with serving(Store(), stall_timeout=0.5, hello_timeout=0.5) as (server, address):
        async with zcrpc.connect(address, Store) as bystander:
            for _ in range(12):
                at = draw.randrange(600) if draw.random() < 0.7 else draw.randrange(40_000)
                faults = {draw.choice(["to_server", "to_client"]): Faults(corrupt_at=at)}
                async with Proxy(address, **faults, seed=draw.randrange(1000)) as proxied:
                    with contextlib.suppress(zcrpc.ZcrpcError):
                        async with zcrpc.connect(proxied, Store, timeout=1.0, retries=None) as store:
                            assert len(await store.echo(BLOB[:20_000], timeout=1.0)) == 20_000  # type: ignore[call-arg]
                            async for _ in store.count(300, timeout=1.0):  # type: ignore[call-arg]
                                pass
                assert await bystander.echo(b"abc") == b"abc"
            await until(lambda: server.stats().connections == 1)


@pytest.mark.parametrize("after", [0, 1, 40, 5000, 300_000])
async def test_cut_after_just_so_many_bytes(after: int) -> None:
    cut = pair(Store(), to_server=Faults(cut_after=after), client={"retries": None})
    with pytest.raises(zcrpc.Unavailable):
        async with cut as store:
            async with asyncio.timeout(5):
                await store.put(BLOB)
    assert cut.links[0].passed[0] == after
    assert cut.links[0].is_closed


async def test_a_call_that_was_cut_is_made_again_over_the_next_connection() -> None:
    once = pair(Store(), to_server=lambda number: Faults(cut_after=5000) if number == 0 else Faults())
    async with once as store:
        assert await store.put(BLOB) == len(BLOB)
    assert [link.passed[0] > len(BLOB) for link in once.links] == [False, True]


async def test_a_corrupt_byte_is_the_same_with_the_same_seed() -> None:
    at = 700_000
    seen = []
    for seed in (1, 1):
        async with pair(Store(), to_server=Faults(corrupt_at=at), seed=seed) as store:
            echo = await store.echo(BLOB)
        seen.append([(index, a ^ b) for index, (a, b) in enumerate(zip(BLOB, echo, strict=True)) if a != b])
    ((index, flipped),) = seen[0]
    assert at - 1000 < index <= at, "behind hello, frame and header"
    assert flipped.bit_count() == 1
    assert seen[0] == seen[1]


async def test_a_corrupt_frame_header_costs_the_connection_not_the_server(serving: Serving) -> None:
    async with serving(Store()) as (server, address):
        async with Proxy(address, to_server=Faults(corrupt_at=0)) as proxied:
            with pytest.raises(zcrpc.Unavailable):
                async with asyncio.timeout(5), zcrpc.connect(proxied, Store) as store:
                    await store.put(b"abc")  # the server's greeting may have come before it hung up
        async with zcrpc.connect(address, Store) as store:
            assert await store.put(b"abc") == 3
        assert server.stats().violations >= 1


async def test_half_open_only_a_deadline_helps() -> None:
    half = pair(Store(), to_client=Faults(stall_after=2000))
    async with half as store:
        with pytest.raises(zcrpc.DeadlineExceeded):
            await store.echo(BLOB, timeout=0.2)  # type: ignore[call-arg]
        assert half.links[0].passed[1] == 2000
        assert not half.links[0].is_closed


async def test_an_end_in_one_direction(serving: Serving) -> None:
    async with serving(Store()) as (_, address), Proxy(address, to_server=Faults(end_after=5000)) as proxied:
        client = await zcrpc.connect(proxied)
        with pytest.raises(zcrpc.Unavailable):
            async with asyncio.timeout(5):
                await client.call("Store.put", BLOB)
        await client.close()


async def test_pause_and_resume() -> None:
    paused = pair(Store(), to_server=Faults())
    async with paused as store:
        (link,) = paused.links
        link.pause()
        with pytest.raises(zcrpc.DeadlineExceeded):
            await store.put(b"x", timeout=0.1)  # type: ignore[call-arg]
        link.resume()
        assert await store.put(b"x") == 1


async def test_a_stall_holds_up_a_server_no_longer_than_its_timeout(serving: Serving) -> None:
    async with serving(Store(), stall_timeout=0.3, hello_timeout=0.3) as (server, address):
        async with Proxy(address, to_server=Faults(stall_after=200_000)) as proxied:
            client = await zcrpc.connect(proxied)
            with pytest.raises(zcrpc.Unavailable):
                async with asyncio.timeout(8):
                    await client.call("Store.put", BLOB)
            await until(lambda: not server.stats().connections)
            await client.close()


# ---- proxies


async def test_faults_by_connection(serving: Serving) -> None:
    async with serving(Store()) as (_, address):
        proxy = Proxy(address, to_client=lambda number: Faults(cut_after=0) if number == 0 else Faults())
        async with proxy as proxied:
            with pytest.raises(zcrpc.Unavailable):
                await zcrpc.connect(proxied)
            async with zcrpc.connect(proxied, Store) as store:
                assert await store.put(BLOB) == len(BLOB)
        assert [link.is_closed for link in proxy.links] == [True, True]


async def test_cut_now_and_refuse(serving: Serving) -> None:
    service = Waits()
    async with serving(service) as (server, address):
        proxy = Proxy(address)
        async with proxy as proxied:
            client = await zcrpc.connect(proxied)
            call = asyncio.ensure_future(client.call("Waits.wait"))
            await until(lambda: service.began)
            proxy.cut()
            with pytest.raises(zcrpc.Unavailable):
                await call
            await until(lambda: service.cancelled)
            await client.close()
            proxy.refuses = True
            with pytest.raises(zcrpc.Unavailable):
                await zcrpc.connect(proxied)
        await until(lambda: not server.stats().connections)


async def test_a_proxy_to_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    async with Proxy(address) as proxied:
        with pytest.raises(zcrpc.Unavailable):
            await zcrpc.connect(proxied)


async def test_links_pass_what_they_get_byte_for_byte() -> None:
    def ends() -> tuple[socket.socket, socket.socket]:
        made = socket.socketpair()
        for sock in made:
            sock.setblocking(False)
        return made

    loop = asyncio.get_running_loop()
    (here, left), (right, there) = ends(), ends()
    link = Link(left, right, Faults(piece=3, jitter=0.001), Faults(), "seed")
    sending = asyncio.ensure_future(loop.sock_sendall(here, BLOB[:20_000]))
    received = b""
    while len(received) < 20_000:
        received += await loop.sock_recv(there, 65536)
    await sending
    assert received == BLOB[:20_000]
    here.close()
    assert await loop.sock_recv(there, 1) == b""
    there.close()
    await until(lambda: link.is_closed)


@pytest.mark.parametrize(
    "wrong",
    [{"delay": -1}, {"rate": 0}, {"piece": 0}, {"cut_after": -1}, {"jitter": float("nan")}],
)
def test_faults_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        Faults(**wrong)  # type: ignore[arg-type]
