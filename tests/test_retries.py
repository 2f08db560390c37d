"""Backoff, budget and choice by themselves, and which calls are made again."""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Serving, Waits, until
from hypothesis import given
from hypothesis import strategies as st
from raw_peer import DATA, ERROR, GOAWAY, PREFACE, RESPONSE, UNPROCESSED, RawPeer, RawServer, frame, hello

import zcrpc
from zcrpc.errors import Status
from zcrpc.retries import Budget

FAST = zcrpc.Backoff(initial=0.005, limit=0.05)


# ---- backoff


@given(
    st.floats(0.001, 10),
    st.floats(1, 100),
    st.floats(0, 1),
    st.floats(10, 1000),
    st.integers(1, 10_000),
    st.floats(0, 1),
)
def test_backoff_stays_within_its_bounds(
    initial: float, factor: float, jitter: float, limit: float, failures: int, draw: float
) -> None:
    backoff = zcrpc.Backoff(initial=initial, factor=factor, jitter=jitter, limit=limit)
    delay = backoff.delay(failures, lambda low, high: low + draw * (high - low))
    assert initial * (1 - jitter) * 0.999 <= delay <= limit * (1 + jitter) * 1.001


def test_backoff_grows_from_initial_to_limit() -> None:
    backoff = zcrpc.Backoff(initial=1, factor=2, jitter=0, limit=10)
    assert [backoff.delay(n) for n in range(7)] == [0, 1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize("wrong", [{"initial": 0}, {"factor": 0.5}, {"jitter": 2}, {"limit": 0.01}, {"initial": -1}])
def test_backoff_that_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        zcrpc.Backoff(**wrong)


# ---- budget


def test_budget_allows_half_of_its_tokens_and_refills_by_successes() -> None:
    successes = 0
    budget = Budget(zcrpc.Retries(tokens=10, ratio=0.5), lambda: successes)
    assert [budget.take() for _ in range(12)] == [True] * 4 + [False] * 8
    assert budget.tokens == 0
    successes = 12  # 6 tokens
    assert not budget.take()  # 5 are left, which is not more than half
    successes = 16
    assert budget.take()
    successes = 10_000
    assert budget.take()
    assert budget.tokens == 9  # never more than there is room for


@given(st.lists(st.integers(0, 50)))
def test_budget_is_that_of_grpc(rounds: list[int]) -> None:
    """Successes are counted late; the result is that of counting each at once."""
    total, plain = 0, 20.0
    budget = Budget(zcrpc.Retries(tokens=20, ratio=0.25), lambda: total)
    for successes in rounds:
        total += successes
        for _ in range(successes):
            plain = min(20.0, plain + 0.25)
        plain = max(0.0, plain - 1)
        assert budget.take() == (plain > 10)
        assert budget.tokens == plain


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"tokens": 0}, {"ratio": -1}, {"patience": -1}])
def test_retries_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="retries"):
        zcrpc.Retries(**wrong)


# ---- calls


