"""A stream of results, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from zcrpc.calling import Incoming
from zcrpc.channel import Channel
from zcrpc.service import Items

T = TypeVar("T")


class Stream(Generic[T]):
    """The results of a call, one after the other: `async for item in client.stream(…)`.

    The call begins with the first item that is asked for. Leaving the loop cancels it, unless something else still
    holds the stream; to be sure, `async with client.stream(…) as items` or `await stream.aclose()`. Raises what the
    server answered when the items before that were taken; Unavailable if the connection is lost; DeadlineExceeded at
    once.
    """

    __slots__ = ("__weakref__", "_arguments", "_channel", "_incoming", "_over")

    def __init__(
        self,
        channel: Channel,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        items: Any,
        timeout: float | None,
        expected: Items,
        wait_for_ready: bool | None,
    ) -> None:
        self._channel = channel
        self._arguments: tuple[Any, ...] | None = name, arguments, keywords, items, timeout, expected, wait_for_ready
        self._incoming: Incoming | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        incoming = self._incoming
        if incoming is None:
            incoming = await self._begin()
        receiver = incoming.receiver
        if receiver.batch:
            item: T = receiver.batch.popleft()
            return item
        try:
            return await receiver.__anext__()  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            raise
        except BaseException:
            if receiver.ended:
                await self.aclose()
            raise

    async def _begin(self) -> Incoming:
        if self._over:
            raise StopAsyncIteration
        if self._arguments is None:
            raise RuntimeError("a stream has one consumer at a time, and somebody waits for its first item already")
        arguments, self._arguments = self._arguments, None
        self._over = True  # should that fail
        self._incoming = await self._channel.open_stream(*arguments)
        self._over = False
        return self._incoming

    async def aclose(self) -> None:
        """Cancels the call, if it is not over. Returns when the producer of the items that are sent has ended."""
        self._over = True
        incoming = self._incoming
        if incoming is not None:
            incoming.receiver.end(at_once=True)
            incoming.abandon()
            if incoming.producer is not None:
                await asyncio.wait((incoming.producer,))

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        incoming = self._incoming
        if incoming is None or self._over:
            return
        loop = self._channel.loop
        if asyncio._get_running_loop() is loop:
            loop.call_soon(incoming.abandon)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(incoming.abandon)
