"""Connections that are lost and made again: states, waiting, draining, and servers that are killed."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest
import uvloop
from conftest import Serving, Waits, until
from raw_peer import GOAWAY, PREFACE, RESPONSE, RawPeer, RawServer, frame, hello

import zcrpc
from zcrpc import pool as pools

FAST = zcrpc.Backoff(initial=0.01, limit=0.05)


class Work(Waits):
    @zcrpc.method(idempotent=True)
    async def add(self, a: int, b: int) -> int:
        return a + b


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def test_connects_again_when_the_server_is_back() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    server = zcrpc.Server(Work())
    await server.listen(address)
    async with zcrpc.connect(address, Work, backoff=FAST) as work:
        client = work.client  # type: ignore[attr-defined]
        assert client.state is zcrpc.State.READY
        await server.close(grace=0)
        await until(lambda: client.state is zcrpc.State.TRANSIENT_FAILURE)
        with pytest.raises(zcrpc.Unavailable, match="refused") as caught:
            await work.add(1, 2)
        assert caught.value.unprocessed
        again = zcrpc.Server(Work())
        async with again.listen(address):
            await until(lambda: client.state is zcrpc.State.READY)
            assert await work.add(1, 2) == 3
            assert client.stats().requests == 1
    assert client.state is zcrpc.State.SHUTDOWN
    assert not pools._pools


async def test_wait_for_ready() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    server = zcrpc.Server(Work())
    await server.listen(address)
    async with zcrpc.connect(address, Work, backoff=FAST) as work:
        client = work.client  # type: ignore[attr-defined]
        await server.close(grace=0)
        await until(lambda: client.state is zcrpc.State.TRANSIENT_FAILURE)
        with pytest.raises(zcrpc.DeadlineExceeded, match="refused"):
            await work.add(1, 2, wait_for_ready=True, timeout=0.05)  # type: ignore[call-arg]
        waiting = asyncio.ensure_future(work.add(1, 2, wait_for_ready=True, timeout=5))  # type: ignore[call-arg]
        untyped = asyncio.ensure_future(client.call("Work.add", 2, 2, wait_for_ready=True))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        again = zcrpc.Server(Work())
        async with again.listen(address):
            assert (await waiting, await untyped) == (3, 4)


async def test_connecting_waits_for_ready_if_asked_to() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(zcrpc.Unavailable, match="refused"):
        await zcrpc.connect(address)
    with pytest.raises(zcrpc.DeadlineExceeded, match="refused"):
        await zcrpc.connect(address, wait_for_ready=True, timeout=0.1, backoff=FAST)
    connecting = asyncio.ensure_future(zcrpc.connect(address, Work, wait_for_ready=True, backoff=FAST).__aenter__())
    await asyncio.sleep(0.05)
    server = zcrpc.Server(Work())
    async with server.listen(address):
        work = await connecting
        assert await work.add(1, 2) == 3
        await work.close()  # type: ignore[attr-defined]
    assert not pools._pools


async def test_the_next_server_takes_over(serving: Serving) -> None:
    async with serving(Work()) as (first, one), serving(Work()) as (second, other):
        async with zcrpc.connect(f"{one},{other}", Work, backoff=FAST) as work:
            assert await work.add(1, 2) == 3
            assert (first.stats().requests, second.stats().requests) == (1, 0)
            await first.close(grace=0)
            for n in range(20):
                assert await work.add(n, 1) == n + 1
            assert second.stats().requests == 20


async def test_the_first_server_may_be_missing(serving: Serving) -> None:
    async with serving(Work()) as (_, address):
        async with zcrpc.connect([f"tcp://127.0.0.1:{free_port()}", address], Work) as work:
            assert await work.add(1, 2) == 3
    with pytest.raises(zcrpc.Unavailable, match=r"refused.*; .*refused"):
        await zcrpc.connect([f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"])


async def test_a_silent_server_costs_its_share_of_the_timeout(serving: Serving) -> None:
    async def say_nothing(peer: RawPeer) -> None:
        await peer.closed(timeout=30)

    async with RawServer(say_nothing) as silent, serving(Work()) as (_, address):
        begun = asyncio.get_running_loop().time()
        async with zcrpc.connect([silent, address], Work, timeout=0.4) as work:
            assert asyncio.get_running_loop().time() - begun < 0.4
            assert await work.add(1, 2) == 3


async def test_draining_loses_no_call(serving: Serving) -> None:
    """Servers come and go under load; no call fails, idempotent or not."""
    service = Work()
    path_of_first = f"tcp://127.0.0.1:{free_port()}"
    done = 0
    stop = False

    async def load(client: zcrpc.Client) -> None:
        nonlocal done
        while not stop:
            assert await client.call("Work.add", done, 1, timeout=10) > 0
            done += 1

    server = zcrpc.Server(service)
    await server.listen(path_of_first)
    async with zcrpc.connect(path_of_first, backoff=FAST) as client:
        tasks = [asyncio.ensure_future(load(client)) for _ in range(8)]
        for _ in range(5):
            before = done
            await until(lambda before=before: done > before + 50)
            successor = zcrpc.Server(service)
            closing = asyncio.ensure_future(server.close(grace=5))
            await asyncio.sleep(0)  # it listens no more
            await successor.listen(path_of_first)
            await closing
            server = successor
        stop = True
        await asyncio.gather(*tasks)
    await server.close()


async def test_calls_in_flight_finish_where_they_are(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (old, one), serving(Work()) as (new, other):
        async with zcrpc.connect([one, other], Work, backoff=FAST) as work:
            call = asyncio.ensure_future(work.wait())
            await until(lambda: service.began == 1)
            closing = asyncio.ensure_future(old.close(grace=5))
            await until(lambda: new.stats().connections == 1)
            assert await work.add(1, 2) == 3
            assert (old.stats().requests, new.stats().requests) == (1, 1)
            service.gate.set()
            assert await call == "waited"
            await closing


async def test_a_server_that_drops_every_connection_is_not_stormed() -> None:
    connections = 0

    async def drop(peer: RawPeer) -> None:
        nonlocal connections
        connections += 1
        peer.send(PREFACE + hello(methods={}))
        await asyncio.sleep(0.01)

    backoff = zcrpc.Backoff(initial=0.05, factor=2, jitter=0, limit=1)
    async with RawServer(drop) as address, zcrpc.connect(address, backoff=backoff):
        await asyncio.sleep(0.5)
        assert 2 <= connections <= 6


async def test_connections_are_added_up_to_the_limit(serving: Serving) -> None:
    service = Work()
    async with serving(service) as (server, address):
        async with zcrpc.connect(address, Work, connections=3) as work:
            for _ in range(5):
                await work.add(1, 2)
            assert server.stats().connections == 1  # never two calls at once
            calls = [asyncio.ensure_future(work.wait()) for _ in range(2)]
            await until(lambda: server.stats().connections == 2)
            calls += [asyncio.ensure_future(work.wait()) for _ in range(20)]
            await until(lambda: server.stats().connections == 3)
            calls += [asyncio.ensure_future(work.wait()) for _ in range(20)]
            await until(lambda: service.began == 42)
            assert server.stats().connections == 3
            assert min(len(connection.calls) for connection in server._connections) >= 5
            service.gate.set()
            assert set(await asyncio.gather(*calls)) == {"waited"}
            assert work.client.stats().requests == 47  # type: ignore[attr-defined]


async def test_idle_channel_connects_when_it_is_called(serving: Serving) -> None:
    async with serving(Work()) as (server, address):
        async with zcrpc.connect(address, Work, idle_timeout=0.05) as work:
            client = work.client  # type: ignore[attr-defined]
            assert await work.add(1, 2) == 3
            await until(lambda: client.state is zcrpc.State.IDLE)
            await until(lambda: server.stats().connections == 0)
            assert await work.add(1, 2) == 3
            assert client.stats().requests == 2


async def test_ping_connects(serving: Serving) -> None:
    async with serving(Work()) as (_, address), zcrpc.connect(address, idle_timeout=0.05) as client:
        await until(lambda: client.state is zcrpc.State.IDLE)
        assert await client.ping(timeout=5) > 0


async def test_going_away_for_idleness_is_not_answered_by_connecting(serving: Serving) -> None:
    async with serving(Work(), idle_timeout=0.05) as (server, address):
        async with zcrpc.connect(address, Work) as work:
            client = work.client  # type: ignore[attr-defined]
            await until(lambda: client.state is zcrpc.State.IDLE)
            await asyncio.sleep(0.1)
            assert server.stats().connections == 0
            for n in range(20):
                assert await work.add(n, 1) == n + 1
                await asyncio.sleep(0.01)


async def test_calls_that_cross_an_idle_close_are_made_again(serving: Serving) -> None:
    """The server closes just when calls come; each of them is served once."""
    served = 0

    class Counts(zcrpc.Service):
        @zcrpc.method
        async def count(self) -> int:
            nonlocal served
            served += 1
            return served

    async with serving(Counts(), idle_timeout=0.011) as (_, address):
        async with zcrpc.connect(address, Counts, backoff=FAST) as counts:
            for n in range(1, 60):
                assert await counts.count() == n
                await asyncio.sleep(0.010 + n / 20_000)


async def test_closing_while_nobody_can_be_reached(serving: Serving) -> None:
    async with serving(Work()) as (server, address):
        client = await zcrpc.connect(address, backoff=FAST)
        await server.close(grace=0)
        waiting = asyncio.ensure_future(client.call("Work.add", 1, 2, wait_for_ready=True))
        await until(lambda: client.state is zcrpc.State.TRANSIENT_FAILURE)
        await asyncio.sleep(0.03)
        await client.close()
        with pytest.raises(zcrpc.Unavailable, match="client was closed"):
            await waiting
        with pytest.raises(zcrpc.Unavailable, match="client was closed"):
            await client.call("Work.add", 1, 2)
    assert not pools._pools


async def test_retiring_connection_is_closed_by_the_client_when_its_calls_are_over() -> None:
    over = asyncio.Event()
    closed = 0

    async def behave(peer: RawPeer) -> None:
        nonlocal closed
        peer.send(PREFACE + hello(methods={"Work.wait": 1}))
        await peer.reader.readexactly(len(PREFACE))
        await peer.frame()
        request = await peer.frame()
        peer.send(frame(GOAWAY, ["moving"], method=14))
        await over.wait()
        peer.send(frame(RESPONSE, ["done"], stream=request.stream))
        await peer.closed()
        closed += 1

    async with RawServer(behave) as address:
        async with zcrpc.connect(address) as client:
            call = asyncio.ensure_future(client.call("Work.wait"))
            await asyncio.sleep(0.05)
            over.set()
            assert await call == "done"
            await until(lambda: closed == 1)


# ---- servers that are killed

SERVER = """
import asyncio, sys, zcrpc

