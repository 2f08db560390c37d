"""The client: connects, calls, and tells every caller at once when the connection is lost.

    async with zcrpc.connect("tcp://127.0.0.1:7000", Store) as store:     # typed: an object with Store's methods
        n = await store.put("k", array, timeout=2.0)

    async with zcrpc.connect("tcp://127.0.0.1:7000") as client:           # untyped
        n = await client.call("Store.put", "k", array, timeout=2.0)

All clients of an event loop that were given the same options share one reactor, and one map for what they receive.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, overload

import msgspec

from zcrpc import calibration
from zcrpc._native import lib
from zcrpc.address import Address, parse, resolve
from zcrpc.calibration import Receive
from zcrpc.codec import BYTES, VIEWS, HeaderError
from zcrpc.connection import Connection
from zcrpc.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unimplemented, ZcrpcError
from zcrpc.reactor import Reactor, ReactorOptions
from zcrpc.regions import RegionMap
from zcrpc.service import Converter, Plan, Service, converter, plans
from zcrpc.stats import Stats, collect
from zcrpc.wire import REQUEST, RESPONSE, Hello, Limits

_log = logging.getLogger("zcrpc.client")

_STREAMS: Final = 1 << 32
_MOST_MS: Final = _STREAMS - 1
# How long a closing client waits for the server to have read everything.
_FAREWELL_SECONDS: Final = 1.5

S = TypeVar("S", bound=Service)
T = TypeVar("T")


@dataclass(slots=True, frozen=True, kw_only=True)
class _Options:
    """What clients of a loop must agree in to share a reactor."""

    locks: str
    receive: Receive
    budget: int
    retain: int
    reactor: ReactorOptions


class _Pool:
    """A reactor and the region map that it receives into, shared by the clients of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: _Options) -> None:
        self.key = loop, options
        self.users = 0
        self.regions = RegionMap(locks=options.locks, budget=options.budget, retain=options.retain)
        self.reactor = Reactor(loop, self.regions.handle, options.reactor)

    @classmethod
    def join(cls, loop: asyncio.AbstractEventLoop, options: _Options) -> _Pool:
        """The loop's pool for these options; `leave` it when done."""
        with _pools_lock:
            for abandoned in [pool for pool in _pools.values() if pool.key[0].is_closed()]:
                abandoned.close()
            pool = _pools.get((loop, options))
            if pool is None:
                pool = _pools[loop, options] = cls(loop, options)
            pool.users += 1
            return pool

    def leave(self) -> None:
        """The last one closes it."""
        with _pools_lock:
            self.users -= 1
            if not self.users:
                self.close()

    def close(self) -> None:
        _pools.pop(self.key, None)
        self.reactor.close()
        self.regions.close()


_pools: dict[tuple[asyncio.AbstractEventLoop, _Options], _Pool] = {}
_pools_lock = threading.Lock()


class _Pending:
    """A call that waits for its answer."""

    __slots__ = ("buffers", "connection", "future", "stream", "tick", "token")

    def __init__(self, connection: ClientConnection, stream: int, buffers: int) -> None:
        self.connection = connection
        self.stream = stream
        self.buffers = buffers  # how those of the result are decoded
        self.future: asyncio.Future[Any] = connection.reactor.loop.create_future()
        self.tick = 0
        self.token = 0

    def expire(self) -> None:
        """The deadline has passed: nobody waits any longer, and the server is told."""
        self.tick = 0
        self.connection.give_up(self)
        if not self.future.done():
            self.future.set_exception(DeadlineExceeded("the deadline passed before the answer came"))


