"""Drives one native reactor from an event loop.

    reactor's fd readable
      → one poll          everything that is ready is received and parsed, and comes back as a batch of events
      → dispatch          each event goes to its connection; what that wants to send is a frame in the outbox
      → wake              those whose calls were answered go on, and make the next ones
      → one submit        all of it

Whatever is sent outside a batch is submitted once per turn of the loop. Large payloads take another way, by reference:
`send_referenced`.

Nothing that goes wrong with one event keeps the others from being dispatched.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zcrpc import _path
from zcrpc._native import check, ffi, lib
from zcrpc.busy_poll import BusyPoll
from zcrpc.codec import Codec
from zcrpc.deadlines import Deadlines
from zcrpc.eager import Runner, Suspended, WorkerRunner
from zcrpc.forking import MESSAGE, remember
from zcrpc.streams import Counters, Sender
from zcrpc.wire import (
    CANCEL,
    COMPRESSED,
    CREDIT,
    DATA,
    END,
    ERROR,
    EVENT_CLOSED,
    EVENT_REFUSED,
    EVENT_SENT,
    FLAG_UNPROCESSED,
    GOAWAY,
    HELLO,
    PING,
    PONG,
    REQUEST,
    RESPONSE,
    STREAMS,
)

if TYPE_CHECKING:
    from zcrpc.connection import Connection

_log = logging.getLogger("zcrpc.reactor")

# Stalled connections are looked for this often when nothing else happens.
_SWEEP_SECONDS: Final = 1.0

# To look at every page of so many bytes takes longer than to submit replies by themselves, some ten times.
_LONG: Final = 256 << 10

_U32: Final = (1 << 32) - 1
_WITH_PAYLOAD: Final = (REQUEST, RESPONSE, DATA)


@dataclass(slots=True, frozen=True, kw_only=True)
class ReactorOptions:
    """struct zc_reactor_options; see native/net/reactor.h."""

    threaded: bool
    receive: int
    place_from: int
    map_from: int
    header_limit: int
    payload_limit: int
    outbound_limit: int
    stall_ms: int
    busy_poll: float = 0.0  # see BusyPoll

    def __post_init__(self) -> None:
        """ValueError for what the core would refuse, in the words of the options of `Server` and `connect`."""
        for name, value, least, most in (
            ("map_from", self.map_from, 1, _U32),
            ("max_header", self.header_limit, 1024, 1 << 17),
            ("max_message", self.payload_limit, 1, 1 << 62),
            ("max_unread", self.outbound_limit, 0, _U32),
            ("stall_timeout in ms", self.stall_ms, 1, _U32),
            ("place_from", self.place_from, 1, 1 << 16),  # last, since it is lowered to the two above
        ):
            if not least <= value <= most:
                raise ValueError(f"{name}={value}: must be between {least} and {most}")
        if not 0 <= self.busy_poll <= 1:
            raise ValueError(f"busy_poll={self.busy_poll}: must be between 0 and 1 second")


class Reactor(_path.Reactor):
    """One native reactor in one event loop."""

    __slots__ = (
        "__weakref__",
        "_batches",
        "_busy",
        "_handle",
        "_next_token",
        "_poll",
        "_sweeper",
        "runner",
        "streams",
        "timed_out",
        "unsent",
        "violations",
        "wake",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, regions: Any, options: ReactorOptions, runner: Runner | None = None
    ) -> None:
        """regions: struct zc_map *. runner: of the handlers of calls that come in."""
        native = ffi.new("struct zc_reactor_options *")
        native.threaded = options.threaded
        native.receive = options.receive
        native.place_from = options.place_from
        native.map_from = max(options.map_from, options.place_from)
        native.header_limit = options.header_limit
        native.payload_limit = options.payload_limit
        native.outbound_limit = options.outbound_limit
        native.stall_ms = options.stall_ms
        out = ffi.new("struct zc_reactor **")
        check(lib.zc_reactor_create(regions, native, out), "creating a reactor")
        self._handle = out[0]
        self._poll = lib.zc_reactor_poll
        self.drive(_address(self._handle), _address(ffi.addressof(lib, "zc_reactor_submit")))
        self._batches = [_address(lib.zc_reactor_batch(self._handle, index)) for index in range(lib.ZC_BATCHES)]
        self._next_token = 0
        self.loop = loop
        self.codec = Codec()
        self.deadlines = Deadlines(loop)
        self.runner = runner if isinstance(runner, WorkerRunner) else None
        self.template = self.runner.template if self.runner is not None else None
        self.connections: dict[int, Connection] = {}
        self.answered = []
        self.unsent: list[Sender] = []  # streams with items that are sent at the next flush; append, then wake()
        self.streams = Counters()
        self.violations = 0  # of the protocol, by peers
        self.timed_out = 0  # connections whose peers said nothing in time
        self.wake: Callable[[], None] = self._schedule_submit
        loop.add_reader(lib.zc_reactor_fd(self._handle), self._turn)
        remember(self)
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
        self._busy = BusyPoll(loop, options.busy_poll, self._turn) if options.busy_poll else None

    # ---- connections

    def add(self, fd: int, connection: Connection, mapping: bool) -> int:
        """Takes over a connected socket; its number from now on. On an error the fd is still the caller's."""
        number = check(lib.zc_reactor_add(self._handle, fd, mapping), "adding a connection")
        self.connections[number] = connection
        return number

    def silence(self, number: int) -> float:
        """Seconds since something came from a connection, or since it is read again after it was not for a while. 0: it
        is not read now, or is gone."""
        if self._handle is None:
            return 0.0
        milliseconds: int = lib.zc_reactor_silence(self._handle, number)
        return max(0, milliseconds) / 1000

    def set_peer(self, number: int, chunk: int, map_from: int) -> None:
        """How the peer wants payloads to be sent."""
        peer = ffi.new("struct zc_peer *", {"chunk": chunk, "map_from": map_from})
        code = lib.zc_reactor_set_peer(self._handle, number, peer)
        if code != -errno.ENOTCONN:
            check(code, "setting what the peer asked for")

    def disconnect(self, number: int, flush: bool) -> None:
        """Closes a connection, having sent everything or at once. Its `closed` is called later in both cases."""
        if self._handle is None:
            return
        if flush:
            self.flush()
        lib.zc_reactor_disconnect(self._handle, number, flush)

    # ---- out

    def send_referenced(self, number: int, head: bytes, buffers: Sequence[bytes | memoryview]) -> tuple[int, Any]:
        """Sends a frame whose payload is referenced, not copied. (0, None) if that is done; else a token, which `sent`
        will be told, and what must be kept alive until then."""
        pins = [ffi.from_buffer(buffer) for buffer in buffers if len(buffer)]
        array = ffi.new("struct zc_buffer[]", [(pin, len(pin)) for pin in pins])
        self._next_token = token = self._next_token + 1
        code = lib.zc_reactor_send(self._handle, number, head, len(head), array, len(pins), token)
        if code == 0:
            return token, (pins, array)
        if code < 0 and code != -errno.ENOTCONN:  # a connection that is gone is told by its CLOSED event
            check(code, "sending a payload")
        return 0, None

    def queued(self, number: int) -> int:
        """Bytes that wait for a connection's peer to read, not counting what is referenced."""
        return max(0, lib.zc_reactor_queued(self._handle, number)) if self._handle is not None else 0

    def flush(self) -> None:
        """Sends what waits in `unsent`, and the frames that wait."""
        if self.unsent:
            self._flush_senders()
        self.submit()

    def _flush_senders(self) -> None:
        while self.unsent:
            unsent, self.unsent = self.unsent, []
            for sender in unsent:
                sender.dirty = False
                try:
                    sender.flush()
                except Exception:
                    _log.exception("%s: items could not be sent; the connection is closed", sender)
                    sender.streams.connection.abort()

    def submit(self) -> None:
        """Submits the frames that wait."""
        code = self.submit_frames()
        if code < 0:
            _log.error("frames could not be submitted: errno %d", -code)

    def _schedule_submit(self) -> None:
        if not self.submits:
            self.submits = True
            self.loop.call_soon(self._submit_soon)

    def _submit_soon(self) -> None:
        self.submits = False
        if self._handle is not None:
            self.flush()

    # ---- in

    def _turn(self) -> None:
        code = self._poll(self._handle, 0)
        if code > 0:
            self._dispatch(code >> 32, code & 0xFFFFFFFF)
            if self._busy is not None and self._handle is not None:
                self._busy.came()
        elif code < 0:
            _log.critical("the reactor failed with errno %d; its connections are lost", -code)
            self.close()

    def _dispatch(self, index: int, count: int) -> None:
        # Until the batch is done nobody needs to be woken to submit: that is done below.
        scheduled, self.submits = self.submits, True
        self.dispatching = True
        self.open_batch(self._batches[index], count)
        try:
            if self.runner is not None:
                self.runner.work_through(self.work, self._suspended)
            else:
                self.work(None)
        finally:
            for lease in self.rest():  # KeyboardInterrupt, SystemExit: the loop ends, but no lease may be lost
                _release(lease)
            self.dispatching = False
            try:
                self.wake_answered()  # what they then send is submitted with the rest
            finally:
                self.submits = scheduled
                if self._handle is not None:
                    self.flush()

    def _suspended(self, suspended: Suspended) -> None:
        """The handler that was begun last waits for something."""
        self.begun.suspend(suspended)

    def other(
        self,
        connection: Connection | None,
        kind: int,
        flags: int,
        stream: int,
        method: int,
        deadline_ms: int,
        header: bytes,
        payload: bytes,
        place: int,
        length: int,
        lease: int,
    ) -> None:
        """An event that is no small frame of a plain call. `payload` is that of a small frame; of others `place` is the
        address of what is leased, or what else the event tells."""
        if connection is None:
            _release(lease)
        elif kind in _WITH_PAYLOAD:
            body = self._leased(lease, place, length) if lease else payload
            if flags & COMPRESSED:
                connection.compressed(kind, flags, stream, method, deadline_ms, header, body)
            elif kind == DATA:
                connection.data(stream, header, body)
            elif kind == RESPONSE:
                connection.response(stream, header, body)
            elif flags & STREAMS:
                connection.stream_request(stream, method, flags, deadline_ms, header, body)
            else:
                connection.request(stream, method, deadline_ms, header, body)
        elif kind == EVENT_SENT:
            connection.sent(place)
        elif kind == EVENT_CLOSED:
            del self.connections[connection.number]
            connection.closed(method, place)
        elif kind == CREDIT:
            connection.credit(stream, deadline_ms)
        elif kind == EVENT_REFUSED:
            connection.refused(place & 0xFF, flags, stream, place >> 8, length)
        else:
            self._dispatch_rare(connection, kind, flags, stream, method, header)

    def give_up(self, connection: Connection, kind: int, error: Exception) -> None:
        """An event could not be dealt with."""
        text = "%s: an event of kind %d could not be dealt with; the connection is closed"
        _log.error(text, connection, kind, exc_info=error)
        connection.abort()

    def _leased(self, lease: int, address: int, length: int) -> memoryview:
        """A payload in a region. Its handler may take its time if it is long: what was answered before leaves first."""
        if length >= _LONG and self.frames:
            self.submit()
        return leased_view(lease, address, length)

    def _dispatch_rare(
        self, connection: Connection, kind: int, flags: int, stream: int, method: int, header: bytes
    ) -> None:
        if kind == ERROR:
            connection.error(stream, method, header, flags & FLAG_UNPROCESSED != 0)
        elif kind == CANCEL:
            connection.cancel(stream)
        elif kind == HELLO:
            connection.hello(header)
        elif kind == PING:
            connection.ping_received(header)
        elif kind == PONG:
            connection.pong(header)
        elif kind == GOAWAY:
            connection.goaway_received(method, header, flags & FLAG_UNPROCESSED != 0)
        elif kind == END:
            connection.end_received(stream)

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)
        self._turn()

    # ---- life

    def stats(self) -> Any:
        """struct zc_reactor_stats *, filled."""
        stats = ffi.new("struct zc_reactor_stats *")
        if self._handle is not None:
            lib.zc_reactor_stats(self._handle, stats)
        return stats

    @property
    def is_closed(self) -> bool:
        return self._handle is None

    def abandon(self) -> None:
        """This process was forked from the reactor's."""
        if self._handle is not None:
            lib.zc_reactor_abandon(self._handle)
            self._handle = None
        if self._busy is not None:
            self._busy.close()
        self.drive(0, 0)
        for connection in self.connections.values():
            connection.ended = MESSAGE
        self.connections.clear()

    def close(self) -> None:
        """Closes every connection at once. Leases live on. Must not be called while a batch is dispatched, except by
        `_turn`."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if not self.loop.is_closed():
            self.loop.remove_reader(lib.zc_reactor_fd(handle))
        self._sweeper.cancel()
        if self._busy is not None:
            self._busy.close()
        self.deadlines.close()
        self.drive(0, 0)
        self.unsent.clear()
        lib.zc_reactor_destroy(handle)
        connections = list(self.connections.values())
        self.connections.clear()
        for connection in connections:
            try:
                connection.closed(lib.ZC_CLOSE_LOCAL, 0)
            except Exception:
                _log.exception("%s: could not be told that it is closed", connection)


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _release(lease: int) -> None:
    if lease:
        lib.zc_lease_release(ffi.cast("struct zc_lease *", lease))


def leased_view(lease: int, address: int, length: int) -> memoryview:
    """A payload in a region as a read-only view. When the last view of it dies, in whatever thread, the lease is
    released; that may be after connection, server and loop are gone."""
    release, holder = lib.zc_lease_release, ffi.cast("struct zc_lease *", lease)
    pointer = ffi.gc(ffi.cast("unsigned char *", address), lambda _: release(holder))
    return memoryview(ffi.buffer(pointer, length)).toreadonly()
