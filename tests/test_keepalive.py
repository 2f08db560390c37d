"""Silent peers and idle connections: the watch by itself, and through real sockets."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest
from clock import Clock
from conftest import Serving, Waits, until
from hypothesis import given
from hypothesis import strategies as st
from raw_peer import GOAWAY, PING, PONG, PREFACE, UNPROCESSED, RawPeer, RawServer, frame, hello

import zcrpc
from zcrpc.keepalive import Watch, Watching


class WatchedClock(Clock):
    """A connection that is watched."""

    def __init__(self, watching: Watching) -> None:
        super().__init__()
        self.heard = 0.0
        self.called = False
        self.answers = True
        self.read = True
        self.item = Watch(self, watching)

    def silence(self) -> float:
        return self.now - self.heard if self.read else 0.0

    def take_calls(self) -> bool:
        called, self.called = self.called, False
        return called

    def probe(self) -> None:
        self.said.append(("ping", self.now))
        if self.answers:
            self.heard = self.now + 0.001
            self.item.answered()

    def silent(self, seconds: float) -> None:
        self.said.append(("silent", self.now))

    def unused(self, seconds: float) -> None:
        self.said.append(("unused", self.now))

    def words(self) -> list[str]:
        return [word for word, _ in self.said]


def test_nothing_is_watched_unless_asked_for() -> None:
    assert WatchedClock(Watching()).due is None


def test_silent_peer_that_answers_is_pinged_again_and_again() -> None:
    clock = WatchedClock(Watching(keepalive=10, keepalive_timeout=5))
    clock.run(100)
    assert set(clock.words()) == {"ping"}
    assert 6 <= len(clock.said) <= 10


def test_peer_that_talks_is_not_pinged() -> None:
    clock = WatchedClock(Watching(keepalive=10, keepalive_timeout=5))
    for second in range(1, 100):
        clock.heard = second - 1
        clock.run(second)
    assert clock.said == []


def test_peer_that_does_not_answer_is_dropped_in_time() -> None:
    clock = WatchedClock(Watching(keepalive=10, keepalive_timeout=5))
    clock.answers = False
    clock.run(100)
    assert clock.words() == ["ping", "silent"]
    assert 15 <= clock.said[-1][1] <= 15.2
    assert clock.due is None


def test_connection_that_is_not_read_is_not_dropped() -> None:
    clock = WatchedClock(Watching(keepalive=10, keepalive_timeout=5))
    clock.answers = clock.read = False
    clock.run(100)
    assert clock.words() == []
    clock.read = True
    clock.heard = clock.now
    clock.run(200)
    assert clock.words() == ["ping", "silent"]


@given(st.floats(1, 100), st.floats(1, 100), st.floats(1, 300), st.booleans())
def test_a_live_peer_is_never_dropped_and_a_dead_one_always(
    keepalive: float, timeout: float, idle: float, answers: bool
) -> None:
    clock = WatchedClock(Watching(keepalive=keepalive, keepalive_timeout=timeout, idle_timeout=idle * 1000))
    clock.answers = answers
    clock.run(keepalive + timeout + 1)
    assert ("silent" in clock.words()) == (not answers)


@given(st.floats(1, 100), st.one_of(st.none(), st.floats(1, 100)))
def test_idle_connection_is_closed_neither_early_nor_much_too_late(idle: float, keepalive: float | None) -> None:
    clock = WatchedClock(Watching(idle_timeout=idle, keepalive=keepalive))
    for step in range(1, 30):
        clock.called = True
        clock.run(step * idle / 10)
    last = clock.now
    clock.run(last + 2 * idle)
    assert clock.words()[-1] == "unused"
    assert last + idle * 0.85 <= clock.said[-1][1] <= last + idle * 1.26
    assert clock.due is None


def test_stopped_watch_says_nothing() -> None:
    clock = WatchedClock(Watching(keepalive=1, idle_timeout=1))
    clock.item.stop()
    clock.run(100)
    assert clock.said == []


# ---- through sockets


class Work(Waits):
    @zcrpc.method
    async def add(self, a: int, b: int) -> int:
        return a + b


@pytest.mark.parametrize("threads", [0, 1])
async def test_server_drops_a_client_that_hangs(
    serving: Serving, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    service = Work()
    options = {"keepalive": 0.1, "keepalive_timeout": 0.1, "receive_threads": threads}
    async with serving(service, **options) as (server, address), await RawPeer.greeted(address) as peer:
        peer.call("Work.wait")
        assert (await peer.frame()).kind == PING
        await until(lambda: service.cancelled == 1 and not server.stats().connections)
        assert "does not answer pings" in caplog.text
        assert server.stats().timed_out == 1


async def test_server_keeps_a_client_that_answers(serving: Serving) -> None:
    options = {"keepalive": 0.05, "keepalive_timeout": 0.1}
    async with serving(Work(), **options) as (server, address):
        async with await RawPeer.greeted(address) as peer:
            for _ in range(5):
                ping = await peer.frame()
                assert ping.kind == PING
                peer.send(frame(PONG, b"\xa9keepalive"))
            assert server.stats().connections == 1
        async with zcrpc.connect(address, Work) as work:
            await asyncio.sleep(0.5)
            assert await work.add(1, 2) == 3
            assert work.client.stats().requests == 1  # type: ignore[attr-defined]


async def test_client_leaves_a_server_that_hangs(serving: Serving) -> None:
    async def hang(peer: RawPeer) -> None:
        peer.send(PREFACE + hello(methods={"Work.add": 1}))
        await peer.closed(timeout=30)

    async with RawServer(hang) as hanging, serving(Work()) as (_, address):
        options: Any = {"keepalive": 0.1, "keepalive_timeout": 0.1}
        async with zcrpc.connect([hanging, address], Work, **options) as work:
            with pytest.raises(zcrpc.Unavailable, match="does not answer pings"):
                await work.add(1, 2)
        async with zcrpc.connect(hanging, Work, **options) as work:
            call = asyncio.ensure_future(work.add(1, 2))
            with pytest.raises(zcrpc.Unavailable, match="does not answer pings"):
                await call


def test_stopped_process_is_noticed() -> None:
    """SIGSTOP: the kernel still acknowledges everything, only pings tell."""
    code = (
        "import asyncio, sys, zcrpc\n"
        "class Work(zcrpc.Service):\n"
        "    @zcrpc.method\n"
        "    async def add(self, a: int, b: int) -> int: return a + b\n"
        "async def main():\n"
        "    server = zcrpc.Server(Work(), receive='copy')\n"
        "    async with server.listen('tcp://127.0.0.1:0') as address:\n"
        "        print(address, flush=True)\n"
        "        await server.serve_forever()\n"
        "zcrpc.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()

        async def main() -> None:
            async with zcrpc.connect(address, Work, keepalive=0.2, keepalive_timeout=0.2) as work:
                assert await work.add(1, 2) == 3
                os.kill(process.pid, signal.SIGSTOP)
                begun = asyncio.get_running_loop().time()
                with pytest.raises(zcrpc.Unavailable, match="does not answer pings"):
                    await work.add(1, 2)
                assert asyncio.get_running_loop().time() - begun < 2
                os.kill(process.pid, signal.SIGCONT)
                assert await work.add(1, 2, wait_for_ready=True, timeout=10) == 3  # type: ignore[call-arg]

        zcrpc.run(main())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_nothing_is_sent_before_a_peer_is_authenticated(serving: Serving) -> None:
    """No ping and no goaway for idleness come before the server's hello."""
    allowed = asyncio.Event()

    async def check(credentials: zcrpc.Credentials) -> str:
        await allowed.wait()
        return "anybody"

    options: Any = {"keepalive": 0.05, "keepalive_timeout": 0.05, "idle_timeout": 0.05}
    async with serving(Work(), authenticate=check, **options) as (_, address):
        connecting = asyncio.ensure_future(zcrpc.connect(address, Work).__aenter__())
        await asyncio.sleep(0.4)
        assert not connecting.done()
        allowed.set()
        work = await connecting
        assert await work.add(1, 2) == 3
        await work.close()  # type: ignore[attr-defined]


