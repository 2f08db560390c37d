"""The calling end of a connection: calls go out, answers find those who wait for them, and when the connection is lost
everybody learns of it at once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from zcrpc import metadata
from zcrpc._native import lib
from zcrpc._path import Pending
from zcrpc.codec import BYTES, VIEWS, HeaderError
from zcrpc.compression import Packing
from zcrpc.connection import Connection
from zcrpc.conversion import Converter
from zcrpc.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Status,
    Unavailable,
    Unimplemented,
    ZcrpcError,
)
from zcrpc.keepalive import Watch, Watching
from zcrpc.metadata import NOTHING, Metadata
from zcrpc.reactor import Reactor
from zcrpc.service import Items
from zcrpc.streams import Receiver
from zcrpc.tls import Tunnel
from zcrpc.wire import (
    DATA,
    REQUEST,
    RESPONSE,
    STREAM_IN,
    STREAM_OUT,
    Hello,
)

_log = logging.getLogger("zcrpc.client")

_MOST_MS: Final = (1 << 32) - 1
_UNWATCHED: Final = Watching()


class MetadataReader(Protocol):
    """Who wants to know what comes with an answer."""

    response_metadata: Metadata


class Owner(Protocol):
    """Whoever keeps a connection to make calls over it."""

    def went_away(self, connection: ClientConnection) -> None:
        """The server takes no more calls on it."""

    def lost(self, connection: ClientConnection) -> None:
        """It is closed. Its calls have failed already."""


class Incoming:
    """A stream of results, begun. Stands where the future of a call with one result would: what ends the call ends
    it."""

    __slots__ = ("connection", "pending", "producer", "receiver")

    def __init__(self, connection: ClientConnection, pending: Pending, receiver: Receiver) -> None:
        self.connection = connection
        self.pending = pending
        self.receiver = receiver
        self.producer: asyncio.Task[None] | None = None  # of the items that are sent

    def done(self) -> bool:
        return self.receiver.ended

    def cancelled(self) -> bool:
        return False

    def exception(self) -> None:
        """Is the consumer's to see."""

    def set_result(self, result: Any) -> None:
        self._end(None)

    def set_exception(self, error: BaseException) -> None:
        self.connection.errors += 1
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self.receiver.end(error, at_once=isinstance(error, DeadlineExceeded))
        if self.producer is not None and self.producer is not asyncio.current_task():
            self.producer.cancel()

    def abandon(self) -> None:
        """Nobody consumes any longer."""
        self.receiver.discard()
        if self.connection.pending.get(self.pending.stream) is self.pending:
            self.connection.give_up(self.pending)
        if self.producer is not None:
            self.producer.cancel()


