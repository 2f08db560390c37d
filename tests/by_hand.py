"""One end of a live connection whose batches of events are made by hand, and whose frames are caught before the socket.

So a test decides what is in one batch, and in which order; and what is read lies before a page that cannot be read.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from raw_peer import HEAD, REQUEST, RESPONSE

import zcrpc
import zcrpc.testing
from zcrpc._native import ffi, lib
from zcrpc.connection import Connection
from zcrpc.reactor import Reactor

_PAGE = mmap.PAGESIZE
_DATA = 16 * _PAGE
_RECORD = struct.Struct("<QII")
_libc = ctypes.CDLL(None, use_errno=True)
_Submit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)


class _Event(ctypes.Structure):
    """struct zc_event."""

    _fields_ = (
        ("connection", ctypes.c_uint64),
        ("stream", ctypes.c_uint32),
        ("header", ctypes.c_uint32),
        ("header_length", ctypes.c_uint32),
        ("deadline_ms", ctypes.c_uint32),
        ("method", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("payload", ctypes.c_uint64),
        ("payload_length", ctypes.c_uint64),
        ("lease", ctypes.c_uint64),
    )


class _Batch(ctypes.Structure):
    """struct zc_batch."""

    _fields_ = (("events", ctypes.c_void_p), ("data", ctypes.c_void_p), ("capacity", ctypes.c_uint64))


class Frame(NamedTuple):
    """A small frame, as it is dealt or was caught."""

    kind: int
    stream: int
    header: bytes = b""
    payload: bytes = b""
    method: int = 0
    flags: int = 0
    deadline_ms: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Frame:
        kind, flags, method, stream, header_length, deadline_ms, length = HEAD.unpack_from(data)
        assert len(data) == HEAD.size + header_length + length
        header = data[HEAD.size : HEAD.size + header_length]
        return cls(kind, stream, header, data[HEAD.size + header_length :], method, flags, deadline_ms)


def request(stream: int, method: int, header: bytes = b"", payload: bytes = b"", **more: int) -> Frame:
    return Frame(REQUEST, stream, header, payload, method, **more)


def response(stream: int, header: bytes = b"", payload: bytes = b"") -> Frame:
    return Frame(RESPONSE, stream, header, payload)


class Hand:
    """The reactor of one end."""

    def __init__(self, reactor: Reactor, connection: Connection) -> None:
        self.reactor = reactor
        self.connection = connection
        self.frames: list[Frame] = []
        self._function = _Submit(self._caught)  # kept while it may be called
        self._memory = mmap.mmap(-1, _DATA + _PAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._protect(0)
        self._drive(ctypes.cast(self._function, ctypes.c_void_p).value)

    def close(self) -> None:
        """The frames go to the socket again."""
        self.reactor.submit()
        self._drive(int(ffi.cast("uintptr_t", ffi.addressof(lib, "zc_reactor_submit"))))
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)

    async def deal(self, *frames: Frame, header_last: bool = True) -> list[Frame]:
        """Deals with the frames as one batch; those that were sent meanwhile. Raises what ended the batch. header_last:
        whether it is the last frame's header or its payload that ends where nothing may be read."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self.frames.clear()

        def turn() -> None:  # by the loop, in no task
            try:
                self._deal(frames, header_last)
            except BaseException as error:
                done.set_result(error)
            else:
                done.set_result(None)

        loop.call_soon(turn)
        error = await done
        if error is not None:
            raise error
        return list(self.frames)

    def _deal(self, frames: tuple[Frame, ...], header_last: bool) -> None:
        events = (_Event * len(frames))()
        at = _DATA
        for event, frame in zip(reversed(events), reversed(frames), strict=True):
            for name in ("header", "payload") if header_last else ("payload", "header"):
                data: bytes = getattr(frame, name)
                at -= len(data)
                ctypes.memmove(self._address + at, data, len(data))
                setattr(event, name, at)
                setattr(event, f"{name}_length", len(data))
            event.connection = self.connection.number
            for name in ("kind", "stream", "method", "flags", "deadline_ms"):
                setattr(event, name, getattr(frame, name))
        batch = _Batch(ctypes.addressof(events), self._address, _DATA)
        batches = self.reactor._batches
        self.reactor._batches = [ctypes.addressof(batch)]
        try:
            self.reactor._dispatch(0, len(frames))
        finally:
            self.reactor._batches = batches

    def _caught(self, _core: int, records: int, length: int) -> int:
        data, at = ctypes.string_at(records, length), 0
        while at < length:
            _, size, _ = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            self.frames.append(Frame.parse(data[at : at + size]))
            at += size
        return 0

    def _drive(self, function: int | None) -> None:
        if self.reactor._handle is not None:
            self.reactor.drive(int(ffi.cast("uintptr_t", self.reactor._handle)), function or 0)

    def _protect(self, protection: int) -> None:
        assert _libc.mprotect(ctypes.c_void_p(self._address + _DATA), ctypes.c_size_t(_PAGE), protection) == 0


class Ends(NamedTuple):
    """A server and a client, connected, each in the hand."""

    server: Hand
    client: Hand
    caller: zcrpc.Client
    methods: Callable[[str], int]


@asynccontextmanager
async def in_hand(service: zcrpc.Service, **client: Any) -> AsyncIterator[Ends]:
    pair = zcrpc.testing.pair(service, client=client)
    async with pair:
        await pair.client.ping()  # so both hellos are read
        (connection,) = pair.server._connections
        calling = pair.client._channel.connections()[0]
        ends = Ends(
            Hand(connection.reactor, connection),
            Hand(calling.reactor, calling),
            pair.client,
            lambda name: calling.methods[f"{type(service).__name__}.{name}"],
        )
        try:
            yield ends
        finally:
            ends.server.close()
            ends.client.close()
