"""The other floor: what a hand-written uvloop server costs that does nothing but move length-prefixed messages.

python uvloop_echo.py echo      asyncio.Protocol; sends every message back as it came
python uvloop_echo.py upload    asyncio.BufferedProtocol; bodies arrive straight in a reused buffer of their own size,
                                the first byte of each of their pages is added up; the answer is 16 bytes: a length of 8
                                and that sum
python uvloop_echo.py mixed     messages of less than 1 MiB are echoed, the others are uploads
python uvloop_echo.py download BYTES
                                answers every message with so many bytes, the last 8 of which are the sum of their
                                pages' first bytes

Same protocol, same start-up (the port on standard output) as ``c_echo.c``. No request ids, no errors, no
cancellation, no flow control."""

import asyncio
import os
import sys
from collections.abc import Callable

import numpy
import uvloop

PREFIX = 8
PAGE = 4096
LARGE = 1 << 20  # bytes; mixed: uploads


class Echo(asyncio.Protocol):
    """Echoes whole messages, those that arrived together in one write; what arrives in one piece is not copied."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self.rest:
            self.rest += data
            data = self.rest  # type: ignore[assignment]
        end, size = 0, len(data)
        while size - end >= PREFIX:
            length = PREFIX + int.from_bytes(data[end : end + PREFIX], "little")
            if size - end < length:
                break
            end += length
        if end:
            self.write(data if end == size else data[:end])
        if end != size:
            self.rest = bytearray(data[end:])
        elif self.rest:
            self.rest = bytearray()


class Upload(asyncio.BufferedProtocol):
    """Receives prefix and body in turn, each into its own buffer."""

    def __init__(self) -> None:
        self.prefix = bytearray(PREFIX)
        self.body = numpy.empty(0, numpy.uint8)
        self.length = -1  # of the body under way; -1: the prefix is
        self.done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.length < 0:
            return memoryview(self.prefix)[self.done :]
        return memoryview(self.body)[self.done : self.length]

    def buffer_updated(self, nbytes: int) -> None:
        self.done += nbytes
        if self.length < 0:
            if self.done < PREFIX:
                return
            self.length, self.done = int.from_bytes(self.prefix, "little"), 0
            if len(self.body) < self.length:
                self.body = numpy.empty(self.length, numpy.uint8)
        if self.done == self.length:
            self.answer(self.body[: self.length])
            self.length, self.done = -1, 0

    def answer(self, body: numpy.ndarray) -> None:
        self.write((8).to_bytes(PREFIX, "little") + page_sum(body).to_bytes(8, "little"))


class Mixed(Upload):
    """Tells uploads from echoes by their size."""

    def answer(self, body: numpy.ndarray) -> None:
        if len(body) >= LARGE:
            super().answer(body)
        else:
            self.write(len(body).to_bytes(PREFIX, "little") + body.tobytes())


class Download(Upload):
    """Answers with what it was made with."""

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply

    def answer(self, body: numpy.ndarray) -> None:
        self.write(self.reply)


def page_sum(body: numpy.ndarray) -> int:
    return int(body[::PAGE].sum(dtype=numpy.uint64))


def protocol_of(mode: str, size: int) -> Callable[[], asyncio.BaseProtocol]:
    if mode != "download":
        return {"echo": Echo, "upload": Upload, "mixed": Mixed}[mode]
    body = numpy.frombuffer(os.urandom(size - 8), numpy.uint8)
    reply = size.to_bytes(PREFIX, "little") + body.tobytes() + page_sum(body).to_bytes(8, "little")
    return lambda: Download(reply)


async def main(mode: str, size: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol_of(mode, size), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
