"""RPyC's threaded server; compression off, and sent in larger pieces than by default."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import cycle
from time import perf_counter
from typing import Any

import rpyc
from rpyc.core.channel import Channel
from rpyc.core.stream import SocketStream
from rpyc.utils.server import ThreadedServer

from peers.connection import Connection, Task
from peers.payloads import ITEM, acknowledgement, items, summed
from peers.runtimes import Threads
from peers.window import Window
from peers.workloads import Work

RUNTIME = Threads()
_CONFIG = {"sync_request_timeout": None}
Channel.COMPRESSION_THRESHOLD = 1 << 62  # bytes; by default all above 3000 are compressed
SocketStream.MAX_IO_CHUNK = 64 << 20  # bytes; by default 64,000, which copies the rest of a message for each


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    body = summed(download_bytes)

    class Bench(rpyc.Service):  # type: ignore[misc]
        def exposed_echo(self, payload: bytes) -> bytes:
            return payload

        def exposed_upload(self, payload: bytes) -> bytes:
            return acknowledgement(payload)

        def exposed_download(self, size: int) -> bytes:
            return body

        def exposed_stream(self, count: int) -> Iterator[bytes]:
            return items(count)

    server = ThreadedServer(Bench, hostname="127.0.0.1", port=0, backlog=1024, protocol_config=_CONFIG)
    ready(server.port)
    server.start()


class Client(Connection):
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        root = connection.root
        self._methods = {"echo": root.echo, "upload": root.upload, "download": root.download, "stream": root.stream}

    async def echo(self, payload: bytes) -> bytes:
        return self._methods["echo"](payload)  # type: ignore[no-any-return]

    async def upload(self, payload: bytes) -> bytes:
        return self._methods["upload"](payload)  # type: ignore[no-any-return]

    async def download(self, size: int) -> bytes:
        return self._methods["download"](size)  # type: ignore[no-any-return]

    async def stream(self, count: int) -> int:
        return sum(item == ITEM for item in self._methods["stream"](count))

    def callers(self, task: Task, window: Window, in_flight: int) -> list[Coroutine[Any, Any, None]]:
        if in_flight == 1:
            return super().callers(task, window, 1)
        return [self._pipeline(task, window, in_flight)]

    async def _pipeline(self, task: Task, window: Window, in_flight: int) -> None:
        """Several calls in flight from one thread, as `rpyc.async_` has it."""
        method = rpyc.async_(self._methods[task.work])
        under_way: deque[Any] = deque()
        for request, is_right in cycle(task.check()):
            under_way.append((perf_counter(), method(request), is_right))
            if len(under_way) < in_flight:
                continue
            began, reply, was_right = under_way.popleft()
            if not was_right(reply.value):
                window.wrong += 1
            if not window.add(began, perf_counter()):
                return

    async def close(self) -> None:
        self._connection.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(rpyc.connect("127.0.0.1", port, config=_CONFIG))