class ClientConnection(Connection):
    """The calling end of a connection."""

    __slots__ = (
        "_next_ping",
        "closed_event",
        "errors",
        "farewell",
        "greeted_event",
        "idle",
        "owner",
        "pings",
        "tunnel",
        "used",
    )

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        mapping: bool,
        hello: Hello,
        name: str,
        watching: Watching = _UNWATCHED,
        tunnel: Tunnel | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.tunnel = tunnel
        self.pending = {}
        self.pings: dict[bytes, asyncio.Future[None]] = {}
        self.waiting = collections.deque()  # for one of the calls in flight to end
        self.methods = {}
        self.owner: Owner | None = None
        self.draining = None  # what the server's goaway said
        self.idle = False  # it was closed, or is to be, since no calls were made
        self.farewell = False  # the server has answered all calls that it has begun
        self.greeted_event = asyncio.Event()
        self.closed_event = asyncio.Event()
        self.errors = 0
        self._next_ping = 0
        super().__init__(reactor, fd, mapping, hello, name, _log, packing=packing)
        self.used = 0  # requests when it was last looked at
        self.watched = Watch(self, watching)
        if tunnel is not None:
            tunnel.on_end = self.tunnel_ended
            tunnel.start()

    def greeting(self) -> None:
        self.methods = self.peer.methods
        self.greeted_event.set()

    # ---- calls

    async def call_with_items(
        self,
        name: str,
        arguments: Sequence[Any],
        keywords: dict[str, Any],
        items: Any,
        until: float | None,
        result: Converter | None,
        sent_along: Metadata | None = None,
        reader: MetadataReader | None = None,
    ) -> Any:
        """One call with a stream of items. When it is over, for whatever reason, so is their producer."""
        if self.is_full():
            await self.turn_to_call(until)
        buffers = VIEWS if result is not None and result.views else BYTES
        pending = self.begin_call(name, arguments, keywords, sent_along, reader, until, buffers, STREAM_IN)
        producer = self._produce(pending, name, items)
        try:
            value = await pending
        except BaseException:
            self.failed(pending)
            raise
        finally:
            producer.cancel()
            await asyncio.wait((producer,))
        return value if result is None else self.converted(name, value, result)

    async def open_stream(
        self,
        name: str,
        arguments: Sequence[Any],
        keywords: dict[str, Any],
        items: Any,
        until: float | None,
        expected: Items,
        sent_along: Metadata | None = None,
        reader: MetadataReader | None = None,
    ) -> Incoming:
        """Begins a call with a stream of results; `items`: those that are sent, or None."""
        if self.is_full():
            await self.turn_to_call(until)
        flags = STREAM_OUT if items is None else STREAM_OUT | STREAM_IN
        pending = self.begin_call(name, arguments, keywords, sent_along, reader, until, BYTES, flags)
        receiver = self.open_streams().receive(pending.stream)
        receiver.expect(expected)
        incoming = Incoming(self, pending, receiver)
        pending.sink = incoming
        if items is not None:
            incoming.producer = self._produce(pending, name, items)
        return incoming

    def is_full(self) -> bool:
        """Whether the next call is to wait for its turn: see `turn_to_call`."""
        return bool(self.waiting) or len(self.pending) + self.granted >= self.in_flight

    def begin_call(
        self,
        name: str,
        arguments: Sequence[Any],
        keywords: dict[str, Any],
        sent_along: Metadata | None,
        reader: MetadataReader | None,
        until: float | None,
        buffers: int,
        flags: int = 0,
    ) -> Pending:
        """Sends a request, whose turn it is. TypeError for what cannot be sent, streams of items included. sent_along:
        its metadata. reader: is told what came with the answer. buffers: how those of its result are to be decoded."""
        if self.ended is not None or self.draining is not None:
            raise self.refusal()
        method = self.methods.get(name)
        if method is None:
            raise Unimplemented(f"{self.name} has no method {name!r}")
        if keywords or sent_along:
            header, pieces, length = self._encode(name, arguments, keywords, sent_along)
        else:
            header, pieces, length = self.reactor.codec.encode_arguments(arguments)
        limits = self.peer.limits
        if len(header) > limits.header or length > limits.payload:
            self.check_size(header, length, f"the arguments of {name}()")
        pending = Pending(self, self.take_stream(), buffers, reader)
        self.requests += 1
        if reader is not None:
            reader.response_metadata = NOTHING
        deadline_ms = 0
        if until is not None:
            left = until - self.reactor.loop.time()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the call was sent")
            deadline_ms = min(math.ceil(left * 1000), _MOST_MS)
            pending.tick = self.reactor.deadlines.add(left, pending)
        self.pending[pending.stream] = pending
        try:
            if length >= self.pack_from:
                pieces, length, compressed = self.pack(pieces, length)
                flags |= compressed
            pending.token = self.send(REQUEST, pending.stream, method, deadline_ms, header, pieces, length, flags)
        except BaseException:
            self.failed(pending)
            raise
        return pending

    def expired(self, pending: Pending) -> None:
        """The deadline has passed: nobody waits any longer, and the server is told."""
        self.give_up(pending)
        if not pending.done():
            pending.set_exception(DeadlineExceeded("the deadline passed before the answer came"))

    def failed(self, pending: Pending) -> None:
        """Nobody waits for a call any longer: it failed, or the caller was cancelled."""
        self.errors += 1
        if self.pending.get(pending.stream) is pending:  # cancelled, or not even sent
            self.give_up(pending)

    def converted(self, name: str, value: Any, result: Converter) -> Any:
        try:
            return result.convert(value)
        except (msgspec.ValidationError, RecursionError) as error:
            raise Internal(f"the result of {name}() is not as announced: {error}") from None

    def _produce(self, pending: Pending, name: str, items: Any) -> asyncio.Task[None]:
        """Sends the items of a call that was begun, in a task."""
        sender = self.open_streams().send(pending.stream, name)
        sender.wait_for(pending.token)

        async def produce() -> None:
            try:
                await sender.drive(items)
                sender.send_end()
            except Exception as error:
                if pending.done():
                    _log.exception("%s: the items of a call to %s(), which is over", self, name)
                else:
                    self.give_up(pending)
                    pending.set_exception(error)

        return self.reactor.loop.create_task(produce())

    def _encode(
        self, name: str, arguments: Sequence[Any], keywords: dict[str, Any], sent_along: Metadata | None
    ) -> tuple[bytes, Sequence[bytes | memoryview], int]:
        """Header, the payload's pieces and their length."""
        if not sent_along:
            return self.reactor.codec.encode([arguments, keywords])
        try:
            raw = metadata.encode(sent_along, self.peer.limits.metadata, f"the call of {name}()")
        except metadata.MetadataError as error:
            raise InvalidArgument(str(error)) from None
        return self.reactor.codec.encode([arguments, keywords, raw])

    async def turn_to_call(self, until: float | None) -> None:
        """As many calls are in flight as the server takes: waits for one to end, first come, first served."""
        turn: asyncio.Future[None] = self.reactor.loop.create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout_at(until):
                await turn
            self.granted -= 1
        except BaseException as error:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self.waiting.remove(turn)
            else:  # both at once: granted, and not wanted any more
                self.granted -= 1
                self._grant()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "the deadline passed while as many calls were in flight as the server takes"
                ) from None
            raise

    def _grant(self) -> None:
        """Lets those that wait begin their calls, as far as there is room; where there is no server any more, all of
        them, to fail."""
        over = self.ended is not None or self.draining is not None
        while self.waiting and (over or len(self.pending) + self.granted < self.in_flight):
            turn = self.waiting.popleft()
            if not turn.done():
                self.granted += 1
                turn.set_result(None)

    def give_up(self, pending: Pending) -> None:
        """Nobody waits for a call any longer."""
        if not self._forget(pending) and self.ended is None:
            self.send_cancel(pending.stream, pending.token)

    def _forget(self, pending: Pending) -> bool:
        """True if the server was told, since it still waits for items."""
        self.pending.pop(pending.stream, None)
        if pending.tick:
            self.reactor.deadlines.discard(pending.tick, pending)
            pending.tick = 0
        if self.waiting:
            self._grant()
        return self.streams is not None and self._forget_stream(pending.stream)

    def _forget_stream(self, stream: int) -> bool:
        streams = self.open_streams()
        streams.forget_receiver(stream)
        sender = streams.senders.get(stream)
        if sender is None:
            return False
        sender.close()
        if sender.ended or self.ended is not None:
            return False
        self.send_cancel(stream, sender.token)
        return True

    # ---- answers

    def response(self, stream: int, header: bytes, payload: bytes | memoryview) -> None:
        pending = self.pending.get(stream)
        if pending is None:
            return
        self._forget(pending)
        if pending.done():
            return
        if not header:
            pending.set_result(None)
            return
        codec = self.reactor.codec
        try:
            parts = codec.decode(header, payload, pending.buffers)
        except HeaderError as error:
            pending.set_exception(Internal(f"{self.name}: a response does not decode: {error}"))
            return
        if type(parts) is not list or not parts:
            pending.set_exception(Internal(f"{self.name}: a response is no [result]"))
            return
        if len(parts) > 1 and parts[1] is not None:
            try:
                carried = metadata.decode(parts[1], self.limits.metadata, "a response")
            except metadata.MetadataError as error:
                pending.set_exception(Internal(f"{self.name}: {error}"))
                return
            except ResourceExhausted as error:
                pending.set_exception(error)
                return
            if pending.reader is not None:
                pending.reader.response_metadata = carried
        pending.set_result(parts[0])

    def compressed_response(self, stream: int, header: bytes, payload: bytes | memoryview) -> None:
        pending = self.pending.get(stream)
        if pending is None:
            return
        try:
            plain = self.unpack(payload)
        except ZcrpcError as error:
            self._fail(pending, error)
        else:
            self.response(stream, header, plain)

    def error(self, stream: int, status: int, header: bytes, unprocessed: bool) -> None:
        pending = self.pending.get(stream)
        if pending is not None:
            error = self.decode_error(status, header)
            error.unprocessed = unprocessed
            if pending.reader is not None:
                pending.reader.response_metadata = error.metadata
            self._fail(pending, error)

    def refused(self, kind: int, flags: int, stream: int, header_length: int, length: int) -> None:
        pending = self.pending.get(stream)
        error = ResourceExhausted(f"a result of {length} bytes is more than this client's max_message")
        if kind == RESPONSE and pending is not None:
            self._fail(pending, error)
        elif kind == DATA:
            self.open_streams().refused(stream, header_length + length)
            self.stream_failed(stream, error)

    def stray_data(self, stream: int) -> None:
        if stream in self.pending:
            self.stream_failed(stream, Internal(f"{self.name}: a stream, where one result was to come"))

    def stream_failed(self, stream: int, error: ZcrpcError) -> None:
        pending = self.pending.get(stream)
        if pending is not None:
            self.log.warning("%s: stream %d: %s", self, stream, error.message)
            self.give_up(pending)
            if not pending.done():
                pending.set_exception(error)

    def _fail(self, pending: Pending, error: ZcrpcError) -> None:
        self._forget(pending)
        if not pending.done():
            pending.set_exception(error)

    # ---- connection

    def disconnect(self, why: str) -> None:
        super().disconnect(why)
        if self.owner is not None:
            self.owner.went_away(self)

    def abort(self, why: str = "an internal error") -> None:
        super().abort(why)
        if self.owner is not None:
            self.owner.went_away(self)

    @property
    def load(self) -> int:
        """Calls in flight, and those that wait for their turn."""
        return len(self.pending) + len(self.waiting)

    def refusal(self) -> ZcrpcError:
        """Why no call can be begun any more."""
        if self.ended is not None or self.draining is None:
            return self.loss(unprocessed=True)
        error = type(self.draining)(self.draining.message)
        error.unprocessed = True
        return error

    def take_calls(self) -> bool:
        used, self.used = self.used, self.requests
        return bool(self.load) or used != self.requests

    def unused(self, seconds: float) -> None:
        self.idle = True
        self.disconnect(f"no call for {seconds:g} s")

    def tunnel_ended(self, error: OSError | None) -> None:
        super().tunnel_ended(error)
        if self.ended is not None and self.owner is not None:
            self.owner.went_away(self)

    async def ping(self) -> float:
        """Seconds to the server's reactor and back."""
        if self.ended is not None:
            raise self.loss()
        self._next_ping += 1
        header = self._next_ping.to_bytes(8, "little")
        future = self.pings[header] = self.reactor.loop.create_future()
        begun = time.perf_counter()
        try:
            self.send_ping(header)
            await future
        finally:
            self.pings.pop(header, None)
        return time.perf_counter() - begun

    def pong(self, header: bytes) -> None:
        super().pong(header)
        future = self.pings.get(header)
        if future is not None and not future.done():
            future.set_result(None)

    def goaway_received(self, status: int, header: bytes, unprocessed: bool) -> None:
        self.farewell = unprocessed
        if self.draining is None:
            self.idle = status == Status.OK
            self.draining = self.decode_error(Status.UNAVAILABLE if self.idle else status, header)
            self.log.info("%s: the server takes no more calls: %s", self, self.draining.message)
            self._grant()
            if self.owner is not None:
                self.owner.went_away(self)

    def end_of_calls(self, reason: int) -> Unavailable:
        return self.loss(unprocessed=self.farewell and reason == lib.ZC_CLOSE_EOF)

    def closed(self, reason: int, number: int) -> None:
        # A request that was not sent to its end cannot have been served. Where the kernel sends from our memory, it is
        # not known how much of that it has sent.
        unsent = frozenset() if self.peer.map_from else frozenset(self.pins)
        super().closed(reason, number)
        for pending in list(self.pending.values()):
            error = self.end_of_calls(reason)
            error.unprocessed = error.unprocessed or pending.token in unsent
            self._fail(pending, error)
        for future in self.pings.values():
            if not future.done():
                future.set_exception(self.loss())
        self._grant()
        self.greeted_event.set()
        self.closed_event.set()
        if self.owner is not None:
            self.owner.lost(self)