class Work(zcrpc.Service):
    @zcrpc.method(idempotent=True)
    async def add(self, a: int, b: int) -> int:
        await asyncio.sleep(0.001)
        return a + b

async def main():
    server = zcrpc.Server(Work(), receive="copy")
    async with server.listen(sys.argv[1]) as address:
        print(address, flush=True)
        await server.serve_forever()

zcrpc.run(main())
"""


class Process:
    """A server in a process of its own."""

    def __init__(self, address: str = "tcp://127.0.0.1:0") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )

    def __enter__(self) -> "Process":
        return self

    def address(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("balance", ["first", "round-robin", "least-loaded"])
def test_killing_one_of_three_servers_fails_no_idempotent_call(balance: Any) -> None:
    async def main(addresses: list[str], victims: list[Process]) -> tuple[int, float]:
        done, longest, stop = 0, 0.0, False
        loop = asyncio.get_running_loop()

        async def load(work: Work) -> None:
            nonlocal done, longest
            while not stop:
                begun = loop.time()
                assert await work.add(done, 1, timeout=10) > 0  # type: ignore[call-arg]
                longest = max(longest, loop.time() - begun)
                done += 1

        async with zcrpc.connect(addresses, Work, balance=balance) as work:
            tasks = [asyncio.ensure_future(load(work)) for _ in range(20)]
            for victim in victims:
                before = done
                await until(lambda before=before: done > before + 300)
                victim.kill()
            before = done
            await until(lambda: done > before + 300)
            stop = True
            await asyncio.gather(*tasks)
        return done, longest

    with ExitStack() as stack:
        processes = [stack.enter_context(Process()) for _ in range(3)]
        addresses = [process.address() for process in processes]
        _, longest = uvloop.run(main(addresses, processes[:2]))
    assert longest < 1.0


def test_restarted_server_is_used_again() -> None:
    async def main() -> None:
        with Process() as first, Process() as second:
            one, other = first.address(), second.address()
            async with zcrpc.connect([one, other], Work, balance="round-robin", backoff=FAST) as work:
                channel = work.client._channel  # type: ignore[attr-defined]
                await until(lambda: len(channel._ready) == 2)
                first.kill()
                await until(lambda: len(channel._ready) == 1)
                for n in range(20):
                    assert await work.add(n, 1) == n + 1
                with Process(one):
                    await until(lambda: len(channel._ready) == 2, timeout=10)
                    for n in range(20):
                        assert await work.add(n, 1) == n + 1

    uvloop.run(main())