class ClientConnection(Connection):
    """The calling end of a connection."""

    __slots__ = (
        "_granted",
        "_next_ping",
        "_next_stream",
        "closed_event",
        "draining",
        "errors",
        "greeted_event",
        "methods",
        "pending",
        "pings",
        "requests",
        "waiting",
    )

    def __init__(self, reactor: Reactor, fd: int, mapping: bool, hello: Hello, name: str) -> None:
        self.pending: dict[int, _Pending] = {}
        self.pings: dict[bytes, asyncio.Future[None]] = {}
        self.waiting: collections.deque[asyncio.Future[None]] = (
            collections.deque()
        )  # for one of the calls in flight to end
        self.methods: dict[str, int] = {}
        self.draining: ZcrpcError | None = None  # what the server's goaway said
        self.greeted_event = asyncio.Event()
        self.closed_event = asyncio.Event()
        self.requests = self.errors = 0
        self._granted = 0  # turns given to those who waited, and not used yet
        self._next_stream = 0
        self._next_ping = 0
        super().__init__(reactor, fd, mapping, hello, name, _log)

    def greeting(self) -> None:
        self.methods = self.peer.methods
        self.greeted_event.set()

    # ---- calls

    async def call(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: float | None,
        result: Converter | None,
    ) -> Any:
        """One call, from encoding to the converted result."""
        loop = self.reactor.loop
        until = None if timeout is None else loop.time() + timeout
        if self.waiting or len(self.pending) + self._granted >= self.peer.limits.in_flight:
            await self._turn_to_call(until)
        if self.ended is not None:
            raise self.loss()
        if self.draining is not None:
            raise type(self.draining)(self.draining.message)
        method = self.methods.get(name)
        if method is None:
            raise Unimplemented(f"{self.name} has no method {name!r}")
        header, buffers, length = self._encode(name, arguments, keywords)
        limits = self.peer.limits
        if len(header) > limits.header or length > limits.payload:
            self.check_size(header, length, f"the arguments of {name}()")
        stream = self._next_stream + 1
        while stream in self.pending or stream == _STREAMS:
            stream = stream + 1 if stream < _STREAMS else 1
        self._next_stream = stream
        pending = _Pending(self, stream, VIEWS if result is not None and result.views else BYTES)
        self.requests += 1
        deadline_ms = 0
        if until is not None:
            left = until - loop.time()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the call was sent")
            deadline_ms = min(math.ceil(left * 1000), _MOST_MS)
            pending.tick = self.reactor.deadlines.add(left, pending)
        self.pending[stream] = pending
        try:
            pending.token = self.send(REQUEST, stream, method, deadline_ms, header, buffers, length)
            del header, buffers
            value = await pending.future
        except BaseException:
            self.errors += 1
            if self.pending.get(stream) is pending:  # cancelled, or not even sent
                self.give_up(pending)
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # seen, should it have failed in the moment of being cancelled
            raise
        if result is None or type(value) is result.exact:
            return value
        try:
            return result.convert(value)
        except (msgspec.ValidationError, RecursionError) as error:
            raise Internal(f"the result of {name}() is not as announced: {error}") from None

    def _encode(
        self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[bytes, list[bytes | memoryview], int]:
        if keywords:
            return self.reactor.codec.encode([arguments, keywords])
        if arguments:
            return self.reactor.codec.encode([arguments])
        return b"", [], 0

    async def _turn_to_call(self, until: float | None) -> None:
        """As many calls are in flight as the server takes: waits for one to end, first come, first served."""
        turn: asyncio.Future[None] = self.reactor.loop.create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout_at(until):
                await turn
            self._granted -= 1
        except BaseException as error:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self.waiting.remove(turn)
            else:  # both at once: granted, and not wanted any more
                self._granted -= 1
                self._grant()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "the deadline passed while as many calls were in flight as the server takes"
                ) from None
            raise

    def _grant(self) -> None:
        """Lets those that wait begin their calls, as far as there is room; where there is no server any more, all of
        them, to fail."""
        over = self.ended is not None or self.draining is not None
        while self.waiting and (over or len(self.pending) + self._granted < self.peer.limits.in_flight):
            turn = self.waiting.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)

    def give_up(self, pending: _Pending) -> None:
        """Nobody waits for a call any longer."""
        self._forget(pending)
        if self.ended is None:
            self.send_cancel(pending.stream, pending.token)

    def _forget(self, pending: _Pending) -> None:
        self.pending.pop(pending.stream, None)
        if pending.tick:
            self.reactor.deadlines.discard(pending.tick, pending)
            pending.tick = 0
        if self.waiting:
            self._grant()

    # ---- answers

    def response(self, stream: int, header: bytes, payload: bytes | memoryview) -> None:
        pending = self.pending.get(stream)
        if pending is None:
            return
        self._forget(pending)
        if pending.future.done():
            return
        if not header:
            pending.future.set_result(None)
            return
        codec = self.reactor.codec
        try:
            parts = codec.decode(header, payload, pending.buffers)
        except HeaderError as error:
            pending.future.set_exception(Internal(f"{self.name}: a response does not decode: {error}"))
            return
        if type(parts) is not list or not parts:
            pending.future.set_exception(Internal(f"{self.name}: a response is no [result]"))
        else:
            pending.future.set_result(parts[0])

    def error(self, stream: int, status: int, header: bytes) -> None:
        pending = self.pending.get(stream)
        if pending is not None:
            self._fail(pending, self.decode_error(status, header))

    def refused(self, kind: int, stream: int, length: int) -> None:
        pending = self.pending.get(stream)
        if kind == RESPONSE and pending is not None:
            self._fail(pending, ResourceExhausted(f"a result of {length} bytes is more than this client's max_message"))

    def _fail(self, pending: _Pending, error: ZcrpcError) -> None:
        self._forget(pending)
        if not pending.future.done():
            pending.future.set_exception(error)

    # ---- connection

    async def ping(self) -> float:
        """Seconds to the server's reactor and back."""
        if self.ended is not None:
            raise self.loss()
        self._next_ping += 1
        header = self._next_ping.to_bytes(8, "little")
        future = self.pings[header] = self.reactor.loop.create_future()
        begun = time.perf_counter()
        try:
            self.send_ping(header)
            await future
        finally:
            self.pings.pop(header, None)
        return time.perf_counter() - begun

    def pong(self, header: bytes) -> None:
        future = self.pings.get(header)
        if future is not None and not future.done():
            future.set_result(None)

    def goaway_received(self, status: int, header: bytes) -> None:
        self.draining = self.decode_error(status, header)
        self.log.info("%s: the server takes no more calls: %s", self, self.draining.message)
        self._grant()

    def closed(self, reason: int, number: int) -> None:
        super().closed(reason, number)
        for pending in list(self.pending.values()):
            self._fail(pending, self.loss())
        for future in self.pings.values():
            if not future.done():
                future.set_exception(self.loss())
        self._grant()
        self.greeted_event.set()
        self.closed_event.set()


