"""The protocol of one connection, as far as it is the same for both ends: hello, sending, ping, goaway, how it ends.

Which calls there are is for the two ends to know: `ServerConnection` in server.py, `ClientConnection` in client.py.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from zcrpc import _path, metadata
from zcrpc._native import lib
from zcrpc.codec import COPY_BELOW, HeaderError
from zcrpc.compression import FEATURE, CompressionError, Packed, Packing
from zcrpc.context import Served
from zcrpc.deadlines import Expiring
from zcrpc.eager import Handler, Suspended
from zcrpc.errors import Internal, ResourceExhausted, Status, Unavailable, ZcrpcError, from_status
from zcrpc.keepalive import Watch
from zcrpc.reactor import Reactor
from zcrpc.streams import Streams
from zcrpc.tls import describe
from zcrpc.wire import (
    CANCEL,
    COMPRESSED,
    DATA,
    ERROR,
    FLAG_UNPROCESSED,
    FRAME,
    GOAWAY,
    HELLO,
    PING,
    PING_LIMIT,
    PONG,
    REQUEST,
    RESPONSE,
    Hello,
    Limits,
    decode_hello,
    encode_hello,
)

# What is known of a peer before its hello: nothing may be sent to it but a goaway.
_UNKNOWN: Final = Hello(limits=Limits(header=1024, payload=0, in_flight=1), chunk=4096)
_MOST_IN_FLIGHT: Final = (1 << 32) - 1
# The payload length that no payload reaches.
_NEVER: Final = 1 << 63
# A message is for people. This many characters of it travel at most.
_MESSAGE_LIMIT: Final = 2000

# The header of a keepalive's ping, and of no other. Any bytes would do; these are a msgpack string.
_PROBE: Final = b"\xa9keepalive"

_encode = msgspec.msgpack.Encoder().encode

# enum zc_close: what is logged, and whether the peer is to blame.
_ENDS: Final[dict[int, tuple[str, bool]]] = {
    lib.ZC_CLOSE_LOCAL: ("closed by this side", False),
    lib.ZC_CLOSE_EOF: ("closed by the peer", False),
    lib.ZC_CLOSE_TRUNCATED: ("closed by the peer in the middle of a frame", True),
    lib.ZC_CLOSE_SYSTEM: ("lost", False),
    lib.ZC_CLOSE_PREFACE: ("the peer does not speak zcrpc, or another version of it", True),
    lib.ZC_CLOSE_HELLO: ("no hello where one must be, or one where none may be", True),
    lib.ZC_CLOSE_KIND: ("unknown kind of frame", True),
    lib.ZC_CLOSE_HEADER: ("a header over the limit", True),
    lib.ZC_CLOSE_CHUNK: ("a chunk that continues nothing, or more than was announced", True),
    lib.ZC_CLOSE_PAYLOAD: ("a payload where none may be", True),
    lib.ZC_CLOSE_STALLED: ("the peer stopped in the middle of a frame, or before its hello", True),
    lib.ZC_CLOSE_UNREAD: ("the peer does not read", True),
    lib.ZC_CLOSE_MEMORY: ("no memory", False),
}


class Pin:
    """A payload sent by reference: what keeps it alive; whom to tell when it has gone, and the call to cancel then."""

    __slots__ = ("cancels", "done", "holds", "length")

    def __init__(self, holds: Any, length: int) -> None:
        self.holds = holds
        self.length = length
        self.cancels = 0
        self.done: Callable[[], None] | None = None


class Connection(_path.Connection):
    """One end of a connection."""

    __slots__ = (
        "_reference_from",
        "introduced",
        "limits",
        "log",
        "name",
        "own",
        "pack_from",
        "packing",
        "peer",
        "pinned",
        "pins",
        "watched",
    )

    # What a peer's payload gets that does not decompress.
    malformed: type[ZcrpcError] = Internal

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        mapping: bool,
        hello: Hello,
        name: str,
        log: logging.Logger,
        *,
        packing: Packing | None = None,
        introduce: bool = True,
    ) -> None:
        """Takes over a connected socket and greets the peer, unless that is left for later. On an error the fd is still
        the caller's. packing: compresses, if the peer wants that too."""
        self.reactor = reactor
        self.name = name
        self.log = log
        self.own = hello
        self.introduced = False  # the own hello has been sent
        self.peer: Hello = _UNKNOWN
        self.limits = hello.limits
        self.streams = None  # there are none yet
        self.pins: dict[int, Pin] = {}
        self.pinned = 0  # bytes of payload in all of them
        self.ended = None
        self.watched: Watch | None = None
        self.packing = packing
        self.pack_from = _NEVER  # bytes of a payload from which on it may be compressed
        self._reference_from = _NEVER
        self.number = reactor.add(fd, self, mapping)
        if introduce:
            self.introduce(hello)

    def __str__(self) -> str:
        return self.name

    @property
    def greeted(self) -> bool:
        """Whether the peer's hello has come."""
        return self.peer is not _UNKNOWN

    # ---- out

    def introduce(self, hello: Hello) -> None:
        """Sends the hello, before which nothing may be sent."""
        self.introduced = True
        self.send(HELLO, 0, header=encode_hello(hello))
        if hello.token:
            self.own = dataclasses.replace(hello, token="")  # nobody needs it any more

    def send(
        self,
        kind: int,
        stream: int,
        method: int = 0,
        deadline_ms: int = 0,
        header: bytes | bytearray = b"",
        buffers: Sequence[bytes | memoryview] = (),
        length: int = 0,
        flags: int = 0,
    ) -> int:
        """Sends a frame with the payload `buffers`, of `length` bytes in all. A token in `pins` while they are
        referenced, else 0."""
        reactor = self.reactor
        if length < self._reference_from:
            reactor.frame(self.number, kind, flags, method, stream, deadline_ms, header, tuple(buffers))
            return 0
        head = FRAME.pack(kind, flags, method, stream, len(header), deadline_ms, length) + header
        token, holds = reactor.send_referenced(self.number, head, buffers)
        if token:
            self.pins[token] = Pin(holds, length)
            self.pinned += length
        return token

    def pack(self, buffers: Sequence[bytes | memoryview], length: int) -> tuple[Sequence[bytes | memoryview], int, int]:
        """A payload of at least `pack_from` bytes, compressed if that makes it smaller; its length, and flags of its
        frame."""
        packed = self.packing.pack(buffers, length) if self.packing is not None else None
        return (buffers, length, 0) if packed is None else ((packed,), len(packed), COMPRESSED)

    def check_size(self, header: bytes | bytearray, length: int, what: str) -> None:
        """ResourceExhausted if the peer said that it would not take that much."""
        limits = self.peer.limits
        if len(header) > limits.header:
            raise ResourceExhausted(
                f"{what}: {len(header)} bytes besides buffers are more than the {limits.header} that the peer takes; "
                "send large data as buffers"
            )
        if length > limits.payload:
            raise ResourceExhausted(
                f"{what}: buffers of {length} bytes are more than the {limits.payload} that the peer takes"
            )

    def send_refusal(self, stream: int, status: int, message: str) -> None:
        """Ends a call that no handler has seen, and says so."""
        self.send(ERROR, stream, status, 0, _encode([_shorten(message)]), flags=FLAG_UNPROCESSED)

    def send_error(
        self, stream: int, status: int, message: str, details: Any = None, metadata: msgspec.Raw | None = None
    ) -> None:
        """Ends a call with a status. Details that cannot be sent are left out."""
        message = _shorten(message)
        header = _encode([message] if metadata is None else [message, None, metadata])
        if metadata is not None and len(header) > self.peer.limits.header:
            self.log.warning("%s: the metadata of an error cannot be sent: it has %d bytes", self, len(header))
            header, metadata = _encode([message]), None
        if details is not None:
            try:
                detailed = _encode([message, details] if metadata is None else [message, details, metadata])
                if len(detailed) > self.peer.limits.header:
                    raise ValueError(f"{len(detailed)} bytes")
                header = detailed
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                self.log.warning("%s: the details of an error cannot be sent: %s", self, error)
        self.send(ERROR, stream, status, 0, header)

    def send_cancel(self, stream: int, token: int = 0) -> None:
        """Says that a call's answer is not wanted any more; if the call itself is still being sent under `token`, after
        that."""
        pin = self.pins.get(token) if token else None
        if pin is None:
            self.send(CANCEL, stream)
        else:
            pin.cancels = stream

    def send_data(
        self, stream: int, header: bytearray, buffers: Sequence[bytes | memoryview], length: int, flags: int
    ) -> int:
        """Sends items. What goes by reference goes at once, so what was sent before is sent before it. A token in
        `pins`, else 0."""
        if length >= self._reference_from:
            self.reactor.submit()
        return self.send(DATA, stream, header=header, buffers=buffers, length=length, flags=flags)

    def unread(self) -> int:
        """Bytes of small frames that wait for the peer to read."""
        return self.reactor.queued(self.number)

    def send_ping(self, header: bytes) -> None:
        """Asks for a pong with the same header."""
        self.send(PING, 0, header=header)

    def send_goaway(self, status: Status, message: str, *, answered: bool = False) -> None:
        """Asks for no more calls. A peer that knows nothing of this side yet is told no more than it must. `answered`:
        all calls that were begun are, and this is the last frame."""
        if not self.introduced:
            self.introduce(dataclasses.replace(self.own, methods={}))
        flags = FLAG_UNPROCESSED if answered else 0
        self.send(GOAWAY, 0, status, 0, _encode([_shorten(message)]), flags=flags)

    def disconnect(self, why: str) -> None:
        """Closes the connection after what is queued has been sent."""
        if self.ended is None:
            self.ended = why
        self.reactor.disconnect(self.number, flush=True)

    def abort(self, why: str = "an internal error") -> None:
        """Closes the connection at once."""
        if self.ended is None:
            self.ended = why
        self.reactor.disconnect(self.number, flush=False)

    def violated(self, what: str) -> None:
        """The peer broke the protocol: it is told, and the connection closed."""
        if self.ended is not None:
            return
        self.log.warning("%s: %s; the connection is closed", self, what)
        self.reactor.violations += 1
        self.send_goaway(Status.INVALID_ARGUMENT, what)
        self.disconnect(what)

    # ---- watched: see keepalive.py

    def silence(self) -> float:
        # Before the own hello nothing may be sent, and the peer has nothing to answer.
        return self.reactor.silence(self.number) if self.introduced else 0.0

    def probe(self) -> None:
        self.send_ping(_PROBE)

    def silent(self, seconds: float) -> None:
        why = f"the peer was silent for {seconds:.3g} s and does not answer pings"
        self.log.warning("%s: %s", self, why)
        self.reactor.timed_out += 1
        self.abort(why)

    def watch(self, seconds: float, item: Expiring) -> int:
        return self.reactor.deadlines.add(seconds, item)

    def unwatch(self, tick: int, item: Expiring) -> None:
        self.reactor.deadlines.discard(tick, item)

    def tunnel_ended(self, error: OSError | None) -> None:
        """The TLS side has ended: in good order, or with an error, which the reactor cannot know of."""
        if error is not None and self.ended is None:
            self.ended = f"TLS: {describe(error)}"
            blamed = not isinstance(error, ssl.SSLEOFError | ConnectionError)
            self.log.log(logging.WARNING if blamed else logging.DEBUG, "%s: %s", self, self.ended)

    # ---- in: called by the reactor

    def hello(self, header: bytes) -> None:
        """The peer's hello; the core has seen to it that it comes first and once."""
        try:
            peer = decode_hello(header)
        except ValueError as error:
            self.violated(f"hello: {error}")
            return
        self.peer = peer
        self._reference_from = min(COPY_BELOW, peer.map_from or COPY_BELOW, peer.chunk, peer.limits.payload + 1)
        if self.packing is not None:
            if FEATURE in peer.features:
                self.pack_from = self.packing.options.compress_from
            else:
                self.packing = None
        self.plain_below = min(self._reference_from, self.pack_from)
        self.header_limit = peer.limits.header
        self.in_flight = min(peer.limits.in_flight, _MOST_IN_FLIGHT)
        self.reactor.set_peer(self.number, peer.chunk, peer.map_from)
        self.greeting()

    def greeting(self) -> None:
        """The peer's hello was understood."""

    def begin(
        self, stream: int, method: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> Handler | None:
        """A call. Returns the handler if it is to be awaited; what surrounds the call is `begun` then. This end serves
        none."""
        self.send_error(stream, Status.UNIMPLEMENTED, "this side serves no calls")
        return None

    def request(self, stream: int, method: int, deadline_ms: int, header: bytes, payload: bytes | memoryview) -> None:
        """A call that comes by itself, not as one of many."""
        handler = self.begin(stream, method, deadline_ms, header, payload)
        if handler is not None:
            self.start_handler(handler, self.begun, stream, deadline_ms)

    def start_handler(self, handler: Handler, served: Served, stream: int, deadline_ms: int) -> None:
        """Awaits a handler."""
        raise NotImplementedError

    def suspend(self, suspended: Suspended) -> None:
        """The handler of the call that was begun last waits for something."""
        raise NotImplementedError

    def reply(self, stream: int, served: Served, result: Any) -> None:
        """A handler is done."""
        raise NotImplementedError

    def fail_with(self, stream: int, error: BaseException, served: Served | None = None) -> None:
        """A handler has raised."""
        raise NotImplementedError

    def response(self, stream: int, header: bytes, payload: bytes | memoryview) -> None:
        """An answer. To no call of this end: too late, or nonsense, and nothing is lost by ignoring it."""

    def error(self, stream: int, status: int, header: bytes, unprocessed: bool) -> None:
        """A call failed. See `response`."""

    def cancel(self, stream: int) -> None:
        """The caller does not want the answer any more."""

    def refused(self, kind: int, flags: int, stream: int, header_length: int, length: int) -> None:
        """A payload of the peer was over the limit and is discarded; the stream of frames is intact."""

    # ---- compressed payloads

    def compressed(
        self,
        kind: int,
        flags: int,
        stream: int,
        method: int,
        deadline_ms: int,
        header: bytes,
        payload: bytes | memoryview,
    ) -> None:
        """A request, response or items whose payload is compressed."""
        if self.packing is None:
            self.violated("a compressed payload, where that was not agreed on")
        elif kind == REQUEST:
            self.compressed_request(stream, method, flags, deadline_ms, header, payload)
        elif kind == RESPONSE:
            self.compressed_response(stream, header, payload)
        else:
            self.data(stream, header, Packed(payload))

    def compressed_request(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        """A call. This end serves none."""
        self.request(stream, method, deadline_ms, header, payload)

    def compressed_response(self, stream: int, header: bytes, payload: bytes | memoryview) -> None:
        """An answer. See `response`."""

    def unpack(self, payload: bytes | memoryview) -> memoryview:
        """A payload decompressed. Raises `malformed`, or ResourceExhausted where there is no room for it."""
        assert self.packing is not None
        try:
            return self.packing.unpack(payload)
        except CompressionError as error:
            self.log.warning("%s: a payload does not decompress: %s", self, error)
            raise self.malformed(f"the payload does not decompress: {error}") from None
        except ResourceExhausted as error:
            self.log.warning("%s: %s", self, error.message)
            raise

    # ---- streams

    def open_streams(self) -> Streams:
        """The connection's streams; made when they are first needed."""
        if self.streams is None:
            self.streams = Streams(self)
        return self.streams

    def stream_request(
        self, stream: int, method: int, flags: int, deadline_ms: int, header: bytes, payload: bytes | memoryview
    ) -> None:
        """A call with streams. This end serves none."""
        self.send_error(stream, Status.UNIMPLEMENTED, "this side serves no calls")

    def data(self, stream: int, header: bytes, payload: bytes | memoryview | Packed) -> None:
        """Items of a stream."""
        self.open_streams().data(stream, header, payload)

    def end_received(self, stream: int) -> None:
        """The caller has no more items."""
        self.violated("an end of items from a side that serves calls")

    def credit(self, stream: int, count: int) -> None:
        """The peer takes more items."""
        self.open_streams().granted(stream, count)

    def stray_data(self, stream: int) -> None:
        """Items of a stream that nobody here receives. To no call of this end: too late, and ignored."""

    def stream_failed(self, stream: int, error: ZcrpcError) -> None:
        """What came on a stream cannot be taken: its call is over."""

    def ping_received(self, header: bytes) -> None:
        """Answers."""
        if len(header) > PING_LIMIT:
            self.violated(f"a ping of {len(header)} bytes")
        elif not self.introduced:
            self.violated("a ping before it was answered with a hello")
        else:
            self.send(PONG, 0, header=header)

    def pong(self, header: bytes) -> None:
        """The answer to a ping."""
        if header == _PROBE and self.watched is not None:
            self.watched.answered()

    def goaway_received(self, status: int, header: bytes, unprocessed: bool) -> None:
        """The peer takes no more calls. `unprocessed`: and calls that are not answered when the connection ends were
        not begun."""

    def sent(self, token: int) -> None:
        """A referenced payload may be let go."""
        pin = self.pins.pop(token, None)
        if pin is not None:
            self.pinned -= pin.length
            if pin.done is not None:
                pin.done()
            if pin.cancels:
                self.send(CANCEL, pin.cancels)

    def closed(self, reason: int, number: int) -> None:
        """The connection is gone. The reactor's last word about it."""
        self.pins.clear()
        if self.watched is not None:
            self.watched.stop()
        text, blamed = _ENDS.get(reason, ("closed", True))
        if reason == lib.ZC_CLOSE_SYSTEM and number:
            text = os.strerror(number)
        if self.ended is None:
            self.ended = text
        self.log.log(logging.WARNING if blamed else logging.DEBUG, "%s: %s", self, text)
        if blamed:
            self.reactor.violations += 1
        if self.streams is not None:
            self.streams.close(self.end_of_calls(reason))

    def end_of_calls(self, reason: int) -> Unavailable:
        """What calls without an answer fail with. reason: enum zc_close."""
        return self.loss()

    # ---- headers

    def decode_error(self, status: int, header: bytes) -> ZcrpcError:
        """The exception that an error frame or a goaway stands for."""
        message: Any = ""
        details: Any = None
        carried: Any = None
        if header:
            try:
                parts = self.reactor.codec.decode(header)
            except HeaderError as wrong:
                self.log.warning("%s: an error's header does not decode: %s", self, wrong)
                parts = None
            if type(parts) is list and parts:
                message, details = parts[0], parts[1] if len(parts) > 1 else None
                if len(parts) > 2:
                    carried = parts[2]
        error = from_status(status, message if type(message) is str else "", details)
        if carried is not None:
            try:
                error.metadata = metadata.decode(carried, self.limits.metadata, "an error")
            except (metadata.MetadataError, ResourceExhausted) as wrong:
                self.log.warning("%s: %s", self, wrong)
        return error

    def loss(self, unprocessed: bool = False) -> Unavailable:
        """What calls fail with when the connection is gone."""
        error = Unavailable(f"{self.name}: {self.ended or 'closed'}")
        error.unprocessed = unprocessed
        return error


def _shorten(message: str) -> str:
    message = message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"
    return message.encode("utf-8", "replace").decode()  # lone surrogates cannot travel
