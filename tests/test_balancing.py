"""Several servers: who gets which call, names that resolve to several, and those that fail."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from conftest import Serving, Waits, serving, until
from hypothesis import given
from hypothesis import strategies as st

import zcrpc
from zcrpc import address as addresses
from zcrpc import client as client_module
from zcrpc.balancing import PICKERS, Least, RoundRobin, TwoChoices

FAST = zcrpc.Backoff(initial=0.01, limit=0.05)


class Load:
    def __init__(self, load: int) -> None:
        self.load = load


class Work(Waits):
    def __init__(self, name: int = 0) -> None:
        super().__init__()
        self.name = name

    @zcrpc.method(idempotent=True)
    async def who(self) -> int:
        return self.name

    @zcrpc.method
    async def hold(self) -> int:
        await self.wait()
        return self.name


# ---- choices by themselves


@given(st.lists(st.integers(0, 5).map(Load), min_size=1, max_size=8), st.sampled_from(sorted(PICKERS)))
def test_choices_are_among_those_there(connections: list[Load], balance: str) -> None:
    pick = PICKERS[balance]()
    for _ in range(20):
        assert pick(connections) in connections


@given(st.integers(1, 8), st.integers(1, 50))
def test_round_robin_is_even(count: int, rounds: int) -> None:
    pick, connections = RoundRobin(), [Load(0) for _ in range(count)]
    taken = Counter(id(pick(connections)) for _ in range(count * rounds))
    assert set(taken.values()) == {rounds}


@given(st.lists(st.integers(0, 9), min_size=2, max_size=8), st.data())
def test_two_choices_draws_two_and_takes_the_less_loaded(loads: list[int], data: st.DataObject) -> None:
    drawn: list[int] = []

    def below(limit: int) -> int:
        drawn.append(data.draw(st.integers(0, limit - 1)))
        return drawn[-1]

    connections = [Load(load) for load in loads]
    chosen = TwoChoices(below)(connections)
    one, other = drawn[0], drawn[1] + (drawn[1] >= drawn[0])
    assert one != other
    assert chosen.load == min(loads[one], loads[other])


def test_two_choices_are_nearly_as_even_as_the_best_of_all() -> None:
    pick, connections = TwoChoices(), [Load(0) for _ in range(20)]
    for _ in range(20_000):
        pick(connections).load += 1
    assert max(connection.load for connection in connections) - 1000 < 20  # by chance alone it would be about 60


def test_least_takes_the_least() -> None:
    connections = [Load(3), Load(1), Load(2)]
    assert Least()(connections) is connections[1]


# ---- addresses


def test_addresses_in_one_text_or_several() -> None:
    parse = addresses.parse_all
    assert [str(each) for each in parse("tcp://a:1, tcp://b:2,unix:///x,y")] == [
        "tcp://a:1",
        "tcp://b:2",
        "unix:///x,y",
    ]
    assert parse(["tcp://a:1", "tcp://b:2", "tcp://a:1"]) == parse("tcp://a:1,tcp://b:2")
    for wrong in ("", [], "tcp://a:1,b:2", "tcp://a:1,", ["tcp://a:1", "nowhere"]):
        with pytest.raises(ValueError, match=r"expected|no address|Port"):
            parse(wrong)
    assert addresses.is_numeric(addresses.parse("tcp://[::1]:1"))
    assert not addresses.is_numeric(addresses.parse("tcp://localhost:1"))


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="round-robin"):
        zcrpc.connect("tcp://a:1", balance="best")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="connections"):
        zcrpc.connect("tcp://a:1", connections=0)
    with pytest.raises(ValueError, match="keepalive"):
        zcrpc.connect("tcp://a:1", keepalive=0)
    with pytest.raises(ValueError, match="idle_timeout"):
        zcrpc.Server(Work(), idle_timeout=-1)


# ---- servers


@asynccontextmanager
async def several(count: int) -> AsyncIterator[tuple[list[zcrpc.Server], list[str], list[Work]]]:
    services = [Work(n) for n in range(count)]
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(serving(service)) for service in services]
        yield [server for server, _ in pairs], [address for _, address in pairs], services


async def ready(work: Work, count: int) -> Any:
    channel = work.client._channel  # type: ignore[attr-defined]
    await until(lambda: len(channel._ready) == count)
    return channel


async def test_round_robin() -> None:
    async with several(3) as (_, where, _services):
        async with zcrpc.connect(",".join(where), Work, balance="round-robin") as work:
            await ready(work, 3)
            assert Counter([await work.who() for _ in range(30)]) == {0: 10, 1: 10, 2: 10}


async def test_least_loaded_avoids_the_busy_one() -> None:
    async with several(2) as (_, where, services):
        async with zcrpc.connect(where, Work, balance="least-loaded") as work:
            await ready(work, 2)
            held = [asyncio.ensure_future(work.hold())]
            await until(lambda: sum(service.began for service in services) == 1)
            busy = next(n for n, service in enumerate(services) if service.began)
            assert {await work.who() for _ in range(20)} == {1 - busy}
            for service in services:
                service.gate.set()
            await asyncio.gather(*held)


async def test_failing_server_is_left_out_and_comes_back() -> None:
    async with several(3) as (servers, where, _):
        async with zcrpc.connect(where, Work, balance="round-robin", backoff=FAST) as work:
            await ready(work, 3)
            await servers[1].close(grace=0)
            await ready(work, 2)
            assert Counter([await work.who() for _ in range(20)]) == {0: 10, 2: 10}
            again = zcrpc.Server(Work(7))
            async with again.listen(where[1]):
                await ready(work, 3)
                assert {await work.who() for _ in range(9)} == {0, 2, 7}


async def test_connecting_needs_only_one() -> None:
    async with several(1) as (_, where, _services):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            nobody = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        async with zcrpc.connect([nobody, *where], Work, balance="round-robin", backoff=FAST) as work:
            for _ in range(10):
                assert await work.who() == 0
        with pytest.raises(zcrpc.Unavailable, match="refused"):
            await zcrpc.connect([nobody], balance="round-robin")


# ---- names


class Names:
    """A resolver that says what it is told."""

    def __init__(self, port: int, *hosts: str) -> None:
        self.port = port
        self.hosts = list(hosts)
        self.asked = 0

    async def __call__(self, address: addresses.Address) -> list[tuple[int, Any]]:
        self.asked += 1
        if not self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, (host, self.port)) for host in self.hosts]


@pytest.fixture(name="resolution")
def _resolution(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Names are asked for every 20 ms."""

    def use(names: Names) -> None:
        def make(channel: Any, address: Any, dial_at: Any) -> Any:
            return real(channel, address, dial_at, resolve=names, least=0.02)

        monkeypatch.setattr(client_module, "Resolution", make)

    real = client_module.Resolution
    return use


