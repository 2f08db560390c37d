"""What a client calls over: connections to one or several servers, made again when they are lost.

    Client → Channel → Endpoint, one per server → ClientConnection, up to `connections` of them

States are gRPC's: *idle* (nothing is connected, nothing tries; the next call begins to), *connecting*, *ready*,
*transient failure* (the last attempt failed, the next one comes after a backoff) and *shutdown*. A call goes out at
once over one of the ready connections; it waits while the channel is idle or connecting; and in a transient failure it
fails with what the last attempt failed with, unless it is to wait for ready.

An endpoint that fails is out of the choice until it can be reached again, and that is all the outlier detection there
is: servers that answer, but badly, are not for a client to judge.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from zcrpc.backoff import Backoff
from zcrpc.balancing import PICKERS, Balance
from zcrpc.codec import BYTES, VIEWS
from zcrpc.errors import DeadlineExceeded, FailedPrecondition, Status, Unavailable, ZcrpcError
from zcrpc.forking import MESSAGE, remember
from zcrpc.retries import Budget, Retries
from zcrpc.streams import is_stream, split

if TYPE_CHECKING:
    from zcrpc.calling import ClientConnection, MetadataReader
    from zcrpc.conversion import Converter
    from zcrpc.metadata import Metadata

_log = logging.getLogger("zcrpc.client")

Dial = Callable[[], Awaitable["ClientConnection"]]

# A connection that was lost sooner than this after it had been made counts as a failed attempt: a server that takes
# connections only to drop them must not be connected to in a loop.
_STABLE_SECONDS: Final = 1.0
# How often a connection that takes no more calls is looked at, until its last call is over.
_RETIRING_SECONDS: Final = 0.02
# How often one call is moved to another connection because its server refused it unseen.
_MOVES: Final = 8


class State(enum.Enum):
    """Of an endpoint, or a channel."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    TRANSIENT_FAILURE = "transient failure"
    SHUTDOWN = "shutdown"


