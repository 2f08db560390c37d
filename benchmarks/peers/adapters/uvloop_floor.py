"""The client of the hand-written uvloop server: messages are counted, compared and sent from the protocol's callbacks,
without futures, ids or tasks. The server is floor/uvloop_echo.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from itertools import cycle
from typing import Any

from peers.connection import Connection, Task
from peers.payloads import acknowledgement, is_whole
from peers.runtimes import Tasks
from peers.window import Window
from peers.workloads import Work

RUNTIME = Tasks()
_PREFIX = 8
_clock = time.perf_counter


class _Echo(asyncio.Protocol):
    """Replies come in order, so `sent` has the messages that are under way, and when each left."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]
        self.rest = b""

    def begin(self, messages: list[bytes], in_flight: int, window: Window, done: asyncio.Future[None]) -> None:
        self.messages = cycle(messages)
        self.window = window
        self.done = done
        self.sent: deque[tuple[bytes, float]] = deque()
        self.send(in_flight)

    def send(self, count: int) -> None:
        now = _clock()
        batch = [next(self.messages) for _ in range(count)]
        self.sent.extend((message, now) for message in batch)
        self.write(batch[0] if count == 1 else b"".join(batch))

    def data_received(self, data: bytes) -> None:
        now = _clock()
        if self.rest:
            data = self.rest + data
        at, answered, goes_on = 0, 0, True
        while self.sent and len(data) - at >= len(self.sent[0][0]):
            message, began = self.sent.popleft()
            end = at + len(message)
            if (data if end == len(data) and not at else data[at:end]) != message:
                self.window.wrong += 1
            goes_on = self.window.add(began, now) and goes_on
            at, answered = end, answered + 1
        self.rest = data[at:]
        if not goes_on:
            if not self.done.done():
                self.done.set_result(None)
        elif answered:
            self.send(answered)


class _Bulk(asyncio.BufferedProtocol):
    """Uploads and downloads: a reply is received into one buffer of its size, used again and again."""

    def __init__(self, reply_size: int) -> None:
        self.reply = memoryview(bytearray(_PREFIX + reply_size))
        self.filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.writelines = transport.writelines  # type: ignore[attr-defined]

    def begin(self, task: Task, window: Window, done: asyncio.Future[None]) -> None:
        sizes_asked = [size.to_bytes(8, "little") for size in task.requests if isinstance(size, int)]
        requests = sizes_asked or task.requests
        self.requests = cycle((each, b"" if sizes_asked else acknowledgement(each)) for each in requests)
        self.window = window
        self.done = done
        self.send()

    def send(self) -> None:
        self.began = _clock()
        request, self.expected = next(self.requests)
        self.writelines([len(request).to_bytes(_PREFIX, "little"), request])

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.reply[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        if self.filled < len(self.reply):
            return
        now = _clock()
        self.filled = 0
        if not self.is_right(self.reply[_PREFIX:]):
            self.window.wrong += 1
        if self.window.add(self.began, now):
            self.send()
        else:
            self.done.set_result(None)

    def is_right(self, reply: memoryview) -> bool:
        if self.expected:
            return reply == self.expected[-len(reply) :]
        return is_whole(reply, len(reply))


class Client(Connection):
    """Makes its calls itself: the verbs are not there."""

    def __init__(self, transport: asyncio.Transport, protocol: _Echo | _Bulk) -> None:
        self._transport = transport
        self._protocol = protocol

    async def begin(self, task: Task) -> None:
        """Is connected already."""

    def callers(self, task: Task, window: Window, in_flight: int) -> list[Coroutine[Any, Any, None]]:
        return [self._run(task, window, in_flight)]

    async def _run(self, task: Task, window: Window, in_flight: int) -> None:
        done = asyncio.get_running_loop().create_future()
        if isinstance(self._protocol, _Bulk):
            self._protocol.begin(task, window, done)
        else:
            messages = [len(each).to_bytes(_PREFIX, "little") + each for each in task.requests]
            self._protocol.begin(messages, in_flight, window, done)
        await done

    async def close(self) -> None:
        self._transport.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    reply = payload if work == "download" else 8
    made = await asyncio.get_running_loop().create_connection(
        _Echo if work == "echo" else lambda: _Bulk(reply), "127.0.0.1", port
    )
    return Client(*made)
