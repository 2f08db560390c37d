"""The serving end of a connection: calls come in, handlers run, results go out.

A call's way is short: decode, bind, run the handler's first step, encode, append. The commonest calls go it in C, see
native/python/serve.c, all others in `ServerConnection.begin` and `reply`. Only a handler that suspends is given a
`Call`, which the tables of its connection know.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcrpc import metadata
from zcrpc.admission import Admission
from zcrpc.ageing import Age
from zcrpc.calls import Call, StreamCall, produce, release
from zcrpc.codec import HeaderError
from zcrpc.connection import Connection
from zcrpc.context import CONTEXT, METADATA, PLAN, SCOPE, STREAM, UNTIL, Context, Served
from zcrpc.credentials import Caller
from zcrpc.eager import Handler, Suspended, run_plain
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
from zcrpc.opening import Opening
from zcrpc.reactor import Reactor
from zcrpc.service import Plan
from zcrpc.streams import Receiver, UnsendableItem
from zcrpc.tls import Tunnel
from zcrpc.wire import (
    COMPRESSED,
    DATA,
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

Handlers = dict[int, tuple[Plan, Callable[..., Any]]]

_KINDS: Final = {
    0: "takes no stream and has one result: use call()",
    STREAM_OUT: "has a stream of results: use stream()",
    STREAM_IN: "takes a stream of items and has one result: use call(), with an asynchronous iterable",
    STREAM_IN | STREAM_OUT: "takes a stream of items and has a stream of results: use stream(), with an iterable",
}
# Streams of items whose calls were answered, and whose end is still to come, beyond twice those that may be in flight.
_UNENDED: Final = 64


class ServerConnection(Connection):
    """The serving end of a connection."""

    __slots__ = (
        "admission",
        "admitted",
        "age",
        "calls",
        "leave_status",
        "opening",
        "parting",
        "retiring",
        "running",
        "start",
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
        self.used = 0  # requests when it was last looked at
        self.handlers = server.handlers
        self.start = server.runner.start
        self.calls: dict[int, Call] = {}  # those that wait for an answer
        self.admission = Admission(self)
        self.running = 0  # handlers that have suspended, those included that nobody waits for
        self.admitted = True
        self.caller = caller
        super().__init__(
            reactor, fd, mapping, hello, name, _log, packing=server.packing, introduce=server.authenticate is None
        )
        self.be_careful()
        self.opening = Opening(self, server.hello_timeout)
        self.watched = Watch(self, server.watching)
        self.age = Age(self, server.ageing) if server.ageing.age is not None else None
        if tunnel is not None:
            tunnel.on_end = self.tunnel_ended
            tunnel.start()

    # ---- opening

    def greeting(self) -> None:
        if not self.admitted:
            self.opening.end()
            self.disconnect("too many connections")
        else:
            self.opening.greeted(self.server.authenticate)

    def be_careful(self) -> None:
        """Whether a call is to be refused or put off is looked at only when it can be."""
        self.careful = (
            self.running > 0
            or bool(self.admission)
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

    def begin(
        self, stream: int, method: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> Handler | None:
        self.requests += 1
        if (self.careful or self.server.full or not stream) and not self.admission.allows(
            stream, method, deadline_ms, header, payload
        ):
            return None
        try:
            plan, handler = self.handlers[method]
        except KeyError:
            self.fail_with(stream, self._no_handler(method))
            return None
        until = time.monotonic() + deadline_ms / 1000 if deadline_ms else 0.0
        served: Served = [self.caller, plan, until, NOTHING, None, False, stream]
        try:
            try:
                arguments, keywords = self._bind(served, header, payload)
            except Exception as error:
                self._misfit(stream, served, handler, error, deadline_ms)
                return None
            if not plan.is_async:  # what is gets its scope from who awaits it
                token = SCOPE.set(served)
                try:
                    result = run_plain(self.reactor.loop, handler, arguments, keywords)
                finally:
                    SCOPE.reset(token)
            elif keywords is None:
                result = handler(*arguments)
            else:
                result = handler(*arguments, **keywords)
        except (Exception, asyncio.CancelledError) as error:
            self.fail_with(stream, error, served)
            return None
        if type(result) is CoroutineType:
            self.begun = served
            return result
        self.reply(stream, served, result)
        return None

    def start_handler(self, handler: Handler, served: Served, stream: int, deadline_ms: int) -> None:
        try:
            result = self.start(handler, served)
        except (Exception, asyncio.CancelledError) as error:
            self.fail_with(stream, error, served)
            return
        if isinstance(result, Suspended):
            self._suspend(stream, served, result, deadline_ms)
        else:
            self.reply(stream, served, result)

    def suspend(self, suspended: Suspended) -> None:
        served = self.begun
        until: float = served[UNTIL]
        deadline_ms = max(1, math.ceil((until - time.monotonic()) * 1000)) if until else 0
        self._suspend(served[STREAM], served, suspended, deadline_ms)

    def _bind(
        self, served: Served, header: bytes, payload: bytes | memoryview
    ) -> tuple[list[Any], dict[str, Any] | None]:
        """Arguments and keywords of a call. Raises what is wrong with them."""
        plan: Plan = served[PLAN]
        codec = self.reactor.codec
        arguments, keywords, sent_along = codec.decode_call(header, payload, plan.buffers)
        if sent_along is not None:
            served[METADATA] = metadata.decode(sent_along, self.server.max_metadata, f"{plan.name}()")
        if keywords is None:
            return plan.bind(arguments, codec), None
        return plan.bind_named(arguments, keywords, codec)

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

    def exhaust(self, stream: int, limit: str, message: str) -> None:
        """Refuses a call because a limit is reached."""
        self.server.exhausted[limit] += 1
        self.refuse_call(stream, Status.RESOURCE_EXHAUSTED, message)

    def compressed_request(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        if flags & STREAMS:
            self.stream_request(stream, method, flags, deadline_ms, header, payload)
            return
        self.requests += 1
        # What is refused or put off is not decompressed.
        if self.admission.allows(stream, method, deadline_ms, header, payload, flags):
            self.request_now(stream, method, flags, deadline_ms, header, payload)
            self.be_careful()

    def request_now(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        """Serves a call that may begin."""
        if flags & COMPRESSED:
            unpacked = self._unpack_for(stream, payload)
            if unpacked is None:
                return
            payload = unpacked
        self.requests -= 1  # counted when it came
        self.careful = False  # it may begin
        self.request(stream, method, deadline_ms, header, payload)

    def _unpack_for(self, stream: int, payload: bytes | memoryview) -> memoryview | None:
        """The payload of a call, decompressed. None if that cannot be done; the call is answered then."""
        try:
            return self.unpack(payload)
        except ResourceExhausted as error:
            self.exhaust(stream, "decompressed", error.message)
        except ZcrpcError as error:
            self.fail(stream, error.status, error.message)
        return None

    # ---- calls with streams

    def stream_request(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        self.requests += 1
        receiver = None
        if flags & STREAM_IN and (receiver := self._receive(stream)) is None:
            return
        if self.admission.allows(stream, method, deadline_ms, header, payload, flags, receiver):
            self.begin_streams(stream, method, flags, deadline_ms, header, payload, receiver)
        elif stream not in self.admission:
            release(receiver, None)

    def begin_streams(
        self,
        stream: int,
        method: int,
        flags: int,
        deadline_ms: int,
        header: bytes,
        payload: bytes | memoryview,
        receiver: Receiver | None,
    ) -> None:
        """Serves a call with streams that may begin."""
        streams, sender = self.open_streams(), None
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
        served: Served = [self.caller, plan, until, NOTHING, None, False, stream]
        try:
            arguments, named = self._bind(served, header, payload)
            keywords = named or {}
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
                result = run_plain(self.reactor.loop, handler, arguments, keywords)
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
        elif not self.admission.take_back(stream):
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
        context = served[CONTEXT]
        plain = context is None or not context.answer
        try:
            if plain and self.reply_plain(stream, result):
                return
            limits = self.peer.limits
            if plain:
                header, buffers, length = self.reactor.codec.encode_result(result)
            else:
                carried = _encode_answer(context, limits)
                header, buffers, length = self.reactor.codec.encode([result, carried])
            if len(header) > limits.header or length > limits.payload:
                self.check_size(header, length, f"the result of {served[PLAN].name}()")
            payload: Sequence[bytes | memoryview] = buffers
            flags = 0
            if length >= self.pack_from:
                payload, length, flags = self.pack(buffers, length)
            if self.send(RESPONSE, stream, 0, 0, header, payload, length, flags):
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
            self.admission.take_back(stream)
        if self.streams is not None and (receiver := self.streams.forget_receiver(stream)) is not None:
            receiver.discard()

    def sent(self, token: int) -> None:
        super().sent(token)
        if self.admission:
            self.admission.go_on()
        elif not self.pinned:
            self.be_careful()
        if self.parting is not None and not self.pins:
            self._farewell()

    def refused(self, kind: int, flags: int, stream: int, header_length: int, length: int) -> None:
        limit = self.server.max_message
        message = f"a payload of {length} bytes is more than the {limit} that this server takes"
        if kind == REQUEST:
            self.requests += 1
            if not self.introduced:
                self.violated("a call before it was answered with a hello")
                return
            if flags & STREAM_IN and (receiver := self._receive(stream)) is not None:
                receiver.discard()
            self.exhaust(stream, "message", message)
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
        return not self.calls and not self.admission

    def cancel_calls(self, why: str) -> None:
        """Ends all calls; their handlers may still clean up."""
        self.admission.drop()
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
        used, self.used = self.used, self.requests
        return (
            used != self.requests
            or not self.introduced
            or bool(self.running or self.calls or self.admission or self.pins)
        )

    def unused(self, seconds: float) -> None:
        self.part(f"no call for {seconds:g} s", Status.OK)

    def closed(self, reason: int, number: int) -> None:
        super().closed(reason, number)
        self.opening.close()
        if self.age is not None:
            self.age.stop()
        self.admission.drop()
        for call in list(self.calls.values()):
            call.stop()
        self.server.connection_closed(self)


def _encode_answer(context: Context, limits: Limits) -> msgspec.Raw:
    """The metadata of a call's answer."""
    return metadata.encode(context.answer, limits.metadata, f"the answer of {context.method}()")