class Client:
    """A connection to a server, and the calls over it. Made by `connect`."""

    __slots__ = ("_connection", "_last", "_pool", "_shut")

    def __init__(self, pool: _Pool, connection: ClientConnection) -> None:
        self._pool = pool
        self._connection = connection
        self._shut = False
        self._last: Stats | None = None

    @property
    def methods(self) -> list[str]:
        """What the server serves."""
        return sorted(self._connection.methods)

    def call(
        self, method: str, /, *arguments: Any, timeout: float | None = None, returns: Any = None, **keywords: Any
    ) -> Awaitable[Any]:
        """Calls "Service.method". Cancelling the awaiting task cancels the handler.

        timeout: seconds until DeadlineExceeded; the server is told what is left. returns: a type that the result is
        converted to and checked against; `memoryview` for a view over what was received, without a copy. Raises what
        the server answered, Unavailable if the connection is lost meanwhile. Buffers of 16 KiB or more are sent by
        reference: they must not change until the call is over.
        """
        return self._connection.call(
            method, arguments, keywords, timeout, None if returns is None else _converter(returns)
        )

    def use(self, service: type[S]) -> S:
        """An object with the methods of a service class, each a call over this connection; all take `timeout=`
        besides."""
        return cast(S, _proxy_class(service)(self))

    async def ping(self, timeout: float | None = None) -> float:
        """Seconds to the server's reactor and back."""
        try:
            async with asyncio.timeout(timeout):
                return await self._connection.ping()
        except TimeoutError:
            raise DeadlineExceeded("no pong in time") from None

    def stats(self) -> Stats:
        """Counters of this client's calls; all else is of the reactor and region map that it shares with the other
        clients of its loop."""
        connection, pool = self._connection, self._pool
        if self._last is not None:
            return self._last
        return collect(
            [pool.reactor.stats()],
            pool.regions,
            connections=len(pool.reactor.connections),
            requests=connection.requests,
            errors=connection.errors,
            calls=len(connection.pending),
            refused=0,
        )

    async def close(self) -> None:
        """Closes the connection when what was sent is out. Calls in flight fail with Unavailable. Results that are
        views stay valid."""
        if self._shut:
            return
        self._shut = True
        connection = self._connection
        connection.disconnect("the client was closed")
        for pending in list(connection.pending.values()):
            connection._fail(pending, connection.loss())
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await connection.closed_event.wait()
        except TimeoutError:
            connection.abort()
        finally:
            self._last = self.stats()
            self._pool.leave()


class _Proxy:
    """Base of the objects that stand for a service at a client. Close, ping and stats are the client's, where the
    service has none."""

    __slots__ = ("_call", "_client")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._call = client._connection.call

    def close(self) -> Awaitable[None]:
        return self._client.close()

    def ping(self, timeout: float | None = None) -> Awaitable[float]:
        return self._client.ping(timeout)

    def stats(self) -> Stats:
        return self._client.stats()

    @property
    def client(self) -> Client:
        return self._client


_proxy_classes: dict[type[Service], type[_Proxy]] = {}


def _proxy_class(service: type[Service]) -> type[_Proxy]:
    known = _proxy_classes.get(service)
    if known is not None:
        return known
    methods = {attribute: _proxy_method(service, plan) for attribute, plan in plans(service).items()}
    namespace = {"__slots__": (), "__doc__": service.__doc__, "__module__": service.__module__, **methods}
    made = _proxy_classes[service] = type(service.__name__, (_Proxy,), namespace)
    return made


def _proxy_method(service: type[Service], plan: Plan) -> Callable[..., Any]:
    name, result = plan.name, plan.result

    def call(self: _Proxy, /, *arguments: Any, timeout: float | None = None, **keywords: Any) -> Awaitable[Any]:
        return self._call(name, arguments, keywords, timeout, result)

    original = getattr(service, plan.attribute)
    call.__name__, call.__qualname__, call.__doc__ = original.__name__, original.__qualname__, original.__doc__
    return call


