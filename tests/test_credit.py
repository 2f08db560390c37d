"""The two halves of a stream against each other, without sockets: whatever the windows, items and pace, everything
arrives in order, no credit is overdrawn by more than a frame, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
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


@settings(max_examples=150, deadline=None)
@given(
    limits,
    limits,
    st.lists(st.lists(item, max_size=150), min_size=1, max_size=4),
    st.integers(0, 1 << 30).map(random.Random),
    st.booleans(),
)
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
            receiver.discard()
            found[number] = values
        else:
            tasks.append(asyncio.create_task(_consume(receiver, found[number], generator)))
    idle = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        moved = [wire.carry() for wire in (left, right) for _ in range(generator.randrange(4))]
        idle = 0 if any(moved) else idle + 1
        if idle == 20 and abandons and 1 in left.streams.senders:  # what CANCEL does
            left.streams.senders[1].close()
            left.send(END, 1)
        assert idle < 500, "everybody waits"
        assert not left.broken + right.broken
        assert not any(task.done() and task.exception() for task in tasks)
        for receiver in receivers:
            assert sum(cost for _, _, cost in receiver._queue) < other.stream_window + LARGEST
    for task in tasks:
        task.result()
    assert found == streams
    assert abandons or left.reactor.streams.items_out == sum(map(len, streams))
    for sender in list(left.streams.senders.values()):
        sender.close()
    while left.carry() or right.carry():
        pass
    assert left.reactor.streams.open == right.reactor.streams.open == 0


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
