"""The client: connects, calls, and tells every caller at once when the connection is lost. What it calls over is a
channel: see channel.py.

    async with zcrpc.connect("tcp://127.0.0.1:7000", Store) as store:     # typed: an object with Store's methods
        n = await store.put("k", array, timeout=2.0)

    async with zcrpc.connect("tcp://127.0.0.1:7000") as client:           # untyped
        n = await client.call("Store.put", "k", array, timeout=2.0)

All clients of an event loop that were given the same options share one reactor, and one map for what they receive.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, overload

from zcrpc import calibration, tls
from zcrpc._path import Call, Verb
from zcrpc.address import Address, is_numeric, parse_all
from zcrpc.backoff import Backoff
from zcrpc.balancing import PICKERS, Balance
from zcrpc.calibration import Receive
from zcrpc.calling import ClientConnection
from zcrpc.channel import Channel, Dial, State
from zcrpc.compression import Option, prepare
from zcrpc.context import SCOPE, settle
from zcrpc.conversion import Converter, converter
from zcrpc.credentials import Token, check_token
from zcrpc.dialing import Dialer
from zcrpc.errors import DeadlineExceeded, ZcrpcError
from zcrpc.interceptors import Interceptor, Kind, OutgoingCall, chain, check
from zcrpc.keepalive import Watching
from zcrpc.metadata import DEFAULT_LIMIT, Metadata
from zcrpc.pool import Options, Pool
from zcrpc.reactor import ReactorOptions
from zcrpc.resolution import Found, Resolution
from zcrpc.retries import Retries
from zcrpc.service import Items, Plan, Service, items, plans
from zcrpc.stats import Stats, collect
from zcrpc.streaming import InterceptedStream, Stream
from zcrpc.streams import split
from zcrpc.wire import CONNECTION_WINDOW, STREAM_WINDOW, Limits

# How long a closing client waits for the server to have read everything.
_FAREWELL_SECONDS: Final = 1.5

_RETRIES: Final = Retries()
_BACKOFF: Final = Backoff()

S = TypeVar("S", bound=Service)
T = TypeVar("T")


class Client:
    """Calls to a server, or to several that do the same, over connections that are made again when they are lost. Made
    by `connect`."""

    __slots__ = ("_channel", "_dialer", "_last", "_pool", "_proceed", "_shut", "_tasks")

    def __init__(
        self, pool: Pool, channel: Channel, dialer: Dialer, interceptors: tuple[Interceptor, ...] = ()
    ) -> None:
        self._pool = pool
        self._channel = channel
        self._dialer = dialer
        self._proceed = chain(interceptors, self._call_intercepted) if interceptors else None
        self._tasks: list[asyncio.Task[None]] = []
        self._shut = False
        self._last: Stats | None = None

    @property
    def _connection(self) -> ClientConnection:
        """One that is ready."""
        return self._channel.connection()

    @property
    def methods(self) -> list[str]:
        """What the server serves; of several servers, the one that was connected last."""
        return sorted(self._channel.methods)

    @property
    def state(self) -> State:
        """Whether calls can be made: see `State`."""
        return self._channel.state

    def call(
        self,
        method: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        returns: Any = None,
        idempotent: bool = False,
        wait_for_ready: bool | None = None,
        **keywords: Any,
    ) -> Awaitable[Any]:
        """Calls "Service.method". Cancelling the awaiting task cancels the handler.

        timeout: seconds until DeadlineExceeded; the server is told what is left. In a handler, the time that is left to
        the call that it serves is the most. metadata: sent along for `zcrpc.context().metadata`; see `zcrpc.outgoing`
        for what comes back. returns: a type that the result is converted to and checked against; `memoryview` for a
        view over what was received, without a copy. Raises what the server answered, Unavailable if the connection is
        lost meanwhile. Buffers of 16 KiB or more are sent by reference: they must not change until the call is over.

        idempotent: to run the handler twice does no more than to run it once, so the call may be made again when it is
        not known whether it was served; see `Retries`. wait_for_ready: wait while no server can be reached, instead of
        failing at once; None: as `connect` was told.
        """
        expected = None if returns is None else _converter(returns)
        return self._begin(method, arguments, keywords, timeout, metadata, expected, None, idempotent, wait_for_ready)

    def _begin(
        self,
        method: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: float | None,
        metadata: Metadata | None,
        result: Converter | None,
        source: Any = None,
        idempotent: bool = False,
        wait_for_ready: bool | None = None,
    ) -> Awaitable[Any]:
        """A call as it was asked for, with what surrounds it. source: its stream of items, where that is known."""
        scope = SCOPE.get()
        out = None
        if scope is not None:
            timeout, metadata, out = settle(scope, timeout, metadata)
        channel = self._channel
        if self._proceed is not None:
            if source is None:
                arguments, keywords, source = split(arguments, keywords)
            kind: Kind = "unary" if source is None else "client-stream"
            return self._proceed(
                OutgoingCall(
                    channel.peer,
                    method,
                    kind,
                    arguments,
                    keywords,
                    source,
                    timeout,
                    metadata,
                    result,
                    out,
                    idempotent,
                    wait_for_ready,
                )
            )
        if source is None:
            return Call(
                channel, method, arguments, keywords, timeout, result, out, idempotent, wait_for_ready, metadata
            )
        return channel.call_with_items(
            method, arguments, keywords, source, timeout, result, wait_for_ready, metadata, out
        )

    async def _call_intercepted(self, call: OutgoingCall) -> Any:
        """What is behind the last interceptor."""
        channel, waits = self._channel, call.wait_for_ready
        method, arguments, keywords, source = call.method, tuple(call.arguments), call.keywords, call.items
        if call.kind in ("server-stream", "bidi-stream"):
            stream = Stream[Any](
                channel, method, arguments, keywords, source, call.deadline, call.expected, waits, call.metadata, call
            )
            call.opened.append(weakref.ref(stream))
            return stream
        if source is None:
            return await Call(
                channel,
                method,
                arguments,
                keywords,
                call.deadline,
                call.expected,
                call,
                call.idempotent,
                waits,
                call.metadata,
            )
        return await channel.call_with_items(
            method, arguments, keywords, source, call.deadline, call.expected, waits, call.metadata, call
        )

    def stream(
        self,
        method: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        returns: Any = Any,
        wait_for_ready: bool | None = None,
        **keywords: Any,
    ) -> Stream[Any]:
        """Calls "Service.method", whose results are a stream: `async for item in client.stream(…)`.

        An asynchronous iterable among the arguments is sent as the stream of items that the method takes; a buffer
        that it yields may be used again when it is asked for the next item. timeout: seconds until DeadlineExceeded,
        from the first item that is asked for to the end. returns: what each item is converted to and checked against.
        metadata: as for `call`; what comes back is there when the stream has ended.
        """
        return self._stream(method, *split(arguments, keywords), timeout, metadata, items(returns), wait_for_ready)

    def _stream(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        source: Any,
        timeout: float | None,
        metadata: Metadata | None,
        expected: Items,
        wait_for_ready: bool | None,
    ) -> Stream[Any]:
        scope = SCOPE.get()
        out = None
        if scope is not None:
            timeout, metadata, out = settle(scope, timeout, metadata)
        channel = self._channel
        if self._proceed is not None:
            kind: Kind = "server-stream" if source is None else "bidi-stream"
            make = functools.partial(
                OutgoingCall,
                channel.peer,
                name,
                kind,
                arguments,
                keywords,
                source,
                timeout,
                metadata,
                expected,
                out,
                wait_for_ready=wait_for_ready,
            )
            return InterceptedStream(channel, self._proceed, make)
        return Stream(channel, name, arguments, keywords, source, timeout, expected, wait_for_ready, metadata, out)

    def use(self, service: type[S]) -> S:
        """An object with the methods of a service class, each a call over this connection; all take `timeout=`
        and `metadata=` besides."""
        return cast(S, _proxy_class(service)(self))

    async def ping(self, timeout: float | None = None) -> float:
        """Seconds to the server's reactor and back."""
        try:
            async with asyncio.timeout(timeout):
                return await (await self._channel.connected(None, None)).ping()
        except TimeoutError:
            raise DeadlineExceeded("no pong in time") from None

    def stats(self) -> Stats:
        """Counters of this client's calls; all else is of the reactor and region map that it shares with the other
        clients of its loop."""
        if self._last is not None:
            return self._last
        channel, pool = self._channel, self._pool
        current = channel.connections()
        return collect(
            [pool.reactor],
            pool.regions,
            connections=len(pool.reactor.connections),
            requests=channel.requests + sum(each.requests for each in current),
            errors=channel.errors + sum(each.errors for each in current),
            calls=sum(len(each.pending) for each in current),
            packing=self._dialer.packing,
        )

    async def close(self) -> None:
        """Closes the connections when what was sent is out. Calls in flight fail with Unavailable. Results that are
        views stay valid."""
        if self._shut or self._channel.is_forked:
            return
        self._shut = True
        for task in self._tasks:
            task.cancel()
        self._channel.is_closed = True  # what fails now is not made again
        for connection in self._channel.connections():
            connection.disconnect("the client was closed")
            for pending in list(connection.pending.values()):
                connection._fail(pending, connection.loss())
        connections = await self._channel.close()
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                for connection in connections:
                    await connection.closed_event.wait()
        except TimeoutError:
            for connection in connections:
                connection.abort()
        finally:
            self._last = self.stats()
            self._dialer.close()
            self._pool.leave()

    async def _open(self, addresses: list[Address], balance: Balance, timeout: float | None) -> None:
        """Waits until calls can be made. Raises why they cannot."""
        channel, dialer = self._channel, self._dialer
        if balance == "first":
            channel.add(", ".join(map(str, addresses)), lambda: dialer.dial_first(addresses))
        else:
            for address in addresses:
                self._spread(address)
        # Each attempt has the timeout already.
        until = None if timeout is None or not channel.wait_for_ready else channel.loop.time() + timeout
        try:
            await channel.wait(until, channel.wait_for_ready)
        except ZcrpcError:
            if channel.mistake is not None:
                raise channel.mistake from None
            raise

    def _spread(self, address: Address) -> None:
        """Calls go to all servers that an address stands for."""
        if is_numeric(address):
            self._channel.add(str(address), functools.partial(self._dialer.dial, address))
        else:
            resolution = Resolution(self._channel, address, self._dial_at)
            task = self._channel.loop.create_task(resolution.run(), context=contextvars.Context())
            self._tasks.append(task)

    def _dial_at(self, address: Address, where: Found) -> Dial:
        return functools.partial(self._dialer.dial, address, [where])


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