@functools.lru_cache(maxsize=256)
def _cached_converter(returns: Any) -> Converter | None:
    return converter(returns)


def _converter(returns: Any) -> Converter | None:
    try:
        return _cached_converter(returns)
    except TypeError:
        return converter(returns)  # not hashable, or wrong: the latter is told again


class Connecting(Generic[T]):
    """What `connect` returns: an async context manager, which can also be awaited."""

    def __init__(self, open_: Callable[[], Awaitable[Client]], wrap: Callable[[Client], T]) -> None:
        self._open = open_
        self._wrap = wrap
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> T:
        self._client = await self._open()
        return self._wrap(self._client)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        await self._client.close()


class ConnectOptions(TypedDict, total=False):
    """See `connect`."""

    timeout: float | None
    receive: Receive
    locks: str
    budget: int
    retain: int
    max_message: int
    max_header: int
    place_from: int
    map_from: int
    stall_timeout: float


@overload
def connect(address: str, service: None = None, **options: Unpack[ConnectOptions]) -> Connecting[Client]: ...
@overload
def connect(address: str, service: type[S], **options: Unpack[ConnectOptions]) -> Connecting[S]: ...
def connect(
    address: str,
    service: type[S] | None = None,
    *,
    timeout: float | None = 10.0,
    receive: Receive = "auto",
    locks: str = "per-region",
    budget: int = 1 << 30,
    retain: int = 16 << 20,
    max_message: int = 256 << 20,
    max_header: int = 64 << 10,
    place_from: int = 32 << 10,
    map_from: int = 64 << 10,
    stall_timeout: float = 30.0,
) -> Connecting[Any]:
    """Connects to tcp://host:port or unix://path.

        async with zcrpc.connect(address) as client: ...            # a Client
        async with zcrpc.connect(address, Store) as store: ...      # an object with Store's methods
        client = await zcrpc.connect(address)                       # … then `await client.close()`

    timeout: seconds for connection and hello together. The other options are those of `Server`, for results. Raises
    Unavailable if there is nobody, DeadlineExceeded if it takes too long, ResourceExhausted if the server has too many
    connections.
    """
    calibration.validate(receive)
    where = parse(address)
    max_message = min(max_message, budget)
    options = _Options(
        locks=locks,
        receive=receive,
        budget=budget,
        retain=retain,
        reactor=ReactorOptions(
            threaded=False,
            receive=calibration.MODES[receive],
            place_from=min(place_from, map_from, max_message),
            map_from=map_from,
            header_limit=max_header,
            payload_limit=max_message,
            # Answers are read even while the server does not read: else both could wait for each other.
            outbound_limit=0xFFFFFFFF,
            stall_ms=round(stall_timeout * 1000),
        ),
    )
    wrap: Callable[[Client], Any] = (lambda client: client) if service is None else (lambda client: client.use(service))
    if service is not None:
        _proxy_class(service)
    return Connecting(lambda: _open(where, options, timeout), wrap)


async def _open(address: Address, options: _Options, timeout: float | None) -> Client:
    loop = asyncio.get_running_loop()
    reactor = options.reactor
    try:
        async with asyncio.timeout(timeout):
            map_from = 0 if address.is_unix else await calibration.mapped_from(options.receive, reactor.map_from)
            sock = await _connect_unix(loop, address) if address.is_unix else await _connect_tcp(loop, address)
            pool = connection = None
            try:
                pool = _Pool.join(loop, options)
                hello = Hello(
                    limits=Limits(header=reactor.header_limit, payload=reactor.payload_limit, in_flight=1),
                    chunk=lib.ZC_CHUNK_BYTES,
                    map_from=map_from,
                )
                connection = ClientConnection(pool.reactor, sock.fileno(), map_from > 0, hello, str(address))
                sock.detach()
                await connection.greeted_event.wait()
                if connection.draining is not None:
                    raise connection.draining
                if connection.ended is not None:
                    raise connection.loss()
                return Client(pool, connection)
            except BaseException:
                sock.close()
                if connection is not None:
                    connection.abort("connecting failed")
                if pool is not None:
                    pool.leave()
                raise
    except TimeoutError:
        raise DeadlineExceeded(f"{address}: no connection within {timeout:g} s") from None


async def _connect_unix(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(sock, address.path)
    except OSError as error:
        sock.close()
        raise Unavailable(f"{address}: {_reason(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_tcp(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    """The first of the host's addresses that answers."""
    try:
        found = await resolve(address)
    except OSError as error:
        raise Unavailable(f"{address}: {_reason(error)}") from error
    failure: OSError | None = None
    for family, where in found:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(sock, where)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise Unavailable(f"{address}: {_reason(failure) if failure else 'no address'}") from failure


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
