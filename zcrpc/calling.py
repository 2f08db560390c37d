"""The calling end of a connection: calls go out, answers find those who wait for them, and when the connection is lost
everybody learns of it at once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import time
from typing import Any, Final

import msgspec

from zcrpc.codec import BYTES, VIEWS, HeaderError
from zcrpc.connection import Connection
from zcrpc.conversion import Converter
from zcrpc.errors import DeadlineExceeded, Internal, ResourceExhausted, Unimplemented, ZcrpcError
from zcrpc.reactor import Reactor
from zcrpc.wire import REQUEST, RESPONSE, Hello

_log = logging.getLogger("zcrpc.client")

_STREAMS: Final = 1 << 32
_MOST_MS: Final = _STREAMS - 1


class Pending:
    """A call that waits for its answer."""

    __slots__ = ("buffers", "connection", "future", "stream", "tick", "token")

    def __init__(self, connection: ClientConnection, stream: int, buffers: int) -> None:
        self.connection = connection
        self.stream = stream
        self.buffers = buffers  # how those of the result are decoded
        self.future: asyncio.Future[Any] = connection.reactor.loop.create_future()
        self.tick = 0
        self.token = 0

    def expire(self) -> None:
        """The deadline has passed: nobody waits any longer, and the server is told."""
        self.tick = 0
        self.connection.give_up(self)
        if not self.future.done():
            self.future.set_exception(DeadlineExceeded("the deadline passed before the answer came"))


class ClientConnection(Connection):
    """The calling end of a connection."""

    __slots__ = (
        "_granted",
        "_next_ping",
        "_next_stream",
        "closed_event",
        "draining",
        "errors",
        "greeted_event",
        "methods",
        "pending",
        "pings",
        "requests",
        "waiting",
    )

    def __init__(self, reactor: Reactor, fd: int, mapping: bool, hello: Hello, name: str) -> None:
        self.pending: dict[int, Pending] = {}
        self.pings: dict[bytes, asyncio.Future[None]] = {}
        self.waiting: collections.deque[asyncio.Future[None]] = (
            collections.deque()
        )  # for one of the calls in flight to end
        self.methods: dict[str, int] = {}
        self.draining: ZcrpcError | None = None  # what the server's goaway said
        self.greeted_event = asyncio.Event()
        self.closed_event = asyncio.Event()
        self.requests = self.errors = 0
        self._granted = 0  # turns given to those who waited, and not used yet
        self._next_stream = 0
        self._next_ping = 0
        super().__init__(reactor, fd, mapping, hello, name, _log)

    def greeting(self) -> None:
        self.methods = self.peer.methods
        self.greeted_event.set()

    # ---- calls

    async def call(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: float | None,
        result: Converter | None,
    ) -> Any:
        """One call, from encoding to the converted result."""
        loop = self.reactor.loop
        until = None if timeout is None else loop.time() + timeout
        if self.waiting or len(self.pending) + self._granted >= self.peer.limits.in_flight:
            await self._turn_to_call(until)
        if self.ended is not None:
            raise self.loss()
        if self.draining is not None:
            raise type(self.draining)(self.draining.message)
        method = self.methods.get(name)
        if method is None:
            raise Unimplemented(f"{self.name} has no method {name!r}")
        header, buffers, length = self._encode(name, arguments, keywords)
        limits = self.peer.limits
        if len(header) > limits.header or length > limits.payload:
            self.check_size(header, length, f"the arguments of {name}()")
        stream = self._next_stream + 1
        while stream in self.pending or stream == _STREAMS:
            stream = stream + 1 if stream < _STREAMS else 1
        self._next_stream = stream
        pending = Pending(self, stream, VIEWS if result is not None and result.views else BYTES)
        self.requests += 1
        deadline_ms = 0
        if until is not None:
            left = until - loop.time()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the call was sent")
            deadline_ms = min(math.ceil(left * 1000), _MOST_MS)
            pending.tick = self.reactor.deadlines.add(left, pending)
        self.pending[stream] = pending
        try:
            pending.token = self.send(REQUEST, stream, method, deadline_ms, header, buffers, length)
            del header, buffers
            value = await pending.future
        except BaseException:
            self.errors += 1
            if self.pending.get(stream) is pending:  # cancelled, or not even sent
                self.give_up(pending)
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # seen, should it have failed in the moment of being cancelled
            raise
        if result is None or type(value) is result.exact:
            return value
        try:
            return result.convert(value)
        except (msgspec.ValidationError, RecursionError) as error:
            raise Internal(f"the result of {name}() is not as announced: {error}") from None

    def _encode(
        self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[bytes, list[bytes | memoryview], int]:
        if keywords:
            return self.reactor.codec.encode([arguments, keywords])
        if arguments:
            return self.reactor.codec.encode([arguments])
        return b"", [], 0

    async def _turn_to_call(self, until: float | None) -> None:
        """As many calls are in flight as the server takes: waits for one to end, first come, first served."""
        turn: asyncio.Future[None] = self.reactor.loop.create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout_at(until):
                await turn
            self._granted -= 1
        except BaseException as error:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self.waiting.remove(turn)
            else:  # both at once: granted, and not wanted any more
                self._granted -= 1
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
        while self.waiting and (over or len(self.pending) + self._granted < self.peer.limits.in_flight):
            turn = self.waiting.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)

    def give_up(self, pending: Pending) -> None:
        """Nobody waits for a call any longer."""
        self._forget(pending)
        if self.ended is None:
            self.send_cancel(pending.stream, pending.token)

    def _forget(self, pending: Pending) -> None:
        self.pending.pop(pending.stream, None)
        if pending.tick:
            self.reactor.deadlines.discard(pending.tick, pending)
            pending.tick = 0
        if self.waiting:
            self._grant()

    # ---- answers

    def response(self, stream: int, header: bytes, payload: bytes | memoryview) -> None:
        pending = self.pending.get(stream)
        if pending is None:
            return
        self._forget(pending)
        if pending.future.done():
            return
        if not header:
            pending.future.set_result(None)
            return
        codec = self.reactor.codec
        try:
            parts = codec.decode(header, payload, pending.buffers)
        except HeaderError as error:
            pending.future.set_exception(Internal(f"{self.name}: a response does not decode: {error}"))
            return
        if type(parts) is not list or not parts:
            pending.future.set_exception(Internal(f"{self.name}: a response is no [result]"))
        else:
            pending.future.set_result(parts[0])

    def error(self, stream: int, status: int, header: bytes) -> None:
        pending = self.pending.get(stream)
        if pending is not None:
            self._fail(pending, self.decode_error(status, header))

    def refused(self, kind: int, stream: int, length: int) -> None:
        pending = self.pending.get(stream)
        if kind == RESPONSE and pending is not None:
            self._fail(pending, ResourceExhausted(f"a result of {length} bytes is more than this client's max_message"))

    def _fail(self, pending: Pending, error: ZcrpcError) -> None:
        self._forget(pending)
        if not pending.future.done():
            pending.future.set_exception(error)

    # ---- connection

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
        future = self.pings.get(header)
        if future is not None and not future.done():
            future.set_result(None)

    def goaway_received(self, status: int, header: bytes) -> None:
        self.draining = self.decode_error(status, header)
        self.log.info("%s: the server takes no more calls: %s", self, self.draining.message)
        self._grant()

    def closed(self, reason: int, number: int) -> None:
        super().closed(reason, number)
        for pending in list(self.pending.values()):
            self._fail(pending, self.loss())
        for future in self.pings.values():
            if not future.done():
                future.set_exception(self.loss())
        self._grant()
        self.greeted_event.set()
        self.closed_event.set()