class Endpoint:
    """One server, and the connections to it."""

    __slots__ = ("_channel", "_dial", "_dialing", "_failures", "_retiring", "_since", "connections", "error", "name")

    def __init__(self, channel: Channel, name: str, dial: Dial) -> None:
        """`dial` makes one connection, or raises a ZcrpcError."""
        self.name = name
        self.connections: list[ClientConnection] = []  # ready
        self.error: ZcrpcError | None = None  # of the last attempt; None: it succeeded, or is the first
        self._channel = channel
        self._dial = dial
        self._dialing: set[asyncio.Task[None]] = set()
        self._retiring: dict[ClientConnection, asyncio.Handle] = {}  # they take no more calls
        self._failures = 0
        self._since: dict[ClientConnection, float] = {}

    @property
    def state(self) -> State:
        if self.connections:
            return State.READY
        if self.error is not None:
            return State.TRANSIENT_FAILURE
        return State.CONNECTING if self._dialing else State.IDLE

    def all_connections(self) -> list[ClientConnection]:
        return [*self.connections, *self._retiring]

    # ---- in

    def wake(self) -> None:
        """A call wants to be made: connects if nothing is connected."""
        if not self.connections and not self._dialing:
            self._begin()

    def grow(self) -> None:
        """Calls are in flight on every connection: one more, up to the limit."""
        if len(self.connections) + len(self._dialing) < self._channel.limit and self.error is None:
            self._begin()

    def _begin(self) -> None:
        # Not in the context of the call that happened to come first.
        task = self._channel.loop.create_task(self._connect(), context=contextvars.Context())
        self._dialing.add(task)
        task.add_done_callback(self._dialing.discard)

    async def _connect(self) -> None:
        """Tries until it succeeds."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            await asyncio.sleep(self._channel.backoff.delay(self._failures))
            try:
                connection = await self._dial()
            except ZcrpcError as error:
                self._failed(error)
            except Exception as error:
                _log.exception("%s: connecting failed", self.name)
                self._channel.mistake = error
                self._failed(Unavailable(f"{self.name}: {type(error).__name__}: {error}"))
            else:
                break
        self._dialing.discard(task)
        if self.error is not None:
            _log.info("%s: reached again", self.name)
        self.error = None
        self._since[connection] = self._channel.loop.time()
        self.connections.append(connection)
        connection.owner = self
        if connection.closed_event.is_set():  # in the moment between
            self.lost(connection)
        elif connection.ended is not None or connection.draining is not None:
            self.went_away(connection)
        self._channel.changed()

    def _failed(self, error: ZcrpcError) -> None:
        self._failures += 1
        if self.error is None:
            _log.warning("%s: cannot be reached, trying on: %s", self.name, error.message)
        self.error = error
        self._channel.changed()

    # ---- out: called by connections

    def went_away(self, connection: ClientConnection) -> None:
        """Its calls go on, and another connection is made at once."""
        if connection in self.connections:
            self._retiring[connection] = self._channel.loop.call_soon(self._retire, connection)
            self._replace(connection)

    def lost(self, connection: ClientConnection) -> None:
        look = self._retiring.pop(connection, None)
        if look is not None:
            look.cancel()
        self._channel.note_end(connection)
        if connection in self.connections:
            self._replace(connection)
        self._channel.changed()

    def _replace(self, connection: ClientConnection) -> None:
        self.connections.remove(connection)
        lived = self._channel.loop.time() - self._since.pop(connection)
        self._failures = 0 if lived >= _STABLE_SECONDS or connection.idle else self._failures + 1
        if not (connection.idle or self._channel.is_closed or self.connections or self._dialing):
            self._begin()
        self._channel.changed()

    def _retire(self, connection: ClientConnection) -> None:
        if connection.load or connection.pins:
            self._retiring[connection] = self._channel.loop.call_later(_RETIRING_SECONDS, self._retire, connection)
        else:
            connection.disconnect("the server takes no more calls")

    def leave(self) -> None:
        """Is not to be used any more: its connections are closed when their calls are over."""
        for task in self._dialing:
            task.cancel()
        for connection in list(self.connections):
            connection.idle = True  # not to be replaced
            self.went_away(connection)

    def stop(self) -> list[asyncio.Task[None]]:
        """Does nothing of its own accord any more. The tasks that are ending."""
        for look in self._retiring.values():
            look.cancel()
        for task in self._dialing:
            task.cancel()
        return list(self._dialing)


class Channel:
    """The connections of a client, and the way from a call to one of them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        balance: Balance = "first",
        connections: int = 1,
        backoff: Backoff | None = None,
        retries: Retries | None = None,
        wait_for_ready: bool = False,
    ) -> None:
        self.loop = loop
        self.limit = connections  # to each endpoint
        self.backoff = backoff or Backoff()
        self.wait_for_ready = wait_for_ready
        self.is_closed = False
        self._forked = False
        self.methods: dict[str, int] = {}  # of the server that was connected last
        self.requests = self.errors = 0  # over connections that are gone
        self.endpoints: dict[str, Endpoint] = {}
        self.unresolved: dict[str, ZcrpcError | None] = {}  # names that have no endpoint yet, and why
        self.mistake: Exception | None = None  # what was raised while connecting, and is no matter of the network
        self.trouble = asyncio.Event()  # an endpoint cannot be reached
        self._leaving: list[Endpoint] = []  # not to be used any more, but with calls in flight
        self.retries = retries
        self._budget = None if retries is None else Budget(retries, self._successes)
        self._choose = PICKERS[balance]()
        self._ready: list[ClientConnection] = []
        self.only: ClientConnection | None = None  # all calls go to it, without further choice
        self._change: asyncio.Future[None] = loop.create_future()
        remember(self)

    # ---- endpoints

    def add(self, name: str, dial: Dial) -> None:
        """One more server, which is connected to at once."""
        if name not in self.endpoints:
            endpoint = self.endpoints[name] = Endpoint(self, name, dial)
            endpoint.wake()

    def remove(self, name: str) -> None:
        """A server is not to be used any more. Calls in flight there go on."""
        endpoint = self.endpoints.pop(name)
        self._leaving.append(endpoint)
        endpoint.leave()
        self.changed()

    def connections(self) -> list[ClientConnection]:
        """All that there are, those included that take no more calls."""
        return [each for endpoint in (*self.endpoints.values(), *self._leaving) for each in endpoint.all_connections()]

    # ---- state

    @property
    def state(self) -> State:
        if self.is_closed:
            return State.SHUTDOWN
        states = {endpoint.state for endpoint in self.endpoints.values()}
        if State.READY in states:
            return State.READY
        if State.CONNECTING in states or None in self.unresolved.values():
            return State.CONNECTING
        return State.IDLE if State.IDLE in states else State.TRANSIENT_FAILURE

    def failure(self) -> ZcrpcError:
        """Why nobody can be reached."""
        if self._forked:
            return FailedPrecondition(f"this client {MESSAGE}")
        if self.is_closed:
            return _unprocessed(Unavailable("the client was closed"))
        errors = [endpoint.error for endpoint in self.endpoints.values()] + list(self.unresolved.values())
        found = [error for error in errors if error is not None]
        if len(found) == 1:
            return _unprocessed(type(found[0])(found[0].message, details=found[0].details))
        messages = dict.fromkeys(error.message for error in found)
        return _unprocessed(Unavailable("; ".join(messages) or "no server is connected"))

    def changed(self) -> None:
        """The state of an endpoint did."""
        endpoints = self.endpoints.values()
        self._ready = [connection for endpoint in endpoints for connection in endpoint.connections]
        self.only = self._ready[0] if len(self._ready) == 1 and self.limit == 1 else None
        if self._ready:
            self.methods = self._ready[-1].methods
        if any(endpoint.error is not None for endpoint in endpoints):
            self.trouble.set()
        self._leaving = [endpoint for endpoint in self._leaving if endpoint.all_connections()]
        change, self._change = self._change, self.loop.create_future()
        change.set_result(None)

    def note_end(self, connection: ClientConnection) -> None:
        """Keeps the counters of a connection that is gone."""
        self.requests += connection.requests
        self.errors += connection.errors

    def _successes(self) -> int:
        current = self.connections()
        ended = self.requests + sum(each.requests - len(each.pending) for each in current)
        return ended - self.errors - sum(each.errors for each in current)

    # ---- calls

    @property
    def peer(self) -> str:
        """Whom calls go to: the server, or servers."""
        return self.only.name if self.only is not None else ", ".join((*self.endpoints, *self.unresolved))

    def connection(self) -> ClientConnection:
        """The one for the next call. Raises what a call would fail with if none is ready."""
        if self.only is not None:
            return self.only
        if not self._ready:
            raise self.failure()
        return self._pick(None)

    def _pick(self, avoid: ClientConnection | None) -> ClientConnection:
        ready = self._ready
        if avoid is not None and len(ready) > 1:
            ready = [connection for connection in ready if connection is not avoid]
        chosen = ready[0] if len(ready) == 1 else self._choose(ready)
        if self.limit > 1 and chosen.load:
            assert isinstance(chosen.owner, Endpoint)
            chosen.owner.grow()
        return chosen

    async def wait(
        self, until: float | None, wait_for_ready: bool, avoid: ClientConnection | None = None
    ) -> ClientConnection:
        """A ready connection, but rather not `avoid`. Raises why there is none: at once in a transient failure unless
        wait_for_ready, DeadlineExceeded `until` the loop's time."""
        try:
            async with asyncio.timeout_at(until):
                while not self._ready:
                    if self.is_closed:
                        raise self.failure()
                    for endpoint in self.endpoints.values():
                        endpoint.wake()
                    if not wait_for_ready and self.state is State.TRANSIENT_FAILURE:
                        raise self.failure()
                    await asyncio.shield(self._change)
        except TimeoutError:
            why = self.failure().message
            raise _unprocessed(DeadlineExceeded(f"the deadline passed while there was no connection: {why}")) from None
        return self._pick(avoid)

    def until(self, timeout: float | None) -> float | None:
        """When a timeout will be over, by the loop's time."""
        return None if timeout is None else self.loop.time() + timeout

    async def call(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        until: float | None,
        result: Converter | None,
        idempotent: bool,
        wait_for_ready: bool | None,
        sent_along: Metadata | None,
        reader: MetadataReader | None,
        failed: tuple[ClientConnection, ZcrpcError] | None,
    ) -> Any:
        """One call, from encoding to the converted result, made again as often as `Retries` says. sent_along: its
        metadata. reader: is told what came with the answer. failed: what a first attempt failed with, and where."""
        again = None
        buffers = VIEWS if result is not None and result.views else BYTES
        try:
            connection = failed[0] if failed is not None else self.only or await self.connected(until, wait_for_ready)
            while True:
                if failed is not None:
                    assert self.retries is not None
                    again = again or Again(self, self.retries, until, idempotent)
                    connection = await again.connection(failed[1], connection)
                try:
                    if connection.is_full():
                        await connection.turn_to_call(until)
                    pending = connection.begin_call(name, arguments, keywords, sent_along, reader, until, buffers)
                    try:
                        value = await pending
                    except BaseException:
                        connection.failed(pending)
                        raise
                    if result is None or type(value) is result.exact:
                        return value
                    return connection.converted(name, value, result)
                except TypeError:
                    if not any(map(is_stream, (*arguments, *keywords.values()))):
                        raise
                    break
                except ZcrpcError as error:
                    # Items can be produced only once.
                    if self.retries is None or any(map(is_stream, (*arguments, *keywords.values()))):
                        raise
                    failed = connection, error
        finally:
            failed = None  # its traceback leads here
        arguments, keywords, items = split(arguments, keywords)
        return await connection.call_with_items(name, arguments, keywords, items, until, result, sent_along, reader)

    async def call_with_items(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        items: Any,
        timeout: float | None,
        result: Converter | None,
        wait_for_ready: bool | None = None,
        sent_along: Metadata | None = None,
        reader: MetadataReader | None = None,
    ) -> Any:
        """One call with a stream of items. It is not made again, since items can be produced only once."""
        until = self.until(timeout)
        connection = await self.connected(until, wait_for_ready)
        return await connection.call_with_items(name, arguments, keywords, items, until, result, sent_along, reader)

    async def connected(self, until: float | None, wait_for_ready: bool | None) -> ClientConnection:
        """A ready connection for the next call. See `wait`."""
        if self._ready:
            return self._pick(None)
        return await self.wait(until, self.wait_for_ready if wait_for_ready is None else wait_for_ready)

    def again(self, until: float | None) -> Again | None:
        """For a call with streams: whether it is begun again when no handler has seen it."""
        return None if self.retries is None else Again(self, self.retries, until, idempotent=False)

    def may_retry(self) -> bool:
        """A call has failed: whether the budget allows to make it again."""
        return self._budget is not None and self._budget.take()

    # ---- end

    def abandon(self) -> None:
        """This process was forked from the client's. See `zcrpc.forking`."""
        self._forked = self.is_closed = True
        self.endpoints, self._ready, self.only, self._leaving = {}, [], None, []

    @property
    def is_forked(self) -> bool:
        """Whether the client is another process's."""
        return self._forked

    async def close(self) -> list[ClientConnection]:
        """Connects no more. Returns the connections that are left, which are the caller's to close."""
        self.is_closed = True
        tasks = [task for endpoint in (*self.endpoints.values(), *self._leaving) for task in endpoint.stop()]
        self.changed()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self.connections()


