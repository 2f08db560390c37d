"""The serving end of a connection: calls come in, handlers run, results go out.

A call's way is short and all in one place, `ServerConnection.request`: decode, bind, run the handler's first step,
encode, append. Only a handler that suspends is given a `Call`, which the tables of its connection know.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcrpc import metadata
from zcrpc.ageing import Age
from zcrpc.codec import INLINE_BELOW, SINGLE, SINGLE_BUFFER, SINGLE_BYTES, HeaderError
from zcrpc.connection import Connection
from zcrpc.context import CONTEXT, METADATA, PLAN, SCOPE, STOPPED, Context, Served
from zcrpc.credentials import Authenticate, Caller, Credentials, identify
from zcrpc.eager import Suspended
from zcrpc.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Status,
    Unimplemented,
    ZcrpcError,
    failure,
)
from zcrpc.interceptors import Intercepted
from zcrpc.keepalive import Watch
from zcrpc.metadata import NOTHING
from zcrpc.reactor import Reactor
from zcrpc.service import Plan
from zcrpc.streams import Receiver, Sender, UnsendableItem
from zcrpc.tls import Tunnel
from zcrpc.wire import (
    COMPRESSED,
    DATA,
    FRAME,
    RECORD_FRAME,
    REQUEST,
    RESPONSE,
    STREAM_IN,
    STREAM_OUT,
    STREAMS,
    Hello,
    Limits,
)

if TYPE_CHECKING:
    from zcrpc.server import Server

_log = logging.getLogger("zcrpc.server")

# A response that is one buffer: record, frame and header.
_pack_single: Final = struct.Struct(RECORD_FRAME.format + SINGLE.format[1:]).pack
_SINGLE_HEADER_SIZE: Final = SINGLE.size
_SINGLE_FRAME_SIZE: Final = FRAME.size + SINGLE.size

_FULL: Final = "{} calls are in flight, the server's limit"

Handlers = dict[int, tuple[Plan, Callable[..., Any]]]

# Method, flags, when its deadline is (0: never), header and payload of a call that is put off; its stream of items.
Postponed = tuple[int, int, float, bytes, bytes | memoryview, Receiver | None]

_KINDS: Final = {
    0: "takes no stream and has one result: use call()",
    STREAM_OUT: "has a stream of results: use stream()",
    STREAM_IN: "takes a stream of items and has one result: use call(), with an asynchronous iterable",
    STREAM_IN | STREAM_OUT: "takes a stream of items and has a stream of results: use stream(), with an iterable",
}
# Streams of items whose calls were answered, and whose end is still to come, beyond twice those that may be in flight.
_UNENDED: Final = 64


class Call:
    """A call whose handler has suspended."""

    __slots__ = ("answered", "connection", "served", "stream", "suspended", "tick")

    def __init__(self, connection: ServerConnection, stream: int, served: Served, suspended: Suspended) -> None:
        self.connection = connection
        self.stream = stream
        self.served = served
        self.suspended = suspended
        self.tick = 0
        self.answered = False

    @property
    def method(self) -> str:
        name: str = self.served[PLAN].name
        return name

    def expire(self) -> None:
        """Its deadline has passed: answered at once, whatever the handler makes of being cancelled."""
        self.tick = 0
        self.stop()
        self.connection.expired(self.stream, f"{self.method}: the deadline passed before it was done")

    def stop(self) -> None:
        """Cancels the handler; nobody waits for its answer any more."""
        self.answered = self.served[STOPPED] = True
        self.connection.calls.pop(self.stream, None)
        self.suspended.cancel()

    def finish(self, result: Any, error: BaseException | None) -> None:
        """The handler is done."""
        connection = self.connection
        connection.running -= 1
        connection.be_careful()
        if self.tick:
            connection.reactor.deadlines.discard(self.tick, self)
        if not self.answered:
            connection.calls.pop(self.stream, None)
            if error is None:
                connection.reply(self.stream, self.served, result)
            else:
                connection.fail_with(self.stream, error, self.served)
        connection.server.call_done()


class StreamCall(Call):
    """A call with streams whose handler has suspended."""

    __slots__ = ("receiver", "sender")

    receiver: Receiver | None
    sender: Sender | None

    def stop(self) -> None:
        release(self.receiver, self.sender)
        super().stop()

    def finish(self, result: Any, error: BaseException | None) -> None:
        super().finish(result, error)
        release(self.receiver, self.sender)


def release(receiver: Receiver | None, sender: Sender | None) -> None:
    """A call is over: nobody consumes its items any more, and none are sent."""
    if receiver is not None:
        receiver.discard()
    if sender is not None:
        sender.close()


async def produce(result: Any, sender: Sender) -> None:
    """Sends what the handler of a stream returned."""
    if isinstance(result, CoroutineType):
        result = await result
    if not isinstance(result, Iterable) and not hasattr(result, "__aiter__"):
        raise Internal(f"{sender.name}() returned no stream but {type(result).__name__}")
    await sender.drive(result)


class ServerConnection(Connection):
    """The serving end of a connection."""

    __slots__ = (
        "admitted",
        "age",
        "authenticating",
        "backlog",
        "caller",
        "calls",
        "careful",
        "handlers",
        "leave_status",
        "parting",
        "retiring",
        "running",
        "server",
        "start",
        "tick",
        "tunnel",
        "used",
    )

    malformed = InvalidArgument

    def __init__(
        self,
        server: Server,
        reactor: Reactor,
        fd: int,
        mapping: bool,
        hello: Hello,
        name: str,
        caller: Caller,
        tunnel: Tunnel | None = None,
    ) -> None:
        self.server = server
        self.tunnel = tunnel
        self.parting: str | None = None  # why it is closed when everything is sent
        self.retiring: str | None = None  # why it takes no more calls
        self.leave_status = Status.UNAVAILABLE
        self.used = False  # there was a call since that was asked last
        self.handlers = server.handlers
        self.start = server.runner.start
        self.calls: dict[int, Call] = {}  # those that wait for an answer
        self.backlog: dict[int, Postponed] = {}  # not begun yet
        self.running = 0  # handlers that have suspended, those included that nobody waits for
        self.admitted = True
        self.caller = caller
        self.authenticating: Suspended | None = None  # the server's hook, if it takes its time
        super().__init__(
            reactor, fd, mapping, hello, name, _log, packing=server.packing, introduce=server.authenticate is None
        )
        self.be_careful()
        self.tick = reactor.deadlines.add(server.hello_timeout, self)
        self.watched = Watch(self, server.watching)
        self.age = Age(self, server.ageing) if server.ageing.age is not None else None
        if tunnel is not None:
            tunnel.on_end = self.tunnel_ended
            tunnel.start()

    # ---- opening

    def expire(self) -> None:
        """No hello came in time, or its sender was not authenticated in time."""
        self.tick = 0
        what = "not authenticated" if self.greeted else "no hello"
        self.log.warning("%s: %s within %g s", self, what, self.server.hello_timeout)
        self.reactor.timed_out += 1
        self.abort(what)

    def greeting(self) -> None:
        if not self.admitted:
            self._opened()
            self.disconnect("too many connections")
        elif self.server.authenticate is None:
            self._opened()
        else:
            self._authenticate(self.server.authenticate)

    def _opened(self) -> None:
        if self.tick:
            self.reactor.deadlines.discard(self.tick, self)
            self.tick = 0

    def _authenticate(self, authenticate: Authenticate) -> None:
        caller = self.caller
        credentials = Credentials(
            address=caller.address,
            token=self.peer.token or None,
            process=caller.process,
            certificate=caller.certificate,
        )
        self.peer = dataclasses.replace(self.peer, token="")
        try:
            result = self.start(identify(authenticate, credentials))
        except (Exception, asyncio.CancelledError) as error:
            self._authenticated(None, error)
            return
        if isinstance(result, Suspended):
            self.authenticating = result
            result.then(self._authenticated)
        else:
            self._authenticated(result, None)

    def _authenticated(self, identity: Any, error: BaseException | None) -> None:
        """The server's hook has decided. Only now does the client see a hello with methods, and begins to call."""
        self.authenticating = None
        self._opened()
        if self.ended is not None:
            return
        if error is None:
            self.caller.identity = identity
            if not self.introduced:  # it is if the server is going away
                self.introduce(self.own)
            self.be_careful()
            return
        self.server.unauthenticated += 1
        if isinstance(error, ZcrpcError):
            status, message = error.status, error.message
            self.log.warning("%s: not authenticated: %s", self, message)
        else:
            status, message = Status.INTERNAL, "the server could not check the credentials"
            self.log.error("%s: authenticate raised %s", self, type(error).__name__, exc_info=error)
        self.send_goaway(status, message)
        self.disconnect("not authenticated")

    def be_careful(self) -> None:
        """Whether a call is to be refused or put off is looked at only when it can be."""
        self.careful = (
            self.running > 0
            or bool(self.backlog)
            or self.pinned > self.server.max_unsent
            or self.server.closing
            or not self.admitted
            or self.parting is not None
            or self.retiring is not None
            or not self.introduced
            or (self.streams is not None and bool(self.streams.receivers))
        )

    def refuse(self) -> None:
        """There are too many connections: says so, and closes when the peer's hello is there, lest unread input destroy
        the message."""
        self.admitted = False
        self.be_careful()
        self.send_goaway(
            Status.RESOURCE_EXHAUSTED, f"the server has {self.server.max_connections} connections, its limit"
        )

    # ---- calls

    def request(self, stream: int, method: int, deadline_ms: int, header: bytes, payload: bytes | memoryview) -> None:
        server = self.server
        server.requests += 1
        self.used = True
        if (self.careful or server.full or not stream) and not self._may_begin(
            stream, method, deadline_ms, header, payload
        ):
            return
        try:
            plan, handler = self.handlers[method]
        except KeyError:
            self.fail_with(stream, self._no_handler(method))
            return
        codec = self.reactor.codec
        until = time.monotonic() + deadline_ms / 1000 if deadline_ms else 0.0
        served: Served = [self.caller, plan, until, NOTHING, None, False]
        try:
            arguments, keywords, sent_along = codec.decode_call(header, payload, plan.buffers)
            if sent_along is not None:
                served[METADATA] = metadata.decode(sent_along, server.max_metadata, f"{plan.name}()")
            if keywords is None:
                arguments = plan.bind(arguments, codec)
            else:
                arguments, keywords = plan.bind_named(arguments, keywords, codec)
        except Exception as error:
            self._misfit(stream, served, handler, error, deadline_ms)
            return
        try:
            if not plan.is_async:  # what is gets its scope from the runner
                token = SCOPE.set(served)
                try:
                    result = handler(*arguments, **keywords) if keywords else handler(*arguments)
                finally:
                    SCOPE.reset(token)
            elif keywords is None:
                result = handler(*arguments)
            else:
                result = handler(*arguments, **keywords)
            if type(result) is CoroutineType:
                result = self.start(result, served)
                if isinstance(result, Suspended):
                    self._suspend(stream, served, result, deadline_ms)
                    return
        except (Exception, asyncio.CancelledError) as error:
            self.fail_with(stream, error, served)
        else:
            self.reply(stream, served, result)

    def _misfit(
        self, stream: int, served: Served, handler: Callable[..., Any], error: Exception, deadline_ms: int
    ) -> None:
        """Ends a call that does not fit its method. Interceptors see it nevertheless, and may say something else of
        it."""
        if isinstance(error, (HeaderError, metadata.MetadataError)):
            text = str(error) if isinstance(error, metadata.MetadataError) else f"{served[PLAN].name}(): {error}"
            error = InvalidArgument(text)
        elif isinstance(error, ResourceExhausted):
            self.server.exhausted["metadata"] += 1
        if not isinstance(handler, Intercepted):
            self.fail_with(stream, error, served)
            return
        try:
            result = self.start(handler.refuse(error), served)
        except (Exception, asyncio.CancelledError) as raised:
            self.fail_with(stream, raised, served)
            return
        if isinstance(result, Suspended):
            self._suspend(stream, served, result, deadline_ms)
        else:
            self.reply(stream, served, result)

    def _may_begin(
        self,
        stream: int,
        method: int,
        deadline_ms: int,
        header: bytes,
        payload: bytes | memoryview,
        flags: int = 0,
        receiver: Receiver | None = None,
    ) -> bool:
        """Refuses a call that is not to be served, and puts off one that is not to be served now."""
        server, streams = self.server, self.streams
        limit = server.max_in_flight
        if (
            not stream
            or stream in self.calls
            or stream in self.backlog
            or (streams is not None and receiver is None and stream in streams.receivers)
        ):
            self.violated(f"a call on stream {stream}, which is in use" if stream else "a call on stream 0")
        elif self.ended is not None:
            pass  # the peer knows, from the last goaway, that this was not begun
        elif not self.introduced:
            self.violated("a call before it was answered with a hello")
        elif server.closing or self.parting is not None or self.retiring is not None:
            self.refuse_call(stream, Status.UNAVAILABLE, self.retiring or "the server is going away")
        elif not self.admitted:
            self.refuse_call(stream, Status.RESOURCE_EXHAUSTED, "the server has too many connections")
        elif len(self.calls) + len(self.backlog) >= limit or self.running >= 2 * limit:
            self._exhausted(stream, "in_flight", f"{limit} calls are in flight on this connection, its limit")
        elif self.pinned > server.max_unsent or self.backlog:
            if server.queued >= server.max_queued:
                self._exhausted(stream, "queued", f"{server.max_queued} calls wait to be begun, the server's limit")
                return False
            until = self.reactor.loop.time() + deadline_ms / 1000 if deadline_ms else 0.0
            self.backlog[stream] = method, flags, until, header, payload, receiver
            server.queued += 1
        elif server.full:
            self._exhausted(stream, "calls", _FULL.format(server.max_calls))
        else:
            return True
        return False

    def _exhausted(self, stream: int, limit: str, message: str) -> None:
        """Refuses a call because a limit is reached."""
        self.server.exhausted[limit] += 1
        self.refuse_call(stream, Status.RESOURCE_EXHAUSTED, message)

    def _take_back(self, stream: int) -> Postponed | None:
        """A call that was put off, if there is one; it is not any longer."""
        found = self.backlog.pop(stream, None)
        if found is not None:
            self.server.queued -= 1
        return found

    def drop_backlog(self) -> None:
        """Nobody waits any more for what was put off."""
        self.server.queued -= len(self.backlog)
        self.backlog.clear()

    def _serve_backlog(self) -> None:
        """Serves what was put off until the peer had taken its results."""
        while self.backlog and self.pinned <= self.server.max_unsent:
            stream = next(iter(self.backlog))
            method, flags, until, header, payload, receiver = self.backlog.pop(stream)
            self.server.queued -= 1
            deadline_ms = 0
            if until:
                deadline_ms = math.ceil((until - self.reactor.loop.time()) * 1000)
                if deadline_ms <= 0:
                    self.expired(stream, "the deadline passed before the call was begun")
                    release(receiver, None)
                    continue
            if self.server.full:
                self._exhausted(stream, "calls", _FULL.format(self.server.max_calls))
                release(receiver, None)
                continue
            if flags & STREAMS:
                self._begin_streams(stream, method, flags, deadline_ms, header, payload, receiver)
                continue
            self._request_now(stream, method, flags, deadline_ms, header, payload)
        self.be_careful()

    def compressed_request(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        if flags & STREAMS:
            self.stream_request(stream, method, flags, deadline_ms, header, payload)
            return
        self.server.requests += 1
        self.used = True
        # What is refused or put off is not decompressed.
        if self._may_begin(stream, method, deadline_ms, header, payload, flags):
            self._request_now(stream, method, flags, deadline_ms, header, payload)
            self.be_careful()

    def _request_now(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        """Serves a call that may begin."""
        if flags & COMPRESSED:
            unpacked = self._unpack_for(stream, payload)
            if unpacked is None:
                return
            payload = unpacked
        self.server.requests -= 1  # counted when it came
        self.careful = False  # it may begin
        self.request(stream, method, deadline_ms, header, payload)

    def _unpack_for(self, stream: int, payload: bytes | memoryview) -> memoryview | None:
        """The payload of a call, decompressed. None if that cannot be done; the call is answered then."""
        try:
            return self.unpack(payload)
        except ResourceExhausted as error:
            self._exhausted(stream, "decompressed", error.message)
        except ZcrpcError as error:
            self.fail(stream, error.status, error.message)
        return None

    # ---- calls with streams

    def stream_request(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        self.server.requests += 1
        self.used = True
        receiver = None
        if flags & STREAM_IN and (receiver := self._receive(stream)) is None:
            return
        if self._may_begin(stream, method, deadline_ms, header, payload, flags, receiver):
            self._begin_streams(stream, method, flags, deadline_ms, header, payload, receiver)
        elif stream not in self.backlog:
            release(receiver, None)

    def _begin_streams(
        self,
        stream: int,
        method: int,
        flags: int,
        deadline_ms: int,
        header: bytes,
        payload: bytes | memoryview,
        receiver: Receiver | None,
    ) -> None:
        streams, codec, sender = self.open_streams(), self.reactor.codec, None
        if flags & COMPRESSED:
            unpacked = self._unpack_for(stream, payload)
            if unpacked is None:
                release(receiver, None)
                return
            payload = unpacked
        found = self.server.stream_handlers.get(method)
        if found is None or found[0].streams != flags & STREAMS:
            self.fail_with(stream, self._no_handler(method))
            release(receiver, None)
            return
        plan, handler = found
        until = time.monotonic() + deadline_ms / 1000 if deadline_ms else 0.0
        served: Served = [self.caller, plan, until, NOTHING, None, False]
        try:
            arguments, named, sent_along = codec.decode_call(header, payload, plan.buffers)
            if sent_along is not None:
                served[METADATA] = metadata.decode(sent_along, self.server.max_metadata, f"{plan.name}()")
            if named is None:
                arguments, keywords = plan.bind(arguments, codec), dict[str, Any]()
            else:
                arguments, keywords = plan.bind_named(arguments, named, codec)
        except Exception as error:
            release(receiver, None)
            self._misfit(stream, served, handler, error, deadline_ms)
            return
        try:
            if receiver is not None and plan.incoming is not None:
                receiver.expect(plan.incoming.items)
                plan.put_items(arguments, keywords, receiver)
            token = SCOPE.set(served)
            try:
                result = handler(*arguments, **keywords)
            finally:
                SCOPE.reset(token)
            if plan.outgoing is not None:
                sender = streams.send(stream, plan.name)
                result = self.start(produce(result, sender), served)
            elif type(result) is CoroutineType:
                result = self.start(result, served)
            if isinstance(result, Suspended):
                call = StreamCall(self, stream, served, result)
                call.receiver, call.sender = receiver, sender
                self._keep(call, deadline_ms)
                return
        except (Exception, asyncio.CancelledError) as error:
            self.fail_with(stream, error, served)
        else:
            self.reply(stream, served, result)
        release(receiver, sender)

    def _receive(self, stream: int) -> Receiver | None:
        """Where the items of a call go until their end, or CANCEL, whatever becomes of the call. None if there may be
        no such call."""
        streams = self.open_streams()
        if not stream or stream in streams.receivers:
            self.violated(f"a call on stream {stream}, which is in use" if stream else "a call on stream 0")
        elif len(streams.receivers) >= 2 * self.server.max_in_flight + _UNENDED:
            self.violated(f"{len(streams.receivers)} streams of items that were not ended")
        else:
            self.careful = True
            return streams.receive(stream)
        return None

    def _no_handler(self, method: int) -> ZcrpcError:
        """What is wrong with a request: there is no such method, or it is of another kind."""
        for handlers in (self.handlers, self.server.stream_handlers):
            if method in handlers:
                plan = handlers[method][0]
                return FailedPrecondition(f"{plan.name}() {_KINDS[plan.streams]}")
        return Unimplemented(f"there is no method {method}")

    def end_received(self, stream: int) -> None:
        receiver = self.streams.forget_receiver(stream) if self.streams is not None else None
        if receiver is None:
            self.violated(f"an end of items on stream {stream}, where none may come")
        else:
            receiver.end()

    def stray_data(self, stream: int) -> None:
        self.violated(f"items on stream {stream}, where none may come")

    def stream_failed(self, stream: int, error: ZcrpcError) -> None:
        self.log.warning("%s: stream %d: %s", self, stream, error.message)
        call = self.calls.get(stream)
        if call is not None:
            call.stop()
        elif self._take_back(stream) is None:
            return  # answered already
        self.fail(stream, error.status, error.message)

    # ---- how calls go on, and end

    def _suspend(self, stream: int, served: Served, suspended: Suspended, deadline_ms: int) -> None:
        self._keep(Call(self, stream, served, suspended), deadline_ms)

    def _keep(self, call: Call, deadline_ms: int) -> None:
        """A call's handler has suspended."""
        stream, suspended = call.stream, call.suspended
        suspended.then(call.finish)
        self.calls[stream] = call
        self.running += 1
        self.careful = True
        self.server.call_begun()
        if deadline_ms:
            call.tick = self.reactor.deadlines.add(deadline_ms / 1000, call)

    def reply(self, stream: int, served: Served, result: Any) -> None:
        """Ends a call with its result."""
        # The commonest shapes, packed in one go; what follows would do the same.
        kind = type(result)
        context = served[CONTEXT]
        if context is not None and context.answer:
            length, head = 0, b""
        elif kind is memoryview:
            length = result.nbytes
            head = SINGLE_BUFFER if type(result.obj) is bytes and result.c_contiguous else b""
        elif kind is bytes:
            length = len(result)
            head = SINGLE_BYTES if length >= INLINE_BELOW else b""
        else:
            length, head = 0, b""
        if head and length < self._plain_below:
            size = _SINGLE_FRAME_SIZE + length
            reactor = self.reactor
            reactor.pieces += (
                _pack_single(
                    self.number, size, 0, RESPONSE, 0, 0, stream, _SINGLE_HEADER_SIZE, 0, length, head, 0, length
                ),
                result,
            )
            if not reactor.submits:
                reactor.wake()
            return
        try:
            limits = self.peer.limits
            if context is None or not context.answer:
                header, buffers, length = self.reactor.codec.encode_result(result)
            else:
                carried = _encode_answer(context, limits)
                header, buffers, length = self.reactor.codec.encode([result, carried])
            if len(header) > limits.header or length > limits.payload:
                self.check_size(header, length, f"the result of {served[PLAN].name}()")
            pieces: Sequence[bytes | memoryview] = buffers
            flags = 0
            if length >= self.pack_from:
                pieces, length, flags = self.pack(buffers, length)
            if self.send(RESPONSE, stream, 0, 0, header, pieces, length, flags):
                self.careful = True
        except ResourceExhausted as error:
            self.fail(stream, error.status, error.message)
        except (TypeError, ValueError) as error:
            name = served[PLAN].name
            _log.error("%s: the result of %s() cannot be sent: %s", self, name, error)
            self.fail(stream, Status.INTERNAL, f"the result of {name}() cannot be sent: {error}")

    def fail_with(self, stream: int, error: BaseException, served: Served | None = None) -> None:
        """Ends a call with what its handler raised, or with what is wrong with it."""
        name = served[PLAN].name if served is not None else "a method"
        carried = None
        if served is not None and (context := served[CONTEXT]) is not None and context.answer:
            try:
                carried = _encode_answer(context, self.peer.limits)
            except (metadata.MetadataError, ResourceExhausted) as wrong:
                _log.error("%s: sent without metadata: %s", self, wrong)
        if isinstance(error, asyncio.CancelledError):
            self.fail(stream, Status.CANCELLED, f"{name}() was cancelled by the server", None, carried)
            return
        if isinstance(error, UnsendableItem):
            _log.error("%s: %s", self, error)
            error = Internal(str(error))
        if not isinstance(error, ZcrpcError):
            _log.error("%s: %s() raised %s", self, name, type(error).__name__, exc_info=error)
        self.fail(stream, *failure(error), carried)

    def fail(
        self, stream: int, status: Status, message: str, details: Any = None, carried: msgspec.Raw | None = None
    ) -> None:
        """Ends a call with a status; `carried` is its metadata."""
        self.server.errors += 1
        self.log.debug("%s: stream %d: %s: %s", self, stream, status.name, message)
        self.send_error(stream, status, message, details, carried)

    def expired(self, stream: int, message: str) -> None:
        """Ends a call whose deadline has passed."""
        self.server.expired += 1
        self.fail(stream, Status.DEADLINE_EXCEEDED, message)

    def refuse_call(self, stream: int, status: Status, message: str) -> None:
        """Ends a call that no handler has seen: the peer may make it again."""
        self.server.errors += 1
        self.log.debug("%s: stream %d: refused: %s: %s", self, stream, status.name, message)
        self.send_refusal(stream, status, message)

    def cancel(self, stream: int) -> None:
        call = self.calls.get(stream)
        if call is not None:
            call.stop()
        else:
            self._take_back(stream)
        if self.streams is not None and (receiver := self.streams.forget_receiver(stream)) is not None:
            receiver.discard()

    def sent(self, token: int) -> None:
        super().sent(token)
        if self.backlog:
            self._serve_backlog()
        elif not self.pinned:
            self.be_careful()
        if self.parting is not None and not self.pins:
            self._farewell()

    def refused(self, kind: int, flags: int, stream: int, header_length: int, length: int) -> None:
        limit = self.server.max_message
        message = f"a payload of {length} bytes is more than the {limit} that this server takes"
        if kind == REQUEST:
            self.server.requests += 1
            if not self.introduced:
                self.violated("a call before it was answered with a hello")
                return
            if flags & STREAM_IN and (receiver := self._receive(stream)) is not None:
                receiver.discard()
            self._exhausted(stream, "message", message)
        elif kind == DATA:
            streams = self.open_streams()
            streams.refused(stream, header_length + length)
            if stream in streams.receivers:
                streams.receivers[stream].discard()
                self.stream_failed(stream, ResourceExhausted(message))
            else:
                self.stray_data(stream)

    # ---- end

    def retire(self, why: str) -> None:
        """Asks for no more calls, and takes none. Those that it has go on."""
        if self.retiring is None and self.parting is None and self.ended is None:
            self.server.retired += 1
            self.retiring = why
            self.be_careful()
            self.send_goaway(Status.UNAVAILABLE, why)

    def is_done(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return not self.calls and not self.backlog

    def cancel_calls(self, why: str) -> None:
        """Ends all calls; their handlers may still clean up."""
        self.drop_backlog()
        for call in list(self.calls.values()):
            call.stop()
            self.fail(call.stream, Status.UNAVAILABLE, f"{call.method}() was cancelled: {why}")

    def part(self, why: str, status: Status = Status.UNAVAILABLE) -> None:
        """Closes the connection in good order, when what is to be sent is out. No handler may run any more. The last
        word tells the peer that what was not answered then was not begun."""
        if self.parting is not None or self.ended is not None:
            return
        self.parting = why
        self.leave_status = status
        self.careful = True
        if not self.pins:
            self._farewell()

    def _farewell(self) -> None:
        if self.ended is None:
            why = self.parting or "closed"
            self.send_goaway(self.leave_status, why, answered=True)
            self.disconnect(why)

    def take_calls(self) -> bool:
        used, self.used = self.used, False
        return used or not self.introduced or bool(self.running or self.calls or self.backlog or self.pins)

    def unused(self, seconds: float) -> None:
        self.part(f"no call for {seconds:g} s", Status.OK)

    def closed(self, reason: int, number: int) -> None:
        super().closed(reason, number)
        self._opened()
        if self.age is not None:
            self.age.stop()
        if self.authenticating is not None:
            self.authenticating.cancel()
        self.drop_backlog()
        for call in list(self.calls.values()):
            call.stop()
        self.server.connection_closed(self)


def _encode_answer(context: Context, limits: Limits) -> msgspec.Raw:
    """The metadata of a call's answer."""
    return metadata.encode(context.answer, limits.metadata, f"the answer of {context.method}()")
