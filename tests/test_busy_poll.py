"""Busy polling: begins where traffic is dense, lets others run, ends when nothing comes."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import zcrpc
from zcrpc import busy_poll
from zcrpc.busy_poll import BusyPoll


class Loop:
    """Of an event loop what is needed: callbacks that are run turn by turn."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object]) -> Any:
        self.ready.append(callback)
        return self

    def cancel(self) -> None:
        self.ready.clear()

    def turn(self) -> None:
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()


class Bench:
    """A clock, a loop, and what polls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5) -> None:
        self.now, self.polls, self.finds = 100.0, 0, False
        monkeypatch.setattr(busy_poll.time, "monotonic", lambda: self.now)
        self.loop = Loop()
        self.busy = BusyPoll(self.loop, seconds, self._poll)  # type: ignore[arg-type]

    def _poll(self) -> None:
        self.polls += 1
        if self.finds:
            self.busy.came()

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.loop.turn()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_sparse_events_keep_no_loop_awake(bench: Bench) -> None:
    for _ in range(3):
        bench.busy.came()
        bench.pass_by(0.75)
    assert bench.polls == 0


def test_dense_events_are_looked_for_once_in_each_turn_until_nothing_comes(bench: Bench) -> None:
    bench.busy.came()
    bench.pass_by(0.25)
    bench.busy.came()
    assert len(bench.loop.ready) == 1
    for polls in (1, 2):
        bench.pass_by(0.25)
        assert (bench.polls, len(bench.loop.ready)) == (polls, 1)  # others have their turn between
    bench.pass_by(0.25)
    assert (bench.polls, bench.loop.ready) == (3, [])


def test_each_event_keeps_the_loop_awake_for_longer(bench: Bench) -> None:
    bench.busy.came()
    bench.busy.came()
    bench.finds = True
    for _ in range(10):
        bench.pass_by(0.375)
        assert len(bench.loop.ready) == 1
    bench.finds = False
    bench.pass_by(0.375)
    bench.pass_by(0.375)
    assert bench.loop.ready == []


def test_closed_it_does_nothing_more(bench: Bench) -> None:
    bench.busy.came()
    bench.busy.came()
    bench.busy.close()
    bench.pass_by(0.0)
    assert bench.polls == 0


class Echo(zcrpc.Service):
    @zcrpc.method
    async def echo(self, value: bytes) -> bytes:
        return value


async def test_calls_over_loops_that_stay_awake() -> None:
    server = zcrpc.Server(Echo(), busy_poll=0.01)
    async with server.listen("tcp://127.0.0.1:0") as address, zcrpc.connect(address, Echo, busy_poll=0.01) as client:
        for number in range(200):
            assert await client.echo(b"%d" % number) == b"%d" % number
        await asyncio.sleep(0.05)
        assert await client.echo(b"again") == b"again"


@pytest.mark.parametrize("seconds", [-1.0, 1.5, float("nan")])
async def test_a_wrong_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="busy_poll"):
        zcrpc.Server(Echo(), busy_poll=seconds)
    with pytest.raises(ValueError, match="busy_poll"):
        zcrpc.connect("tcp://127.0.0.1:1", Echo, busy_poll=seconds)
