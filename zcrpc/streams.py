"""Streams: items one after the other, in either direction of a call, with credit that keeps a fast producer from
running ahead of a slow consumer.

    async iterable → Sender → DATA frames → Receiver → async iterator
                            ← CREDIT ←

Both ends of a connection have both halves, and both are the same at a client and a server.

A sender encodes each item at once, so that the producer may change it afterwards, and collects what is produced
without suspending: a *batch* is sent when it is full, or when the loop's turn is over (`Reactor.flush`). A batch with
16 KiB or more of buffers is sent by reference, and the producer goes on when the kernel has taken it: so a producer may
use its buffer again, and nothing of a stream can pass what was sent before.

Credit is bytes of DATA frames, per stream and for all streams of a connection. While both are above zero a frame may be
sent, of any size: so an item of any size passes, and a receiver holds its window and one frame at most. Towards the
connection a frame counts no more than a stream's window, lest one slow consumer of large items stop all other streams.
A receiver gives credit back when its consumer takes what came, half a window at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from zcrpc.codec import COPY_BELOW
from zcrpc.compression import Packed
from zcrpc.errors import Cancelled, ResourceExhausted, ZcrpcError
from zcrpc.wire import CREDIT, END, FRAME, MOST_CREDIT

if TYPE_CHECKING:
    from zcrpc.connection import Connection
    from zcrpc.service import Items

# A batch is sent when it has so many items, or bytes. What longer ones gain is a few ns per item; what they cost is
# latency and, at the receiver, the memory of decoded items.
_BATCH_ITEMS: Final = 64
_BATCH_BYTES: Final = 32 << 10
# After so many batches a producer that never suspends lets the loop have its turn: about half a millisecond.
_TURN_BATCHES: Final = 8
# Bytes of small frames that wait for a peer that does not read, from which on a producer waits too; and how often it
# looks again. Credit bounds it as well, but that is for the peer to choose.
_UNREAD: Final = 1 << 20
_UNREAD_SECONDS: Final = 0.005

_EMPTY: Final = b"\xdc\x00\x00"  # an array of 16-bit length: the beginning of every batch


class UnsendableItem(TypeError):
    """An item of a stream cannot be encoded."""


class Counters:
    """What the streams of a reactor's connections did."""

    __slots__ = ("items_in", "items_out", "open", "stalls")

    def __init__(self) -> None:
        self.open = 0  # halves of streams, sending and receiving
        self.items_in = 0
        self.items_out = 0
        self.stalls = 0  # times that a sender had to wait for credit


def is_stream(value: Any) -> bool:
    """Whether an argument of an untyped call is a stream of items."""
    return hasattr(type(value), "__aiter__")