def _proxy_method(service: type[Service], plan: Plan) -> Callable[..., Any] | Verb:
    name, result, outgoing, safe = plan.name, plan.result, plan.outgoing, plan.idempotent
    call: Callable[..., Any]

    def call_unary(
        self: _Proxy,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        idempotent: bool = safe,
        wait_for_ready: bool | None = None,
        **keywords: Any,
    ) -> Awaitable[Any]:
        return self._call(name, arguments, keywords, timeout, metadata, result, None, idempotent, wait_for_ready)

    def call_with_items(
        self: _Proxy,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        wait_for_ready: bool | None = None,
        **keywords: Any,
    ) -> Awaitable[Any]:
        arguments, source = plan.take_items(arguments, keywords)
        return self._call(name, arguments, keywords, timeout, metadata, result, source, False, wait_for_ready)

    def call_stream(
        self: _Proxy,
        /,
        *arguments: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        wait_for_ready: bool | None = None,
        **keywords: Any,
    ) -> Stream[Any]:
        assert outgoing is not None
        arguments, source = plan.take_items(arguments, keywords)
        return self._client._stream(name, arguments, keywords, source, timeout, metadata, outgoing, wait_for_ready)

    call = call_stream if outgoing is not None else call_with_items if plan.incoming is not None else call_unary
    original = getattr(service, plan.attribute)
    call.__name__, call.__qualname__, call.__doc__ = original.__name__, original.__qualname__, original.__doc__
    return Verb(call, name, result, safe) if call is call_unary else call


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
    balance: Balance
    connections: int
    wait_for_ready: bool
    retries: Retries | None
    backoff: Backoff
    keepalive: float | None
    keepalive_timeout: float
    idle_timeout: float | None
    ssl: SSLContext | None
    server_hostname: str | None
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
    busy_poll: float
    interceptors: Sequence[Interceptor]
    token: Token | None
    compression: Option


