"""The path of a small call, in C: native/python/path.h."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final

import zcrpc.reactor
from zcrpc.calling import MetadataReader
from zcrpc.channel import Channel
from zcrpc.codec import Codec
from zcrpc.context import Served
from zcrpc.conversion import Converter
from zcrpc.deadlines import Deadlines
from zcrpc.eager import Worker, WorkerRunner
from zcrpc.errors import ZcrpcError
from zcrpc.metadata import Metadata
from zcrpc.streams import Sender, Streams

INLINE_BELOW: Final[int]  # of zcrpc.codec
SUBMIT_FROM: Final[int]
"""Frames that are submitted without waiting for the rest."""

class Reactor:
    connections: dict[int, Any]
    loop: asyncio.AbstractEventLoop
    codec: Codec
    deadlines: Deadlines
    runner: WorkerRunner | None  # of the handlers of calls that come in
    template: contextvars.Context | None  # how handlers must leave theirs
    unsent: list[Sender]  # streams with items that are sent at the next flush
    begun: Any  # the connection whose handler has suspended
    answered: list[Pending]  # calls whose tasks are woken when the batch is done
    submits: bool  # what is in the outbox will be submitted without anybody waking us
    dispatching: bool
    @property
    def frames(self) -> int:
        """How many wait to be submitted."""

    def drive(self, core: int, poll: int, batch: int, submit: int, /) -> None:
        """The addresses of a struct zc_reactor, and of zc_reactor_poll and so on. 0: there is none any more."""

    def turn(self) -> bool:
        """Does what is ready. Whether there was anything."""

    def frame(
        self,
        connection: int,
        kind: int,
        flags: int,
        method: int,
        stream: int,
        deadline_ms: int,
        header: bytes | bytearray,
        buffers: tuple[bytes | memoryview, ...],
        /,
    ) -> None:
        """A frame, whose parts are copied into the outbox."""

    def submit_frames(self) -> int:
        """0, or a negative errno."""

    def work(self, worker: Worker, /) -> tuple[Any, Any, contextvars.Token[Any]] | bool | None:
        """Deals with the batch, event by event; `worker` lends its context to the handlers. When one of them suspends:
        its coroutine, what that has yielded, and the token of its scope; the worker has to go on with it, and another
        one with the batch. True: the worker is not as it was. None: there are no more events."""

    def rest(self) -> list[int]:
        """The leases of the events that were not dealt with, which are the caller's then."""

class Connection:
    reactor: zcrpc.reactor.Reactor
    number: int
    plain_below: int  # payloads that are shorter are copied, and go as they are
    requests: int
    header_limit: int  # of the peer's
    begun: Served  # what surrounds the call that was begun last
    ended: str | None  # why, once it is closed or being closed
    streams: Streams | None
    careful: bool  # whether a call may begin must be asked
    server: Any
    handlers: Any
    caller: Any
    pending: dict[int, Pending]
    methods: dict[str, int]
    draining: ZcrpcError | None  # why it takes no more calls
    waiting: deque[asyncio.Future[None]]
    in_flight: int  # calls that the peer takes at once
    granted: int  # turns given to those who waited, and not used yet
    last_stream: int
    def reply_plain(self, stream: int, result: Any, /) -> bool:
        """Sends a result of the commonest shapes. False if it is none."""

    def take_stream(self) -> int:
        """The number of the next call."""

class Pending:
    """A call that waits for its answer, which is what its caller awaits."""

    connection: Any
    stream: int
    buffers: int  # how those of the result are decoded
    reader: Any  # is told what comes with the answer
    sink: Any  # what is told instead of somebody who awaits it
    tick: int
    token: int
    def __init__(self, connection: Connection, stream: int, buffers: int, reader: Any = None) -> None: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...
    def expire(self) -> None:
        """The deadline has passed: `connection.expired` is told."""

class Call:
    """What makes one call, and is awaited for its result: a coroutine."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: float | None,
        result: Converter | None,
        reader: MetadataReader | None,
        idempotent: bool,
        wait_for_ready: bool | None,
        sent_along: Metadata | None,
        /,
    ) -> None: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def send(self, value: None, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, trace: Any = None, /) -> Any: ...
    def close(self) -> None: ...

class Verb:
    """A method of a typed client. function: what is called where a call is made with more than arguments by position
    and a timeout, within another, or past interceptors."""

    def __init__(
        self, function: Callable[..., Any], name: str, result: Converter | None, idempotent: bool, /
    ) -> None: ...
    def __get__(self, proxy: Any, owner: type[Any]) -> Callable[..., Any]: ...