class Again:
    """Whether and when one call is made again."""

    __slots__ = ("_attempts", "_channel", "_idempotent", "_moves", "_retries", "_until")

    def __init__(self, channel: Channel, retries: Retries, until: float | None, idempotent: bool) -> None:
        self._channel = channel
        self._retries = retries
        self._until = until
        self._idempotent = idempotent
        self._attempts = 1
        self._moves = 0

    async def connection(self, error: ZcrpcError, failed: ClientConnection) -> ClientConnection:
        """The connection to try next, when it is time. Raises the error if the call may not be made again."""
        channel = self._channel
        try:
            pause = self._pause(error, failed)
            if pause is None or (self._until is not None and channel.loop.time() + pause >= self._until):
                raise error
            _log.debug("%s: made again: %s", failed, error.message)
            if pause:
                await asyncio.sleep(pause)
            try:
                limit = channel.loop.time() + self._retries.patience if self._until is None else self._until
                return await channel.wait(limit, wait_for_ready=True, avoid=failed)
            except DeadlineExceeded:
                if self._until is None:
                    raise error from None
                raise
        finally:
            del error  # its traceback leads here

    def _pause(self, error: ZcrpcError, failed: ClientConnection) -> float | None:
        """Seconds before the next attempt; None: there must be none."""
        channel, retries = self._channel, self._retries
        if channel.is_closed:
            return None
        gone = failed.ended is not None or failed.draining is not None
        if error.unprocessed and (gone or error.status is Status.UNAVAILABLE) and self._moves < _MOVES:
            self._moves += 1
            return 0.0 if gone else retries.backoff.delay(self._moves)
        if not (self._idempotent and error.status in retries.statuses and self._attempts < retries.attempts):
            return None
        if not channel.may_retry():
            return None
        self._attempts += 1
        return 0.0 if gone and self._attempts == 2 else retries.backoff.delay(self._attempts - 1)


def _unprocessed(error: ZcrpcError) -> ZcrpcError:
    error.unprocessed = True
    return error
