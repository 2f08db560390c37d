"""What an adapter's client is: one connection, and a verb for each kind of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import cycle
from random import sample
from typing import Any

from peers import payloads
from peers.window import Window
from peers.workloads import Work


@dataclass(slots=True, frozen=True)
class Task:
    """What is called again and again: requests, taken in turn, and what says whether the answer to one is right.

    Args:
        work: the verb.
        size: bytes of a payload, up or down.
        items: of a stream.
        requests: payloads (echo, upload) or what is asked for (download: bytes; stream: items).
    """

    work: Work
    size: int
    items: int
    requests: list[Any]

    @classmethod
    def of(cls, work: Work, size: int, items: int) -> Task:
        requests = {"download": [size], "stream": [items]}.get(work) or payloads.random_payloads(size)
        return cls(work, size, items, requests)

    def check(self) -> list[tuple[Any, Callable[[Any], bool]]]:
        """Each request with the check of its reply."""
        return [(request, self._check_of(request)) for request in self.requests]

    def _check_of(self, request: Any) -> Callable[[Any], bool]:
        if self.work == "echo":
            return lambda reply: bytes(reply) == request
        if self.work == "upload":
            expected = payloads.acknowledgement(request)
            return lambda reply: bytes(reply) == expected
        if self.work == "download":
            return lambda reply: payloads.is_whole(reply, self.size)
        return lambda reply: reply == self.items


class Connection:
    """Of one stack; adapters implement the verbs that the stack has. A stack that blocks implements them by coroutines
    that never suspend.
    """

    async def echo(self, payload: bytes) -> bytes | memoryview:
        """The same bytes, from the server."""
        raise NotImplementedError

    async def upload(self, payload: bytes) -> bytes | memoryview:
        """16 bytes: `payloads.acknowledgement`."""
        raise NotImplementedError

    async def download(self, size: int) -> bytes | memoryview:
        """So many bytes: `payloads.download`."""
        raise NotImplementedError

    async def stream(self, count: int) -> int:
        """Takes a stream of so many items; returns how many were `payloads.ITEM`."""
        raise NotImplementedError

    async def begin(self, task: Task) -> None:
        """One call: some stacks connect with the first. Raises ValueError if its answer is wrong."""
        request, is_right = task.check()[0]
        if not is_right(await getattr(self, task.work)(request)):
            raise ValueError(f"the first answer to {task.work} was wrong")

    async def close(self) -> None:
        """Ends it."""

    def callers(self, task: Task, window: Window, in_flight: int) -> list[Coroutine[Any, Any, None]]:
        """What keeps so many calls going until the window ends."""
        return [self._call(task, window) for _ in range(in_flight)]

    async def _call(self, task: Task, window: Window) -> None:
        verb = getattr(self, task.work)
        clock = time.perf_counter
        requests = task.check()
        for request, is_right in cycle(sample(requests, len(requests))):  # replies that are mixed up are noticed
            began = clock()
            reply = await verb(request)
            now = clock()
            if not is_right(reply):
                window.wrong += 1
            del reply  # a view holds memory that the next one may go into
            if not window.add(began, now):
                return