@asynccontextmanager
async def on_loopback(count: int) -> AsyncIterator[tuple[list[zcrpc.Server], int]]:
    """Servers on one port of 127.0.0.1, 127.0.0.2, …"""
    async with AsyncExitStack() as stack:
        first, address = await stack.enter_async_context(serving(Work(0)))
        port = int(address.rpartition(":")[2])
        servers = [first]
        for n in range(1, count):
            server, _ = await stack.enter_async_context(serving(Work(n), address=f"tcp://127.0.0.{n + 1}:{port}"))
            servers.append(server)
        yield servers, port


async def test_name_of_several_servers(resolution: Any) -> None:
    async with on_loopback(3) as (_, port):
        resolution(Names(port, "127.0.0.1", "127.0.0.2", "127.0.0.3"))
        async with zcrpc.connect(f"tcp://store.test:{port}", Work, balance="round-robin") as work:
            await ready(work, 3)
            assert Counter([await work.who() for _ in range(9)]) == {0: 3, 1: 3, 2: 3}


async def test_name_that_changes(resolution: Any) -> None:
    async with on_loopback(3) as (servers, port):
        names = Names(port, "127.0.0.1", "127.0.0.2")
        resolution(names)
        async with zcrpc.connect(f"tcp://store.test:{port}", Work, balance="round-robin", backoff=FAST) as work:
            channel = await ready(work, 2)
            assert {await work.who() for _ in range(8)} == {0, 1}
            names.hosts = ["127.0.0.2", "127.0.0.3"]
            await servers[0].close(grace=0)  # only trouble makes it ask again at once
            await until(lambda: sorted(await_names(channel)) == ["127.0.0.2", "127.0.0.3"])
            await ready(work, 2)
            assert {await work.who() for _ in range(8)} == {1, 2}


def await_names(channel: Any) -> list[str]:
    return [name.partition("(")[2].rstrip(")") for name in channel.endpoints]


async def test_server_that_leaves_the_name_finishes_its_calls() -> None:
    async with several(2) as (servers, where, services):
        async with zcrpc.connect(where, Work, balance="round-robin") as work:
            channel = await ready(work, 2)
            held = [asyncio.ensure_future(work.hold()) for _ in range(2)]
            await until(lambda: services[0].began == services[1].began == 1)
            channel.remove(where[0])
            assert {await work.who() for _ in range(4)} == {1}
            assert servers[0].stats().connections == 1
            services[0].gate.set()
            services[1].gate.set()
            assert sorted(await asyncio.gather(*held)) == [0, 1]
            await until(lambda: servers[0].stats().connections == 0)
            assert channel.requests == 1  # what the connection counted is kept


async def test_name_that_does_not_resolve(resolution: Any) -> None:
    async with on_loopback(1) as (_, port):
        names = Names(port)
        resolution(names)
        with pytest.raises(zcrpc.Unavailable, match="not known"):
            await zcrpc.connect(f"tcp://store.test:{port}", balance="round-robin")
        waiting = asyncio.ensure_future(
            zcrpc.connect(
                f"tcp://store.test:{port}", Work, balance="round-robin", wait_for_ready=True, backoff=FAST
            ).__aenter__()
        )
        await until(lambda: names.asked >= 3)
        names.hosts = ["127.0.0.1"]
        work = await waiting
        assert await work.who() == 0
        await work.close()  # type: ignore[attr-defined]


async def test_first_of_a_names_addresses_that_answers(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Work(3)) as (_, address):
        port = int(address.rpartition(":")[2])

        async def resolve(address: addresses.Address) -> list[tuple[int, Any]]:
            return [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]

        monkeypatch.setattr("zcrpc.sockets.resolve", resolve)
        async with zcrpc.connect(f"tcp://store.test:{port}", Work) as work:
            assert await work.who() == 3