class Flaky(Waits):
    """Fails as often as it is told, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self.calls: Counter[str] = Counter()

    def _fail(self, name: str) -> int:
        self.calls[name] += 1
        if self.failures:
            self.failures -= 1
            raise zcrpc.Unavailable("not just now")
        return self.calls[name]

    @zcrpc.method(idempotent=True)
    def read(self) -> int:
        return self._fail("read")

    @zcrpc.method
    def write(self) -> int:
        return self._fail("write")

    @zcrpc.method(idempotent=True)
    async def hold(self) -> str:
        self.calls["hold"] += 1
        return await self.wait()


async def test_idempotent_methods_are_called_again(serving: Serving) -> None:
    service = Flaky()
    async with serving(service) as (_, address), zcrpc.connect(address, Flaky, retries=quick()) as flaky:
        service.failures = 3
        assert await flaky.read() == 4
        service.failures = 4
        with pytest.raises(zcrpc.Unavailable, match="not just now"):
            await flaky.read()
        assert service.calls["read"] == 8


def quick(**changes: Any) -> zcrpc.Retries:
    return zcrpc.Retries(backoff=FAST, **changes)


async def test_others_are_not(serving: Serving) -> None:
    service = Flaky()
    async with serving(service) as (_, address), zcrpc.connect(address, Flaky, retries=quick()) as flaky:
        service.failures = 1
        with pytest.raises(zcrpc.Unavailable) as caught:
            await flaky.write()
        assert not caught.value.unprocessed
        service.failures = 2
        assert await flaky.write(idempotent=True) == 4  # type: ignore[call-arg]
        service.failures = 1
        with pytest.raises(zcrpc.Unavailable):
            await flaky.read(idempotent=False)  # type: ignore[call-arg]


async def test_untyped_calls_say_so_themselves(serving: Serving) -> None:
    service = Flaky()
    async with serving(service) as (_, address), zcrpc.connect(address, retries=quick()) as client:
        service.failures = 1
        with pytest.raises(zcrpc.Unavailable):
            await client.call("Flaky.read")
        service.failures = 1
        assert await client.call("Flaky.read", idempotent=True) == 3


async def test_retries_can_be_turned_off(serving: Serving) -> None:
    service = Flaky()
    async with serving(service) as (_, address), zcrpc.connect(address, Flaky, retries=None) as flaky:
        service.failures = 1
        with pytest.raises(zcrpc.Unavailable):
            await flaky.read()
        assert service.calls["read"] == 1


async def test_other_statuses_are_final_unless_named(serving: Serving) -> None:
    class Broken(zcrpc.Service):
        calls = 0

        @zcrpc.method(idempotent=True)
        def read(self) -> int:
            self.calls += 1
            raise zcrpc.Aborted("again")

    service = Broken()
    async with serving(service) as (_, address):
        async with zcrpc.connect(address, Broken, retries=quick()) as broken:
            with pytest.raises(zcrpc.Aborted):
                await broken.read()
            assert service.calls == 1
        statuses = frozenset({Status.ABORTED})
        async with zcrpc.connect(address, Broken, retries=quick(statuses=statuses, attempts=3)) as broken:
            with pytest.raises(zcrpc.Aborted):
                await broken.read()
            assert service.calls == 4


async def test_budget_stops_retries(serving: Serving) -> None:
    service = Flaky()
    async with serving(service) as (_, address):
        async with zcrpc.connect(address, Flaky, retries=quick(tokens=10, ratio=0.1)) as flaky:
            service.failures = 1_000_000
            for _ in range(50):
                with pytest.raises(zcrpc.Unavailable):
                    await flaky.read()
            assert service.calls["read"] == 54  # four tokens above half
            service.failures = 0
            for _ in range(100):
                await flaky.read()
            service.failures = 1
            await flaky.read()


async def test_retries_end_with_the_deadline(serving: Serving) -> None:
    service = Flaky()
    slow = zcrpc.Retries(attempts=100, backoff=zcrpc.Backoff(initial=0.05, factor=1, limit=0.05))
    async with serving(service) as (_, address), zcrpc.connect(address, Flaky, retries=slow) as flaky:
        service.failures = 1000
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises((zcrpc.Unavailable, zcrpc.DeadlineExceeded)):
            await flaky.read(timeout=0.3)  # type: ignore[call-arg]
        assert loop.time() - begun < 0.4
        assert 3 <= service.calls["read"] <= 8


async def test_cancelling_ends_a_retry(serving: Serving) -> None:
    service = Flaky()
    slow = zcrpc.Retries(backoff=zcrpc.Backoff(initial=5, limit=5))
    async with serving(service) as (_, address), zcrpc.connect(address, Flaky, retries=slow) as flaky:
        service.failures = 1000
        task = asyncio.ensure_future(flaky.read())
        await until(lambda: service.calls["read"] == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_idempotence_is_inherited_with_the_decorator() -> None:
    from zcrpc.service import plans

    class Base(zcrpc.Service):
        @zcrpc.method(idempotent=True)
        def one(self) -> None: ...

        @zcrpc.method(idempotent=True)
        def two(self) -> None: ...

        @zcrpc.method
        def three(self) -> None: ...

    class Derived(Base):
        def one(self) -> None: ...

        @zcrpc.method
        def two(self) -> None: ...

    assert {name: plan.idempotent for name, plan in plans(Derived).items()} == {
        "one": True,
        "two": False,
        "three": False,
    }


def test_names_of_options_belong_to_the_caller() -> None:
    class Odd(zcrpc.Service):
        @zcrpc.method
        def wait(self, idempotent: bool) -> None: ...

    with pytest.raises(TypeError, match="'idempotent' belongs to the caller"):
        zcrpc.Server(Odd())


# ---- what was never begun


async def greet(peer: RawPeer) -> None:
    peer.send(PREFACE + hello(methods={"Store.get": 1}))
    await peer.reader.readexactly(len(PREFACE))
    await peer.frame()


class Sequence:
    """A server that behaves differently on each connection; the last behaviour is to answer."""

    def __init__(self, *behaviours: Any) -> None:
        self.behaviours = list(behaviours)
        self.connections = 0

    async def __call__(self, peer: RawPeer) -> None:
        self.connections += 1
        await greet(peer)
        if self.behaviours:
            await self.behaviours.pop(0)(peer)
            return
        while True:
            request = await peer.frame(timeout=30)
            peer.send(frame(RESPONSE, ["answer"], stream=request.stream))


async def refuse(peer: RawPeer) -> None:
    request = await peer.frame()
    peer.send(frame(GOAWAY, ["maintenance"], method=Status.UNAVAILABLE))
    peer.send(frame(ERROR, ["not served"], method=Status.UNAVAILABLE, stream=request.stream, flags=UNPROCESSED))
    await peer.closed()


async def part(peer: RawPeer) -> None:
    """Says that what was not answered was not begun, and closes."""
    await peer.frame()
    peer.send(frame(GOAWAY, ["maintenance"], method=Status.UNAVAILABLE, flags=UNPROCESSED))
    await asyncio.sleep(0.02)


async def leave(peer: RawPeer) -> None:
    """Closes without saying so."""
    await peer.frame()
    peer.send(frame(GOAWAY, ["maintenance"], method=Status.UNAVAILABLE))
    await asyncio.sleep(0.02)


async def die(peer: RawPeer) -> None:
    await peer.frame()
    peer.abort()


@pytest.mark.parametrize("behaviour", [refuse, part])
async def test_what_was_not_begun_is_made_again(behaviour: Any) -> None:
    sequence = Sequence(behaviour)
    async with RawServer(sequence) as address, zcrpc.connect(address, backoff=FAST) as client:
        assert await client.call("Store.get", timeout=5) == "answer"
        assert sequence.connections == 2


@pytest.mark.parametrize("behaviour", [leave, die])
async def test_what_may_have_been_begun_is_not(behaviour: Any) -> None:
    sequence = Sequence(behaviour)
    async with RawServer(sequence) as address, zcrpc.connect(address, backoff=FAST) as client:
        with pytest.raises(zcrpc.Unavailable) as caught:
            await client.call("Store.get", timeout=5)
        assert not caught.value.unprocessed
        assert await client.call("Store.get", timeout=5) == "answer"  # over another connection


@pytest.mark.parametrize("behaviour", [leave, die, part, refuse])
async def test_idempotent_calls_survive_anything(behaviour: Any) -> None:
    sequence = Sequence(behaviour, behaviour)
    async with RawServer(sequence) as address, zcrpc.connect(address, backoff=FAST) as client:
        assert await client.call("Store.get", timeout=5, idempotent=True) == "answer"
        assert sequence.connections == 3


async def test_moving_has_an_end() -> None:
    sequence = Sequence(*[refuse] * 50)
    async with RawServer(sequence) as address, zcrpc.connect(address, backoff=FAST) as client:
        with pytest.raises(zcrpc.Unavailable, match="not served") as caught:
            await client.call("Store.get", timeout=20)
        assert caught.value.unprocessed
        assert sequence.connections <= 10


async def test_request_that_was_not_sent_to_its_end_is_made_again() -> None:
    async def stop_reading(peer: RawPeer) -> None:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        peer.abort()

    sequence = Sequence(stop_reading)
    async with RawServer(sequence) as address, zcrpc.connect(address, backoff=FAST) as client:
        assert await client.call("Store.get", bytes(30 << 20), timeout=20) == "answer"
        assert sequence.connections == 2


# ---- streams


async def answer_items(peer: RawPeer) -> None:
    request = await peer.frame()
    peer.send(frame(DATA, [1, 2, 3], stream=request.stream) + frame(RESPONSE, stream=request.stream))
    await peer.closed()


async def break_off(peer: RawPeer) -> None:
    request = await peer.frame()
    peer.send(frame(DATA, [1], stream=request.stream))
    await asyncio.sleep(0.02)
    peer.send(frame(GOAWAY, ["maintenance"], method=Status.UNAVAILABLE, flags=UNPROCESSED))
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("behaviours", [[refuse], [part], [refuse, part, refuse]])
async def test_streams_that_were_not_begun_are_begun_elsewhere(behaviours: list[Any]) -> None:
    sequence = Sequence(*behaviours, answer_items)
    async with RawServer(sequence) as address, zcrpc.connect(address, backoff=FAST) as client:
        assert [item async for item in client.stream("Store.get", timeout=5)] == [1, 2, 3]
        assert sequence.connections == len(behaviours) + 1


@pytest.mark.parametrize("behaviour", [leave, die, break_off])
async def test_streams_that_were_begun_are_not(behaviour: Any) -> None:
    async with RawServer(Sequence(behaviour)) as address, zcrpc.connect(address, backoff=FAST) as client:
        stream = client.stream("Store.get", timeout=5)
        if behaviour is break_off:
            assert await anext(stream) == 1
        with pytest.raises(zcrpc.Unavailable):
            await anext(stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_items_are_not_produced_twice(stream: bool) -> None:
    produced = []

    async def items() -> Any:
        for n in range(3):
            produced.append(n)
            yield n

    async with RawServer(Sequence(refuse)) as address, zcrpc.connect(address, backoff=FAST) as client:
        with pytest.raises(zcrpc.Unavailable) as caught:
            if stream:
                await client.stream("Store.get", items(), timeout=5).__anext__()
            else:
                await client.call("Store.get", items(), timeout=5, idempotent=True)
        assert caught.value.unprocessed
        assert produced in ([], [0, 1, 2])


async def test_streams_wait_for_the_connection(serving: Serving) -> None:
    class Log(zcrpc.Service):
        @zcrpc.method
        async def tail(self, count: int) -> AsyncIterator[int]:
            for n in range(count):
                yield n

        @zcrpc.method
        async def load(self, rows: AsyncIterator[int]) -> int:
            return sum([row async for row in rows])

    async with serving(Log()) as (_, address), zcrpc.connect(address, Log, idle_timeout=0.05) as log:
        client = log.client  # type: ignore[attr-defined]
        for _ in range(2):
            await until(lambda: client.state is zcrpc.State.IDLE)
            assert [n async for n in log.tail(3)] == [0, 1, 2]
            await until(lambda: client.state is zcrpc.State.IDLE)
            assert await log.load([1, 2, 3]) == 6  # type: ignore[arg-type]
        await client.close()
        with pytest.raises(zcrpc.Unavailable, match="client was closed"):
            await anext(log.tail(1))


class Failing(zcrpc.Service):
    @zcrpc.method
    async def fail(self, value: Any) -> None:
        raise zcrpc.NotFound(str(value))


@pytest.mark.parametrize("argument", [1, [b"long" * 1000]], ids=["in C", "in Python"])
@pytest.mark.parametrize("idempotent", [False, True])
async def test_what_a_call_failed_with_needs_no_garbage_collector(
    serving: Serving, argument: Any, idempotent: bool
) -> None:
    retries = zcrpc.Retries(attempts=2, statuses=frozenset({Status.NOT_FOUND}), backoff=FAST)
    async with serving(Failing()) as (_, address), zcrpc.connect(address, retries=retries) as client:
        gc.disable()
        try:
            with pytest.raises(zcrpc.NotFound) as caught:
                await client.call("Failing.fail", argument, idempotent=idempotent)
            error = weakref.ref(caught.value)
            del caught
            await asyncio.sleep(0)  # the task was woken with it
            assert error() is None
        finally:
            gc.enable()
        assert client.stats().requests == 1 + idempotent
