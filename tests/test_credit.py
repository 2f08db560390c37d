"""The two halves of a stream against each other, without sockets: whatever the windows, items and pace, everything
arrives in order, no credit is overdrawn by more than a frame, and nobody waits for ever. Then the same with faults in
the code of credit, one at a time: each must be caught."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from zcrpc.codec import Codec
from zcrpc.service import items
from zcrpc.streams import Counters, Receiver, Sender, Streams
from zcrpc.wire import CREDIT, DATA, END, FRAME, Limits

# Of a frame, at most: a batch before its last item, and the largest item below.
LARGEST = FRAME.size + (32 << 10) + 41_000


class Wire:
    """What a `Connection` is to its streams; frames arrive at the other end when `carry` lets them."""

    pack_from = 1 << 63  # nothing is compressed

    def __init__(self, limits: Limits, peer: Limits, generator: random.Random) -> None:
        self.limits = limits
        self.peer = SimpleNamespace(limits=peer)
        self.reactor = SimpleNamespace(
            streams=Counters(), codec=Codec(), loop=asyncio.get_running_loop(), unsent=[], submits=True
        )
        self.pins: dict[int, Any] = {}
        self.generator = generator
        self.frames: deque[Any] = deque()
        self.broken: list[str] = []
        self.other: Wire
        self.streams = Streams(self)  # type: ignore[arg-type]

    def send_data(self, stream: int, header: bytearray, buffers: list[Any], length: int, flags: int) -> int:
        self.frames.append((DATA, stream, bytes(header), b"".join(bytes(each) for each in buffers)))
        if length and self.generator.random() < 0.5:  # by reference, and not gone at once
            token = len(self.pins) + 1
            self.pins[token] = SimpleNamespace(done=None)
            self.frames.append((None, token))
            return token
        return 0

    def send(self, kind: int, stream: int, method: int = 0, count: int = 0) -> None:
        self.frames.append((kind, stream, count))

    def carry(self) -> bool:
        """Flushes, then lets one frame arrive."""
        reactor = self.reactor
        unsent, reactor.unsent = reactor.unsent, []
        for sender in unsent:
            sender.dirty = False
            sender.flush()
        if not self.frames:
            return False
        kind, *rest = self.frames.popleft()
        if kind is None:
            self.pins[rest[0]].done()
        elif kind == DATA:
            self.other.streams.data(*rest)
        elif kind == CREDIT:
            self.other.streams.granted(*rest)
        else:
            assert kind == END
            receiver = self.other.streams.forget_receiver(rest[0])
            assert receiver is not None
            receiver.end()
        return True

    def unread(self) -> int:
        return 0

    def violated(self, what: str) -> None:
        self.broken.append(what)

    def stray_data(self, stream: int) -> None:
        self.broken.append(f"stray {stream}")

    def stream_failed(self, stream: int, error: Exception) -> None:
        self.broken.append(f"{stream}: {error}")


window = st.one_of(st.integers(1, 200), st.integers(200, 20_000), st.just(1 << 20))
limits = st.builds(
    Limits,
    header=st.sampled_from([2048, 4096, 65536]),  # no item below is longer
    payload=st.just(1 << 20),
    in_flight=st.just(10),
    stream_window=window,
    connection_window=window,
)
item = st.one_of(
    st.integers(0, 1 << 40),
    st.text(max_size=20),
    st.integers(0, 600).map(lambda size: b"b" * size),
    st.integers(500, 40_000).map(lambda size: memoryview(bytes(size))),
    st.lists(st.integers(500, 5000).map(bytes), max_size=3),
)


everything = given(
    limits,
    limits,
    st.lists(st.lists(item, max_size=150), min_size=1, max_size=4),
    st.integers(0, 1 << 30).map(random.Random),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@everything
def test_everything_arrives_in_order_whatever_the_windows(
    one: Limits, other: Limits, streams: list[list[Any]], generator: random.Random, abandons: bool
) -> None:
    asyncio.run(_exchange(one, other, streams, generator, abandons))


async def _exchange(
    one: Limits, other: Limits, streams: list[list[Any]], generator: random.Random, abandons: bool
) -> None:
    left, right = Wire(one, other, generator), Wire(other, one, generator)
    left.other, right.other = right, left
    found: list[list[Any]] = [[] for _ in streams]
    tasks, receivers = [], []
    for number, values in enumerate(streams):
        receiver = right.streams.receive(number + 1)
        receiver.expect(items(Any))
        receivers.append(receiver)
        tasks.append(asyncio.create_task(_produce(left.streams.send(number + 1, "it"), values, generator)))
        if abandons and number == 0:
            found[number] = values
        else:
            tasks.append(asyncio.create_task(_consume(receiver, found[number], generator)))
    idle = turn = 0
    abandoned_at = generator.randrange(30)
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        moved = [wire.carry() for wire in (left, right) for _ in range(generator.randrange(4))]
        idle = 0 if any(moved) else idle + 1
        abandoned = left.streams.senders.get(1)
        if idle == 20 and abandons and abandoned is not None and not abandoned.ended:  # what CANCEL does
            abandoned.close()
            left.send(END, 1)
        assert idle < 500, "everybody waits"
        assert not left.broken + right.broken
        assert not any(task.done() and task.exception() for task in tasks)
        if abandons and turn == abandoned_at:
            receivers[0].discard()
        turn += 1
        _check_credit(left, right, receivers, other)
    for task in tasks:
        task.result()
    assert found == streams
    assert abandons or left.reactor.streams.items_out == sum(map(len, streams))
    for sender in list(left.streams.senders.values()):
        sender.close()
    while left.carry() or right.carry():
        pass
    assert left.reactor.streams.open == right.reactor.streams.open == 0


def _check_credit(left: Wire, right: Wire, receivers: list[Receiver], window: Limits) -> None:
    """No credit comes from nowhere, and none is lost: what a peer may send, what waits to be taken, and what was taken
    and is not given back make up a window; and both ends know the same of what it may send."""
    waiting = [[cost for _, _, cost in receiver._queue] for receiver in receivers]
    for receiver, costs in zip(receivers, waiting, strict=True):
        assert sum(costs) < window.stream_window + LARGEST
        sender = left.streams.senders.get(receiver.stream)
        if sender is None or receiver.over or receiver._discarding:
            continue
        assert receiver._allowed + sum(costs) + receiver._taken == window.stream_window
        sent = [FRAME.size + len(frame[2]) + len(frame[3]) for frame in left.frames if _is(frame, DATA, sender)]
        granted = [frame[2] for frame in right.frames if _is(frame, CREDIT, sender)]
        assert sender.credit + sum(sent) + sum(granted) == receiver._allowed
    towards_all = sum(min(cost, window.stream_window) for costs in waiting for cost in costs)
    assert right.streams._allowed + towards_all + right.streams._taken == window.connection_window


def _is(frame: Any, kind: int, sender: Sender) -> bool:
    return bool(frame[:2] == (kind, sender.stream))


async def _produce(sender: Sender, values: list[Any], generator: random.Random) -> None:
    async def source() -> AsyncIterator[Any]:
        for value in values:
            if generator.random() < 0.05:
                await asyncio.sleep(0)
            yield value

    await sender.drive(source())
    sender.send_end()


async def _consume(receiver: Receiver, found: list[Any], generator: random.Random) -> None:
    async for value in receiver:
        found.append(value)
        if generator.random() < 0.2:
            await asyncio.sleep(0)
    receiver.discard()


_stream_gives_back, _give_back = Receiver._give_back, Streams.give_back
_granted, _send_end = Sender.granted, Sender.send_end


def nothing(*_: Any) -> None: ...


def always(*_: Any) -> bool:
    return True


def only_of_the_connection(receiver: Receiver, cost: int) -> None:
    receiver.streams.give_back(cost)


def of_stream_twice(receiver: Receiver, cost: int) -> None:
    _stream_gives_back(receiver, cost)
    if not receiver.over:
        receiver.streams.connection.send(CREDIT, receiver.stream, 0, cost)
        receiver._allowed += cost


def of_connection_twice(streams: Streams, cost: int) -> None:
    _give_back(streams, cost)
    _give_back(streams, cost)


def counts_twice(sender: Sender, count: int) -> None:
    _granted(sender, 2 * count)


def dropped_for_good(receiver: Receiver) -> None:
    receiver._queue.clear()
    receiver.batch.clear()


def end_before_the_rest(sender: Sender) -> None:
    _send_end(sender)
    sender.flush()


async def without_waiting(sender: Sender) -> None: ...


def unchecked(receiver: Receiver, header: bytes, payload: Any, cost: int) -> None:
    receiver._queue.append((header, payload, cost))
    receiver._wake()


FAULTS: dict[str, dict[tuple[type, str], Any]] = {
    "a stream's credit is never given back": {(Receiver, "_give_back"): only_of_the_connection},
    "a stream's credit is given back twice": {(Receiver, "_give_back"): of_stream_twice},
    "the connection's credit is never given back": {(Streams, "give_back"): nothing},
    "the connection's credit is given back twice": {(Streams, "give_back"): of_connection_twice},
    "what is dropped is not given back": {(Receiver, "_drop"): dropped_for_good},
    "credit counts twice": {(Sender, "granted"): counts_twice},
    "the sender does not look at its credit": {(Streams, "may_send"): always},
    "nobody looks at credit": {
        (Streams, "may_send"): always, (Streams, "_charge"): always, (Receiver, "data"): unchecked
    },
    "the connection's credit is not spent": {(Streams, "spend"): nothing},
    "credit wakes nobody": {(Sender, "resume"): nothing},
    "who has no credit is forgotten": {(Streams, "may_send"): lambda self, one: self._credit > 0 and one.credit > 0},
    "the end does not wait for the items": {
        (Sender, "_finish"): without_waiting, (Sender, "send_end"): end_before_the_rest
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for (kind, name), faulty in FAULTS[fault].items():
        monkeypatch.setattr(kind, name, faulty)

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    @everything
    def exchange(
        one: Limits, other: Limits, streams: list[list[Any]], generator: random.Random, abandons: bool
    ) -> None:
        asyncio.run(_exchange(one, other, streams, generator, abandons))

    with pytest.raises(AssertionError):
        exchange()