def split(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The arguments of an untyped call without the stream of items among them; the items, or None. TypeError if there
    are several."""
    streams = [each for each in (*arguments, *keywords.values()) if is_stream(each)]
    if len(streams) > 1:
        raise TypeError("a call has one stream of items at most")
    rest = tuple(each for each in arguments if not is_stream(each))
    named = {name: each for name, each in keywords.items() if not is_stream(each)}
    return rest, named, streams[0] if streams else None


async def _one_by_one(source: Iterable[Any]) -> AsyncIterator[Any]:
    for item in source:
        yield item


class Streams:
    """The streams of one connection, and the credit that they share."""

    __slots__ = (
        "_allowed",
        "_credit",
        "_half",
        "_peer_window",
        "_stalled",
        "_taken",
        "_window",
        "connection",
        "counters",
        "receivers",
        "senders",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.counters = connection.reactor.streams
        self.receivers: dict[int, Receiver] = {}
        self.senders: dict[int, Sender] = {}
        peer, own = connection.peer.limits, connection.limits
        self._credit = peer.connection_window
        self._peer_window = peer.stream_window
        self._stalled: dict[Sender, None] = {}  # those without credit, first come, first served
        self._allowed = own.connection_window  # credit that the peer has
        self._half = (own.connection_window + 1) // 2
        self._window = own.stream_window
        self._taken = 0  # to be given back

    def receive(self, stream: int) -> Receiver:
        """The receiving half of a new stream."""
        receiver = self.receivers[stream] = Receiver(self, stream, self._window)
        self.counters.open += 1
        return receiver

    def send(self, stream: int, name: str) -> Sender:
        """The sending half of a new stream, of the method `name`."""
        sender = self.senders[stream] = Sender(self, stream, name, self._peer_window)
        self.counters.open += 1
        return sender

    def forget_receiver(self, stream: int) -> Receiver | None:
        """Nothing more comes on this stream that anybody would want."""
        receiver = self.receivers.pop(stream, None)
        if receiver is not None:
            receiver.over = True
            self.counters.open -= 1
        return receiver

    def close(self, error: ZcrpcError) -> None:
        """The connection is gone: consumers fail when they have taken what came."""
        for sender in list(self.senders.values()):
            sender.close()
        for stream in list(self.receivers):
            receiver = self.forget_receiver(stream)
            if receiver is not None:
                receiver.end(error)

    # ---- called by the connection, for frames

    def data(self, stream: int, header: bytes, payload: bytes | memoryview | Packed) -> None:
        """Items came."""
        cost = FRAME.size + len(header) + len(payload)
        if not self._charge(cost):
            return
        receiver = self.receivers.get(stream)
        if receiver is None:
            self.give_back(cost)
            self.connection.stray_data(stream)
        else:
            receiver.data(header, payload, cost)

    def refused(self, stream: int, length: int) -> None:
        """Items came whose buffers, of so many bytes with the header, are over the limit and are discarded."""
        if self._charge(FRAME.size + length):
            self.give_back(FRAME.size + length)

    def granted(self, stream: int, count: int) -> None:
        """Credit came."""
        if not count:
            self.connection.violated("a credit of 0 bytes")
        elif stream:
            sender = self.senders.get(stream)
            if sender is not None:
                sender.granted(count)
        elif self._credit + count > MOST_CREDIT:
            self.connection.violated(f"credit of {self._credit + count} bytes in all")
        else:
            self._credit += count
            for sender in list(self._stalled):
                if self._credit <= 0:
                    break
                sender.resume()

    # ---- credit

    def may_send(self, sender: Sender) -> bool:
        """Whether the connection has credit; if not, the sender will be resumed when it has."""
        if self._credit > 0 and sender.credit > 0:
            if self._stalled:
                self._stalled.pop(sender, None)
            return True
        if sender not in self._stalled:
            self._stalled[sender] = None
            self.counters.stalls += 1
        return False

    def spend(self, cost: int) -> None:
        """A frame is sent."""
        self._credit -= min(cost, self._peer_window)

    def forget_sender(self, sender: Sender) -> None:
        """Nothing more is sent on this stream."""
        self._stalled.pop(sender, None)
        del self.senders[sender.stream]
        self.counters.open -= 1

    def give_back(self, cost: int) -> None:
        """What came was taken, or discarded."""
        self._taken += min(cost, self._window)
        if self._taken >= self._half:
            self.connection.send(CREDIT, 0, 0, self._taken)
            self._allowed += self._taken
            self._taken = 0

    def _charge(self, cost: int) -> bool:
        if self._allowed <= 0:
            self.connection.violated("items beyond the credit of the connection")
            return False
        self._allowed -= min(cost, self._window)
        return True


class Sender:
    """The sending half of a stream."""

    __slots__ = (
        "_buffers",
        "_codec",
        "_count",
        "_header",
        "_late",
        "_length",
        "_limits",
        "_pinned",
        "_turns",
        "_waiter",
        "closed",
        "credit",
        "dirty",
        "ended",
        "name",
        "stream",
        "streams",
        "token",
    )

    def __init__(self, streams: Streams, stream: int, name: str, window: int) -> None:
        self.streams = streams
        self.stream = stream
        self.name = name
        self.credit = window
        self.closed = False  # nothing more may be sent
        self.ended = False  # END was sent
        self.token = 0  # of the payload that is being sent by reference
        self._codec = streams.connection.reactor.codec
        self._limits = streams.connection.peer.limits
        self._header = bytearray(_EMPTY)
        self._buffers: list[bytes | memoryview] = []
        self._length = 0
        self._count = 0
        self._late: list[Any] = []  # an item that did not go into the batch
        self.dirty = False  # the reactor will flush us
        self._pinned = False
        self._turns = 0
        self._waiter: asyncio.Future[None] | None = None

    def __str__(self) -> str:
        return f"{self.streams.connection}: stream {self.stream}, {self.name}()"

    async def drive(self, source: Any) -> None:
        """Sends all items of an iterable, asynchronous or not; returns when they are sent. Closes an asynchronous
        generator in any case."""
        put = self._put
        iterator = aiter(source) if hasattr(source, "__aiter__") else _one_by_one(source)
        try:
            async for item in iterator:
                if put(item):
                    await self._go_on()
        except Exception:
            await self._finish()  # what came before the error
            raise
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        await self._finish()

    def send_end(self) -> None:
        """Says that there are no more items."""
        if not self.closed:
            self.ended = True
            self.streams.connection.send(END, self.stream)

    def close(self) -> None:
        """Sends nothing more."""
        if self.closed:
            return
        self.closed = True
        self._clear()
        self._late.clear()
        self.streams.forget_sender(self)
        self._wake()

    def wait_for(self, token: int) -> None:
        """Sends nothing before the payload under this token has been sent."""
        pin = self.streams.connection.pins.get(token) if token else None
        if pin is not None:
            self.token = token
            self._pinned = True
            pin.done = self._released

    # ---- batches

    def _put(self, item: Any) -> bool:
        """Puts an item into the batch. True if the producer is to wait."""
        header, before = self._header, self._length
        mark, pieces = len(header), len(self._buffers)
        try:
            self._length = self._codec.append(item, header, self._buffers, before)
        except (TypeError, ValueError) as error:
            del header[mark:], self._buffers[pieces:]
            raise UnsendableItem(f"an item of {self.name}() cannot be sent: {error}") from error
        if len(header) > self._limits.header or self._length > self._limits.payload:
            return self._too_much(item, mark, pieces, before)
        self._count += 1
        if not self.dirty:
            self.dirty = True
            reactor = self.streams.connection.reactor
            reactor.unsent.append(self)
            if not reactor.submits:
                reactor.wake()
        length = self._length
        # A buffer that is referenced, not copied, is the producer's again only when it has been sent.
        return self._count >= _BATCH_ITEMS or length - before >= COPY_BELOW or len(header) + length >= _BATCH_BYTES

    def _too_much(self, item: Any, mark: int, pieces: int, length: int) -> bool:
        """The batch is over what the peer takes in a frame: the item goes into the next one."""
        if not self._count:
            self.streams.connection.check_size(self._header, self._length, f"an item of {self.name}()")
        del self._header[mark:], self._buffers[pieces:]
        self._length = length
        self._late.append(item)
        return True

    def flush(self) -> bool:
        """Sends the batch, if it may be sent. True if nothing waits any more."""
        count = self._count
        if not count:
            return True
        if self.closed:
            self._clear()
            return True
        if self._pinned or not self.streams.may_send(self):
            return False
        header, length = self._header, self._length
        buffers: Sequence[bytes | memoryview] = self._buffers
        header[1:3] = count.to_bytes(2, "big")
        self._clear()
        connection, flags = self.streams.connection, 0
        if length >= connection.pack_from:
            buffers, length, flags = connection.pack(buffers, length)
        cost = FRAME.size + len(header) + length
        self.credit -= cost
        self.streams.spend(cost)
        self.streams.counters.items_out += count
        token = connection.send_data(self.stream, header, buffers, length, flags)
        if token:
            self.wait_for(token)
        return True

    def _clear(self) -> None:
        self._header = bytearray(_EMPTY)
        if self._buffers:
            self._buffers = []
            self._length = 0
        self._count = 0

    # ---- waiting

    async def _go_on(self) -> None:
        """Waits until the producer may go on: there is room in the batch, and what was sent by reference has gone."""
        await self._sent()
        while self._late:
            if self._put(self._late.pop()):
                await self._sent()
        self._turns += 1
        if self._turns >= _TURN_BATCHES or self.closed:  # closed: let it be cancelled
            self._turns = 0
            await asyncio.sleep(0)
            while not self.closed and self.streams.connection.unread() > _UNREAD:  # noqa: ASYNC110  (the core sends)
                await asyncio.sleep(_UNREAD_SECONDS)

    async def _finish(self) -> None:
        if self._late:
            await self._go_on()
        await self._sent()

    async def _sent(self) -> None:
        while not self.closed and (not self.flush() or self._pinned):
            self._waiter = self.streams.connection.reactor.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _released(self) -> None:
        """What was sent by reference has been taken."""
        self._pinned = False
        self.token = 0
        self.resume()

    def granted(self, count: int) -> None:
        """Credit came."""
        if self.credit + count > MOST_CREDIT:
            self.streams.connection.violated(f"credit of {self.credit + count} bytes on stream {self.stream}")
            return
        self.credit += count
        self.resume()

    def resume(self) -> None:
        """Something that is waited for has come."""
        if not self.closed and self.flush():
            self._wake()


class Receiver:
    """The receiving half of a stream: an asynchronous iterator of its items, for one consumer."""

    __slots__ = (
        "_allowed",
        "_discarding",
        "_error",
        "_half",
        "_items",
        "_number",
        "_queue",
        "_taken",
        "_waiter",
        "batch",
        "ended",
        "over",
        "stream",
        "streams",
    )

    def __init__(self, streams: Streams, stream: int, window: int) -> None:
        self.streams = streams
        self.stream = stream
        self.over = False  # the peer will send nothing more
        self._allowed = window
        self._half = (window + 1) // 2
        self._taken = 0
        self.batch: deque[Any] = deque()  # decoded, to be taken
        # Not decoded, nor decompressed: so the window bounds memory, whatever the items become.
        self._queue: deque[tuple[bytes, bytes | memoryview | Packed, int]] = deque()
        self._items: Items | None = None
        self._number = 0  # of items that were taken
        self.ended = False
        self._error: BaseException | None = None
        self._discarding = False
        self._waiter: asyncio.Future[None] | None = None

    def expect(self, items: Items) -> None:
        """What the items are."""
        self._items = items

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self.batch:
            return self.batch.popleft()
        while not self.batch:
            if self._queue:
                self._take()
            elif self._error is not None:
                raise self._error.with_traceback(None)
            elif self.ended:
                raise StopAsyncIteration
            else:
                await self._more()
        return self.batch.popleft()

    async def _more(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a stream has one consumer at a time, and somebody waits for its next item already")
        self._waiter = self.streams.connection.reactor.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- what comes

    def data(self, header: bytes, payload: bytes | memoryview | Packed, cost: int) -> None:
        """A frame of items."""
        if self._discarding:
            self.streams.give_back(cost)
        elif self._allowed <= 0:
            self.streams.give_back(cost)
            self.streams.connection.stream_failed(
                self.stream, ResourceExhausted("items were sent beyond the credit of the stream")
            )
            if not self.ended:
                self.discard()
        else:
            self._allowed -= cost
            self._queue.append((header, payload, cost))
            self._wake()

    def end(self, error: BaseException | None = None, *, at_once: bool = False) -> None:
        """There are no more items: after those that came, or at once, the consumer is told so, or gets the error."""
        if self.ended:
            return
        self.ended = True
        self._error = error
        if at_once:
            self._drop()
        self._wake()

    def discard(self) -> None:
        """The call is over, and nobody should consume: what came and what still comes is dropped."""
        self._discarding = True
        self.end(Cancelled("the call is over"))  # a handler that heeds no cancellation must not take it for the end
        self._drop()

    def _drop(self) -> None:
        for _, _, cost in self._queue:
            self.streams.give_back(cost)
        self._queue.clear()
        self.batch.clear()

    def _take(self) -> None:
        """Decodes the next frame."""
        header, payload, cost = self._queue.popleft()
        self._give_back(cost)
        assert self._items is not None
        if isinstance(payload, Packed):
            try:
                payload = self.streams.connection.unpack(payload.data)
            except ZcrpcError as failure:
                self.discard()
                self._error = failure
                return
        items, error = self._items.decode(header, payload, self.streams.connection.reactor.codec, self._number)
        arrived = len(items)
        if error is not None:
            self.discard()
            self._error = error
        self.batch.extend(items)
        self._number += arrived
        self.streams.counters.items_in += arrived

    def _give_back(self, cost: int) -> None:
        self.streams.give_back(cost)
        if self.over:
            return
        self._taken += cost
        if self._taken >= self._half:
            self.streams.connection.send(CREDIT, self.stream, 0, self._taken)
            self._allowed += self._taken
            self._taken = 0