async def test_idle_connection_is_closed_with_a_word(serving: Serving) -> None:
    async with serving(Work(), idle_timeout=0.2) as (server, address), await RawPeer.greeted(address) as peer:
        loop = asyncio.get_running_loop()
        for _ in range(6):
            await asyncio.sleep(0.05)
            peer.call("Work.add", 1, 2)
            await peer.frame()
        begun = loop.time()
        (farewell,) = await peer.closed()
        assert loop.time() - begun > 0.15
        assert (farewell.kind, farewell.method, farewell.flags) == (GOAWAY, 0, UNPROCESSED)
        assert "no call for 0.2 s" in farewell.header[0]
        await until(lambda: not server.stats().connections)


async def test_connection_with_a_call_in_flight_is_not_idle(serving: Serving) -> None:
    service = Work()
    async with serving(service, idle_timeout=0.05) as (_, address):
        async with zcrpc.connect(address, Work, idle_timeout=0.05) as work:
            call = asyncio.ensure_future(work.wait())
            await asyncio.sleep(0.3)
            service.gate.set()
            assert await call == "waited"


async def test_the_kernel_watches_tcp_connections(serving: Serving) -> None:
    async with serving(Work(), stall_timeout=7) as (server, address):
        async with zcrpc.connect(address, stall_timeout=8):
            (number,) = [connection.number for connection in server._connections]
            assert number
            fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
            found = []
            for fd in fds:
                try:
                    sock = socket.socket(fileno=os.dup(fd))
                except OSError:
                    continue
                with sock:
                    if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM:
                        found.append(
                            (
                                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                            )
                        )
            assert sorted(found) == [(1, 12_000), (1, 12_000), (1, 13_000)]  # listener, accepted, connected