@overload
def connect(
    address: str | Sequence[str], service: None = None, **options: Unpack[ConnectOptions]
) -> Connecting[Client]: ...
@overload
def connect(address: str | Sequence[str], service: type[S], **options: Unpack[ConnectOptions]) -> Connecting[S]: ...
def connect(
    address: str | Sequence[str],
    service: type[S] | None = None,
    *,
    timeout: float | None = 10.0,
    balance: Balance = "first",
    connections: int = 1,
    wait_for_ready: bool = False,
    retries: Retries | None = _RETRIES,
    backoff: Backoff = _BACKOFF,
    keepalive: float | None = None,
    keepalive_timeout: float = 20.0,
    idle_timeout: float | None = None,
    ssl: SSLContext | None = None,
    server_hostname: str | None = None,
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
    busy_poll: float = 0.0,
    interceptors: Sequence[Interceptor] = (),
    token: Token | None = None,
    compression: Option = None,
) -> Connecting[Any]:
    """Connects to tcp://host:port or unix://path, or to several of them.

        async with zcrpc.connect(address) as client: ...            # a Client
        async with zcrpc.connect(address, Store) as store: ...      # an object with Store's methods
        client = await zcrpc.connect(address)                       # … then `await client.close()`

    address: several servers that do the same may be given, in a sequence or separated by commas, and a name may resolve
        to several. Which of them a call goes to is for `balance` to say.
    timeout: seconds for a connection, with TLS and hello.
    balance: "first", the first server that can be reached, and the next one when it is lost; "round-robin", all of them
        in turn; "least-loaded", of two drawn at random the one with fewer calls of this client in flight.
    connections: how many to each server at most; another one is made when all have calls in flight.
    wait_for_ready: calls, and connecting itself, wait while nobody can be reached, instead of failing at once.
    retries: which calls are made again; None: none.
    backoff: how long after a failed attempt to connect the next one comes.
    keepalive, keepalive_timeout: seconds of silence after which the server is sent a ping, and that it has to answer.
    idle_timeout: seconds without a call after which a connection is closed; the next call makes it again.
    ssl: connects by TLS; `ssl.create_default_context()` will do. What is received is then copied.
    server_hostname: whom the certificate has to be for, if not for the address's host.
    token: what the server's `authenticate` is shown, or a function, plain or async, that gives it whenever a connection
        is made; without TLS it travels in the clear.
    interceptors: functions around every call, the outermost first; see zcrpc/interceptors.py.
    compression: "zstd", or a `Compression`, compresses payloads if the server wants it too.

    The other options are those of `Server`, for results. Raises Unavailable if there is nobody, DeadlineExceeded if it
    takes too long, ResourceExhausted if the server has too many connections, Unauthenticated if it does not accept this
    client.
    """
    check_token(token)
    if max_metadata < 0:
        raise ValueError(f"max_metadata={max_metadata}: must not be negative")
    around = check(interceptors)
    calibration.validate(receive)
    addresses = parse_all(address)
    if balance not in PICKERS:
        raise ValueError(f"balance={balance!r}: must be one of {', '.join(PICKERS)}")
    if connections < 1:
        raise ValueError(f"connections={connections}: must be at least 1")
    tls.validate(ssl, server_side=False)
    watching = Watching(keepalive=keepalive, keepalive_timeout=keepalive_timeout, idle_timeout=idle_timeout)
    max_message = min(max_message, budget)
    packing = prepare(compression, max_message)
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
            busy_poll=busy_poll,
        ),
    )
    wrap: Callable[[Client], Any] = (lambda client: client) if service is None else (lambda client: client.use(service))
    if service is not None:
        _proxy_class(service)

    async def open_client() -> Client:
        loop = asyncio.get_running_loop()
        map_from = 0
        if ssl is None and not all(each.is_unix for each in addresses):
            map_from = await calibration.mapped_from(receive, options.reactor.map_from)
        channel = Channel(
            loop,
            balance=balance,
            connections=connections,
            backoff=backoff,
            retries=retries,
            wait_for_ready=wait_for_ready,
        )
        pool = Pool.join(loop, options)
        dialer = Dialer(
            pool=pool,
            limits=limits,
            map_from=map_from,
            timeout=timeout,
            tls=ssl,
            server_hostname=server_hostname,
            watching=watching,
            token=token,
            packing=packing,
        )
        client = Client(pool, channel, dialer, around)
        try:
            await client._open(addresses, balance, timeout)
        except BaseException:
            await client.close()
            raise
        return client

    return Connecting(open_client, wrap)
