"""A peer that speaks the wire by hand, from docs/wire.md, so that it can also speak it wrongly."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

PREFACE = b"ZCRPC\r\n\x01"
HELLO, REQUEST, RESPONSE, ERROR, CHUNK, CANCEL, PING, PONG, GOAWAY, DATA, END, CREDIT = range(1, 13)
STREAM_IN, STREAM_OUT = 2, 4
UNPROCESSED = 0x08  # a flag of ERROR and GOAWAY
HEAD = struct.Struct("<BBHIIIQ")


class Frame(NamedTuple):
    kind: int
    method: int
    stream: int
    header: Any
    payload: bytes
    credit: int = 0
    flags: int = 0


def frame(
    kind: int,
    header: Any = b"",
    payload: bytes = b"",
    *,
    method: int = 0,
    stream: int = 0,
    deadline_ms: int = 0,
    flags: int = 0,
    header_length: int | None = None,
    payload_length: int | None = None,
) -> bytes:
    """A whole frame; a header that is not bytes is encoded. The two lengths may lie."""
    if not isinstance(header, bytes):
        header = msgspec.msgpack.encode(header)
    return (
        HEAD.pack(
            kind,
            flags,
            method,
            stream,
            len(header) if header_length is None else header_length,
            deadline_ms,
            len(payload) if payload_length is None else payload_length,
        )
        + header
        + payload
    )


def hello(**changes: Any) -> bytes:
    limits = {"header": 65536, "payload": 1 << 30, "in_flight": 1000}
    return frame(HELLO, {"limits": limits, "chunk": 1 << 20} | changes)


class RawPeer:
    """A connection whose every byte the test decides about."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.methods: dict[str, int] = {}
        self._passed: deque[Frame] = deque()  # came between the chunks of another

    @classmethod
    async def connect(cls, address: str, *, receive_buffer: int = 0) -> RawPeer:
        """Connected; nothing is sent yet."""
        scheme, _, rest = address.partition("://")
        if scheme == "unix":
            return cls(*await asyncio.open_unix_connection(rest, limit=1 << 24))
        host, _, port = rest.rpartition(":")
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 16 if receive_buffer else 1 << 24))

    @classmethod
    async def greeted(cls, address: str, **options: Any) -> RawPeer:
        """Connected, with both hellos said."""
        peer = await cls.connect(address, **options)
        peer.send(PREFACE + hello())
        await peer.read_hello()
        return peer

    async def read_hello(self) -> Frame:
        assert await self.reader.readexactly(len(PREFACE)) == PREFACE
        first = await self.frame()
        assert first.kind == HELLO
        self.methods = first.header.get("methods", {})
        return first

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(self, name: str, *arguments: Any, stream: int = 1, **options: Any) -> None:
        self.send(frame(REQUEST, [list(arguments)], method=self.methods[name], stream=stream, **options))

    async def frame(self, timeout: float = 5) -> Frame:
        """The next frame, with all its chunks; then those that came between them."""
        if self._passed:
            return self._passed.popleft()
        async with asyncio.timeout(timeout):
            first, length = await self._read()
            while len(first.payload) < length:
                part, part_length = await self._read()
                assert len(part.payload) == part_length, "a chunked payload between the chunks of another"
                if part.kind == CHUNK:
                    assert part.stream == first.stream
                    first = first._replace(payload=first.payload + part.payload)
                else:
                    self._passed.append(part)
            return first

    async def _read(self) -> tuple[Frame, int]:
        """The next frame as it stands, with its first chunk, and how long the payload is to be."""
        head = HEAD.unpack(await self.reader.readexactly(HEAD.size))
        kind, flags, method, stream, header_length, deadline, length = head
        header = await self.reader.readexactly(header_length)
        payload = await self.reader.readexactly(min(length, 1 << 20))
        decoded = msgspec.msgpack.decode(header) if header else None
        return Frame(kind, method, stream, decoded, payload, deadline, flags), length

    async def closed(self, timeout: float = 5) -> list[Frame]:
        """Waits until the other side has closed; the frames that it sent before."""
        frames = []
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frames.append(await self.frame(timeout))
        return frames

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Closes with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def __aenter__(self) -> RawPeer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class RawServer:
    """A listener whose every byte the test decides about. `behave(peer)` runs for each connection."""

    def __init__(self, behave: Any) -> None:
        self._behave = behave
        self.errors: list[BaseException] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        try:
            await self._behave(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            await peer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        assert not self.errors
