"""A stream of results, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from zcrpc.calling import ClientConnection, Incoming, MetadataReader
from zcrpc.channel import Again, Channel
from zcrpc.errors import ZcrpcError
from zcrpc.interceptors import OutgoingCall, Proceed
from zcrpc.metadata import Metadata
from zcrpc.service import Items

T = TypeVar("T")


class Stream(Generic[T]):
    """The results of a call, one after the other: `async for item in client.stream(…)`.

    The call begins with the first item that is asked for. Leaving the loop cancels it, unless something else still
    holds the stream; to be sure, `async with client.stream(…) as items` or `await stream.aclose()`. Raises what the
    server answered when the items before that were taken; Unavailable if the connection is lost; DeadlineExceeded at
    once.
    """

    __slots__ = ("__weakref__", "_again", "_arguments", "_channel", "_incoming", "_options", "_over", "_request")

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
        sent_along: Metadata | None = None,
        reader: MetadataReader | None = None,
    ) -> None:
        self._channel = channel
        self._arguments: tuple[Any, ...] | None = name, arguments, keywords, items
        self._options = timeout, expected, wait_for_ready, sent_along, reader
        self._request: tuple[Any, ...] = ()
        self._again: Again | None = None  # as long as the call may be begun again
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
            item = await receiver.__anext__()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if receiver.ended:
                await self.aclose()
            if not isinstance(error, ZcrpcError):
                raise
            await self._open(await self._elsewhere(incoming.connection, error))
            self._over = False
            return await self.__anext__()
        self._again = None
        return item

    def ready(self) -> list[T]:
        """Takes the items that are here and decoded: those that `anext` would return next, at once."""
        if self._incoming is None:
            return []
        batch = self._incoming.receiver.batch
        taken = list(batch)
        batch.clear()
        return taken

    async def _begin(self) -> Incoming:
        if self._over:
            raise StopAsyncIteration
        if self._arguments is None:
            raise RuntimeError("a stream has one consumer at a time, and somebody waits for its first item already")
        request, self._arguments = self._arguments, None
        timeout, expected, wait_for_ready, sent_along, reader = self._options
        until = None if timeout is None else self._channel.loop.time() + timeout
        self._request = *request, until, expected, sent_along, reader
        self._again = self._channel.again(until)
        self._over = True  # should that fail
        incoming = await self._open(await self._channel.connected(until, wait_for_ready))
        self._over = False
        return incoming

    async def _open(self, connection: ClientConnection) -> Incoming:
        """Begins the call, elsewhere if this connection takes none any more."""
        while True:
            try:
                self._incoming = incoming = await connection.open_stream(*self._request)
            except ZcrpcError as error:
                connection = await self._elsewhere(connection, error)
            else:
                if incoming.producer is not None:
                    self._again = None  # items can be produced only once
                return incoming

    async def _elsewhere(self, connection: ClientConnection, error: ZcrpcError) -> ClientConnection:
        """Where the call is to be begun again. Raises the error unless it is certain that no handler has seen it."""
        if self._again is None or not error.unprocessed:
            raise error
        return await self._again.connection(error, connection)

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


class InterceptedStream(Stream[T]):
    """A stream of results that comes through interceptors. They are called when the first item is asked for."""

    __slots__ = ("_call", "_items", "_make", "_proceed")

    def __init__(self, channel: Channel, proceed: Proceed, make: Callable[[], OutgoingCall]) -> None:
        self._channel = channel
        self._proceed = proceed
        self._make: Callable[[], OutgoingCall] | None = make
        self._call: OutgoingCall | None = None
        self._items: AsyncIterator[T] | None = None
        self._incoming = None
        self._over = False

    async def __anext__(self) -> T:
        if self._over:
            raise StopAsyncIteration
        if self._items is None:
            if self._make is None:
                raise RuntimeError("a stream has one consumer at a time, and somebody waits for its first item already")
            call = self._call = self._make()
            self._make = None
            try:
                self._items = aiter(await self._proceed(call))
            except BaseException:
                self._over = True
                raise
        return await anext(self._items)

    async def aclose(self) -> None:
        """Cancels the call, if it is not over, whatever interceptors make of that."""
        self._over = True
        items, close = self._items, getattr(self._items, "aclose", None)
        if close is not None:
            await close()
        for opened in self._call.opened if self._call is not None else ():
            stream = opened()
            if stream is not None and stream is not items:
                await stream.aclose()
