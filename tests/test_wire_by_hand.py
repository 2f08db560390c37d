"""A client written from docs/wire.md alone, with nothing of zcrpc's: can the wire be implemented elsewhere?"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from conftest import Serving

import zcrpc

HEADER = struct.Struct("<BBHIIIQ")
HELLO, REQUEST, RESPONSE, ERROR, CHUNK, PING, PONG = 1, 2, 3, 4, 5, 7, 8
DATA, END, CREDIT = 10, 11, 12
PREFACE = bytes.fromhex("5A 43 52 50 43 0D 0A 01")
PADDED, STREAM_IN, STREAM_OUT = 1, 2, 4
MY_CHUNK = 16384
"""What the server is to cut results into: not its own choice."""
MY_WINDOW = 50_000
"""Bytes of a stream's items that I take before I grant more."""


class Mirror(zcrpc.Service):
    @zcrpc.method
    async def reversed(self, name: str, value: memoryview) -> bytes:
        return bytes(value)[::-1]

    @zcrpc.method
    async def doubled(self, items: AsyncIterator[bytes], times: int) -> AsyncIterator[bytes]:
        async for item in items:
            for _ in range(times):
                yield item * 2


class Peer:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        limits = {"header": 65536, "payload": 1 << 28, "in_flight": 10, "stream_window": MY_WINDOW}
        self.send(HELLO, msgspec.msgpack.encode({"limits": limits, "chunk": MY_CHUNK}), before=PREFACE)
        assert self.take(8) == PREFACE
        kind, _, _, header, _ = self.frame()
        assert kind == HELLO
        self.hello = msgspec.msgpack.decode(header)

    def take(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            more = self.socket.recv(count - len(taken))
            assert more, "the server closed"
            taken += more
        return taken

    def frame(self) -> tuple[int, int, int, bytes, int]:
        kind, flags, method, stream, header_length, _, payload_length = HEADER.unpack(self.take(HEADER.size))
        return kind, flags | method << 8, stream, self.take(header_length), payload_length

    def send(
        self, kind: int, header: bytes, payload: bytes = b"", *, total: int = 0, before: bytes = b"", **more: int
    ) -> None:
        flags, method, stream, deadline = (more.get(key, 0) for key in ("flags", "method", "stream", "deadline"))
        frame = HEADER.pack(kind, flags, method, stream, len(header), deadline, total or len(payload)) + header
        self.socket.sendall(before + frame + payload)

    def request(self, stream: int, arguments: list[Any], payload: bytes, padded: bool) -> None:
        """A payload in chunks, with a ping between the first two of them."""
        size, flags = self.hello["chunk"], PADDED if padded else 0
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        full = [piece + bytes(-len(piece) % 4096) if padded else piece for piece in pieces]
        method = self.hello["methods"]["Mirror.reversed"]
        header = msgspec.msgpack.encode([arguments])
        self.send(
            REQUEST, header, full[0], total=len(payload), flags=flags, method=method, stream=stream, deadline=5000
        )
        self.send(PING, b"between")
        for piece, bytes_sent in zip(pieces[1:], full[1:], strict=True):
            self.send(CHUNK, b"", bytes_sent, total=len(piece), stream=stream)

    def response(self, stream: int) -> tuple[Any, bytes, int]:
        """The result, its payload, and how many pongs came before its end."""
        result, payload, pongs, total = None, b"", 0, -1
        while len(payload) != total:
            kind, _, number, header, length = self.frame()
            if kind == PONG:
                assert header == b"between"
                pongs += 1
                continue
            assert number == stream
            if kind == RESPONSE:
                (result,), total = msgspec.msgpack.decode(header), length
                length = min(length, MY_CHUNK)
            else:
                assert kind == CHUNK
                assert length <= MY_CHUNK
            payload += self.take(length)
        return result, payload, pongs

    def stream(self, stream: int, items: list[bytes], times: int) -> list[bytes]:
        """Sends items and grants credit for what comes back as its own is used up."""
        method = self.hello["methods"]["Mirror.doubled"]
        flags = STREAM_IN | STREAM_OUT
        self.send(REQUEST, msgspec.msgpack.encode([[times]]), method=method, stream=stream, flags=flags)
        for item in items:
            self.send(DATA, msgspec.msgpack.encode([item]), stream=stream)
        self.send(END, b"", stream=stream)
        found: list[bytes] = []
        cost = granted = 0
        while True:
            kind, _, number, header, length = self.frame()
            if kind == CREDIT:
                continue
            assert number == stream
            if kind == RESPONSE:
                assert not header
                return found
            assert kind == DATA
            assert cost < MY_WINDOW + granted, "sent without credit"
            payload = self.take(min(length, MY_CHUNK))
            while len(payload) < length:
                kind, _, number, _, more = self.frame()
                assert (kind, number) == (CHUNK, stream)
                payload += self.take(more)
            for item in msgspec.msgpack.decode(header):
                if isinstance(item, bytes):
                    found.append(item)
                else:
                    offset, size = struct.unpack("<QQ", item.data)
                    found.append(payload[offset : offset + size])
            cost += HEADER.size + len(header) + length
            if MY_WINDOW + granted - cost <= 0:
                self.send(CREDIT, b"", stream=stream, deadline=MY_WINDOW)
                granted += MY_WINDOW


def converse(port: int) -> int:
    """Calls in every form; returns the last call's stream."""
    peer = Peer(port)
    for stream, padded in ((5, False), (6, True)):
        payload = bytes(range(251)) * 13000
        buffer = msgspec.msgpack.Ext(2, struct.pack("<QQ", 0, len(payload)))
        peer.request(stream, ["name", buffer], payload, padded)
        result, came, pongs = peer.response(stream)
        assert result.code == 1
        assert struct.unpack("<QQ", result.data) == (0, len(payload))
        assert came == payload[::-1]
        assert pongs == 1
    sent = [bytes([number]) * (number * 97) for number in range(1, 40)]
    assert peer.stream(9, sent, 30) == [item * 2 for item in sent for _ in range(30)]
    assert peer.stream(10, [], 1) == []
    peer.send(REQUEST, b"", method=999, stream=7)
    kind, status, stream, header, _ = peer.frame()
    assert (kind, status >> 8, stream) == (ERROR, 12, 7)
    assert "999" in msgspec.msgpack.decode(header)[0]
    peer.socket.close()
    return stream


async def test_documented_wire_is_the_wire(serving: Serving) -> None:
    for receive in ("copy", "zerocopy"):
        async with serving(Mirror(), receive=receive) as (_, address):
            assert await asyncio.to_thread(converse, int(address.rsplit(":", 1)[1])) == 7
