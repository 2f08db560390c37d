"""The client: connects, calls, and tells every caller at once when the connection is lost.

    async with zcrpc.connect("tcp://127.0.0.1:7000", Store) as store:     # typed: an object with Store's methods
        n = await store.put("k", array, timeout=2.0)

    async with zcrpc.connect("tcp://127.0.0.1:7000") as client:           # untyped
        n = await client.call("Store.put", "k", array, timeout=2.0)

All clients of an event loop that were given the same options share one reactor, and one map for what they receive.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, overload

from zcrpc import calibration
from zcrpc._native import lib
from zcrpc.address import Address, parse
from zcrpc.calibration import Receive
from zcrpc.calling import ClientConnection
from zcrpc.context import SCOPE, settle
from zcrpc.conversion import Converter, converter
from zcrpc.credentials import Token, check_token, present
from zcrpc.errors import DeadlineExceeded
from zcrpc.interceptors import Interceptor, Kind, OutgoingCall, chain, check
from zcrpc.metadata import DEFAULT_LIMIT, Metadata
from zcrpc.pool import Options, Pool
from zcrpc.reactor import ReactorOptions
from zcrpc.service import Items, Plan, Service, items, plans
from zcrpc.sockets import connect_tcp, connect_unix
from zcrpc.stats import Stats, collect
from zcrpc.streaming import InterceptedStream, Stream
from zcrpc.streams import split
from zcrpc.wire import CONNECTION_WINDOW, STREAM_WINDOW, Hello, Limits

# How long a closing client waits for the server to have read everything.
_FAREWELL_SECONDS: Final = 1.5

S = TypeVar("S", bound=Service)
T = TypeVar("T")


class Client:
    """A connection to a server, and the calls over it. Made by `connect`."""

    __slots__ = ("_connection", "_last", "_pool", "_proceed", "_shut")

    def __init__(self, pool: Pool, connection: ClientConnection, interceptors: tuple[Interceptor, ...] = ()) -> None:
        self._pool = pool
        self._connection = connection
        self._proceed = chain(interceptors, self._call_intercepted) if interceptors else None
        self._shut = False
        self._last: Stats | None = None

    @property
    def methods(self) -> list[str]:
        """What the server serves."""
        return sorted(self._connection.methods)

    def call(
        self,
        method: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        returns: Any = None,
        **keywords: Any,
    ) -> Awaitable[Any]:
        """Calls "Service.method". Cancelling the awaiting task cancels the handler.

        timeout: seconds until DeadlineExceeded; the server is told what is left. In a handler, the time that is left to
        the call that it serves is the most. metadata: sent along for `zcrpc.context().metadata`; see `zcrpc.outgoing`
        for what comes back. returns: a type that the result is converted to and checked against; `memoryview` for a
        view over what was received, without a copy. Raises what the server answered, Unavailable if the connection is
        lost meanwhile. Buffers of 16 KiB or more are sent by reference: they must not change until the call is over.
        """
        return self._begin(
            method, arguments, keywords, timeout, metadata, None if returns is None else _converter(returns)
        )

    def _begin(
        self,
        method: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: float | None,
        metadata: Metadata | None,
        result: Converter | None,
        source: Any = None,
    ) -> Awaitable[Any]:
        """A call as it was asked for, with what surrounds it. source: its stream of items, where that is known."""
        scope = SCOPE.get()
        out = None
        if scope is not None:
            timeout, metadata, out = settle(scope, timeout, metadata)
        if self._proceed is not None:
            if source is None:
                arguments, keywords, source = split(arguments, keywords)
            kind: Kind = "unary" if source is None else "client-stream"
            return self._proceed(
                OutgoingCall(
                    self._connection.name, method, kind, arguments, keywords, source, timeout, metadata, result, out
                )
            )
        if source is None:
            return self._connection.call(method, arguments, keywords, timeout, result, metadata, out)
        return self._connection.call_with_items(
            method, arguments, keywords, source, self._until(timeout), result, metadata, out
        )

    def _until(self, timeout: float | None) -> float | None:
        return None if timeout is None else self._connection.reactor.loop.time() + timeout

    async def _call_intercepted(self, call: OutgoingCall) -> Any:
        """What is behind the last interceptor."""
        connection = self._connection
        method, arguments, keywords, source = call.method, tuple(call.arguments), call.keywords, call.items
        if call.kind in ("server-stream", "bidi-stream"):
            stream = Stream[Any](
                connection, method, arguments, keywords, source, call.deadline, call.expected, call.metadata, call
            )
            call.opened.append(weakref.ref(stream))
            return stream
        if source is None:
            return await connection.call(method, arguments, keywords, call.deadline, call.expected, call.metadata, call)
        return await connection.call_with_items(
            method, arguments, keywords, source, self._until(call.deadline), call.expected, call.metadata, call
        )

    def stream(
        self,
        method: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        returns: Any = Any,
        **keywords: Any,
    ) -> Stream[Any]:
        """Calls "Service.method", whose results are a stream: `async for item in client.stream(…)`.

        An asynchronous iterable among the arguments is sent as the stream of items that the method takes; a buffer
        that it yields may be used again when it is asked for the next item. timeout: seconds until DeadlineExceeded,
        from the first item that is asked for to the end. returns: what each item is converted to and checked against.
        metadata: as for `call`; what comes back is there when the stream has ended.
        """
        return self._stream(method, *split(arguments, keywords), timeout, metadata, items(returns))

    def _stream(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        source: Any,
        timeout: float | None,
        metadata: Metadata | None,
        expected: Items,
    ) -> Stream[Any]:
        scope = SCOPE.get()
        out = None
        if scope is not None:
            timeout, metadata, out = settle(scope, timeout, metadata)
        if self._proceed is not None:
            kind: Kind = "server-stream" if source is None else "bidi-stream"
            peer = self._connection.name
            make = functools.partial(
                OutgoingCall, peer, name, kind, arguments, keywords, source, timeout, metadata, expected, out
            )
            return InterceptedStream(self._connection, self._proceed, make)
        return Stream(self._connection, name, arguments, keywords, source, timeout, expected, metadata, out)

    def use(self, service: type[S]) -> S:
        """An object with the methods of a service class, each a call over this connection; all take `timeout=`
        and `metadata=` besides."""
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
            [pool.reactor],
            pool.regions,
            connections=len(pool.reactor.connections),
            requests=connection.requests,
            errors=connection.errors,
            calls=len(connection.pending),
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
        self._call = client._begin

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
    name, result, outgoing = plan.name, plan.result, plan.outgoing
    call: Callable[..., Any]

    def call_unary(
        self: _Proxy,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **keywords: Any,
    ) -> Awaitable[Any]:
        return self._call(name, arguments, keywords, timeout, metadata, result)

    def call_with_items(
        self: _Proxy,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **keywords: Any,
    ) -> Awaitable[Any]:
        arguments, source = plan.take_items(arguments, keywords)
        return self._call(name, arguments, keywords, timeout, metadata, result, source)

    def call_stream(
        self: _Proxy,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        **keywords: Any,
    ) -> Stream[Any]:
        assert outgoing is not None
        arguments, source = plan.take_items(arguments, keywords)
        return self._client._stream(name, arguments, keywords, source, timeout, metadata, outgoing)

    call = call_stream if outgoing is not None else call_with_items if plan.incoming is not None else call_unary
    original = getattr(service, plan.attribute)
    call.__name__, call.__qualname__, call.__doc__ = original.__name__, original.__qualname__, original.__doc__
    return call


@functools.lru_cache(maxsize=256)
def _cached_converter(returns: Any) -> Converter | None:
    return converter("result", returns)


def _converter(returns: Any) -> Converter | None:
    try:
        return _cached_converter(returns)
    except TypeError:
        return converter("result", returns)  # not hashable, or wrong: the latter is told again


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
    stream_window: int
    connection_window: int
    max_metadata: int
    stall_timeout: float
    interceptors: Sequence[Interceptor]
    token: Token | None


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
    stream_window: int = STREAM_WINDOW,
    connection_window: int = CONNECTION_WINDOW,
    max_metadata: int = DEFAULT_LIMIT,
    stall_timeout: float = 30.0,
    interceptors: Sequence[Interceptor] = (),
    token: Token | None = None,
) -> Connecting[Any]:
    """Connects to tcp://host:port or unix://path.

        async with zcrpc.connect(address) as client: ...            # a Client
        async with zcrpc.connect(address, Store) as store: ...      # an object with Store's methods
        client = await zcrpc.connect(address)                       # … then `await client.close()`

    timeout: seconds for connection and hello together. token: what the server's `authenticate` is shown, or a function,
    plain or async, that gives it when it is needed; it travels in the clear. interceptors: functions around every call,
    the outermost first; see zcrpc/interceptors.py. The other options are those of `Server`, for results. Raises
    Unavailable if there is nobody, DeadlineExceeded if it takes too long, ResourceExhausted if the server has too many
    connections, Unauthenticated if it does not accept this client.
    """
    check_token(token)
    if max_metadata < 0:
        raise ValueError(f"max_metadata={max_metadata}: must not be negative")
    around = check(interceptors)
    calibration.validate(receive)
    where = parse(address)
    max_message = min(max_message, budget)
    limits = Limits(
        header=max_header,
        payload=max_message,
        in_flight=1,
        stream_window=stream_window,
        connection_window=connection_window,
        metadata=max_metadata,
    )
    options = Options(
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
    return Connecting(lambda: _open(where, options, limits, timeout, around, token), wrap)


async def _open(
    address: Address,
    options: Options,
    limits: Limits,
    timeout: float | None,
    interceptors: tuple[Interceptor, ...],
    token: Token | None,
) -> Client:
    loop = asyncio.get_running_loop()
    reactor = options.reactor
    try:
        async with asyncio.timeout(timeout):
            shown = await present(token)
            map_from = 0 if address.is_unix else await calibration.mapped_from(options.receive, reactor.map_from)
            sock = await connect_unix(loop, address) if address.is_unix else await connect_tcp(loop, address)
            pool = connection = None
            try:
                pool = Pool.join(loop, options)
                hello = Hello(
                    limits=limits,
                    chunk=lib.ZC_CHUNK_BYTES,
                    map_from=map_from,
                    token=shown,
                )
                connection = ClientConnection(pool.reactor, sock.fileno(), map_from > 0, hello, str(address))
                sock.detach()
                await connection.greeted_event.wait()
                if connection.draining is not None:
                    raise connection.draining
                if connection.ended is not None:
                    raise connection.loss()
                return Client(pool, connection, interceptors)
            except BaseException:
                sock.close()
                if connection is not None:
                    connection.abort("connecting failed")
                if pool is not None:
                    pool.leave()
                raise
    except TimeoutError:
        raise DeadlineExceeded(f"{address}: no connection within {timeout:g} s") from None
