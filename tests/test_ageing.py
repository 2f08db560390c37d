"""Connections that have reached their age: the age by itself, and through real sockets."""

import asyncio
from typing import Any

import pytest
from clock import Clock
from conftest import Serving, Waits, until
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_peer import ERROR, GOAWAY, RESPONSE, UNPROCESSED, RawPeer

import zcrpc
from zcrpc.ageing import Age, Ageing


class AgeingClock(Clock):
    """A connection that grows old."""

    def __init__(self, ageing: Ageing, busy_until: float = 0.0) -> None:
        super().__init__()
        self.busy_until = busy_until
        self.item = Age(self, ageing)

    def retire(self, why: str) -> None:
        self.said.append(("retire", self.now))

    def is_done(self) -> bool:
        return self.now >= self.busy_until

    def part(self, why: str) -> None:
        self.said.append(("part", self.now))

    def cancel_calls(self, why: str) -> None:
        self.said.append(("cancel", self.now))
        self.busy_until = 0.0


@settings(deadline=None)
@given(st.floats(0.1, 50), st.floats(0, 20), st.none() | st.floats(0, 20))
def test_it_ends_when_its_calls_do_or_when_the_grace_does(age: float, busy_for: float, grace: float | None) -> None:
    clock = AgeingClock(Ageing(age=age, grace=grace))
    clock.run(0.899 * age)
    assert not clock.said
    clock.busy_until = 1.1 * age + busy_for
    clock.run(1.11 * age + busy_for + 1)
    (first, retired), *_, (last, parted) = clock.said
    assert (first, last) == ("retire", "part")
    assert 0.9 * age <= retired <= 1.1 * age * (1 + 1e-9)
    assert clock.due is None
    if ("cancel" in [word for word, _ in clock.said]) and grace is not None:
        assert grace - 1e-6 <= parted - retired <= grace + 0.0501
    else:
        assert busy_for - 1e-6 <= parted - retired
        assert parted - 1.1 * age - busy_for <= 0.0501


def test_connections_made_together_do_not_go_together() -> None:
    ages = {AgeingClock(Ageing(age=100)).due for _ in range(50)}
    assert len(ages) > 40
    assert max(filter(None, ages)) - min(filter(None, ages)) > 5


def test_one_that_is_closed_is_left_alone() -> None:
    clock = AgeingClock(Ageing(age=1))
    clock.item.stop()
    clock.run(10)
    assert not clock.said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_connection_age": 0}, "max_connection_age=0: must be between 0.01"),
        ({"max_connection_age": 5, "max_connection_age_grace": -1}, "max_connection_age_grace=-1: must be"),
    ],
)
def test_impossible_ages(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zcrpc.Server(Waits(), **options)


async def test_calls_in_flight_finish_and_new_ones_are_refused_unseen(serving: Serving) -> None:
    waits = Waits()
    async with serving(waits, max_connection_age=0.2) as (server, address), await RawPeer.greeted(address) as peer:
        peer.call("Waits.wait", stream=1)
        goaway = await peer.frame()
        assert (goaway.kind, goaway.method, goaway.flags) == (GOAWAY, zcrpc.Status.UNAVAILABLE, 0)
        assert goaway.header == ["the connection has reached its age of 0.2 s"]
        peer.call("Waits.wait", stream=2)
        refusal = await peer.frame()
        assert (refusal.kind, refusal.stream, refusal.flags) == (ERROR, 2, UNPROCESSED)
        waits.gate.set()
        answer, farewell = await peer.closed()
        assert (answer.kind, answer.stream) == (RESPONSE, 1)
        assert (farewell.kind, farewell.flags) == (GOAWAY, UNPROCESSED)
        assert (waits.began, server.stats().retired) == (1, 1)


async def test_the_grace_ends_calls_that_do_not(serving: Serving) -> None:
    waits = Waits()
    options = {"max_connection_age": 0.1, "max_connection_age_grace": 0.1}
    async with serving(waits, **options) as (_, address), zcrpc.connect(address, Waits) as client:
        with pytest.raises(zcrpc.Unavailable, match="was cancelled: the connection has reached its age"):
            await client.wait()
        assert waits.cancelled == 1


async def test_clients_lose_no_call(serving: Serving) -> None:
    class Peers(zcrpc.Service):
        @zcrpc.method
        async def peer(self) -> str:
            await asyncio.sleep(0.001)
            return zcrpc.context().peer

    async with serving(Peers(), max_connection_age=0.1) as (server, address):
        async with zcrpc.connect(address, Peers) as client:
            seen = set()
            async with asyncio.timeout(20):
                while len(seen) < 4:
                    seen |= {*await asyncio.gather(*(client.peer() for _ in range(20)))}
            assert client.stats().errors == 0  # type: ignore[attr-defined]
            await until(lambda: server.stats().retired >= 3)
