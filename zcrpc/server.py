"""The server: listens, takes connections in, and goes away in good order. What a connection does with a call is in
serving.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final

from zcrpc import calibration, signals, tls
from zcrpc._native import lib
from zcrpc.address import Address
from zcrpc.ageing import Ageing
from zcrpc.calibration import Receive
from zcrpc.compression import FEATURE, Option, prepare
from zcrpc.credentials import Authenticate, Caller, peer_process
from zcrpc.eager import Runner
from zcrpc.errors import FailedPrecondition, Status
from zcrpc.forking import MESSAGE, remember
from zcrpc.health import Health
from zcrpc.interceptors import Intercepted, Interceptor, check, kind_of
from zcrpc.keepalive import Watching
from zcrpc.metadata import DEFAULT_LIMIT
from zcrpc.metering import Meter
from zcrpc.reactor import Reactor, ReactorOptions
from zcrpc.reflection import Reflection
from zcrpc.regions import RegionMap
from zcrpc.service import Service, plans
from zcrpc.serving import Handlers, ServerConnection
from zcrpc.sockets import bind, listening_source, watch_over
from zcrpc.statistics import Statistics
from zcrpc.stats import Stats, collect
from zcrpc.threads import Threads
from zcrpc.tls import Tunnel
from zcrpc.wire import CONNECTION_WINDOW, STREAM_WINDOW, Hello, Limits

_log = logging.getLogger("zcrpc.server")

# Accepted per wake-up, so that a flood of connections does not starve those that are there.
_ACCEPT_AT_ONCE: Final = 64
# After this long without a free file descriptor it is tried again.
_ACCEPT_PAUSE_SECONDS: Final = 0.5
# Connections beyond the limit are told so, then closed; if more than this many are being told, the next are just
# closed.
_REFUSALS_AT_ONCE: Final = 256
# How long handlers may take to clean up when they were cancelled at the end of the grace period.
_CLEANUP_SECONDS: Final = 1.0
# Names of services that every server has of its own.
_RESERVED: Final = "zcrpc."
# How long peers may take to read the last replies and close their side. The core itself lets go of those that do not
# after 1 s.
_FAREWELL_SECONDS: Final = 1.5
# Threads for blocking handlers, as concurrent.futures counts them.
_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)


class _Entrance:
    """Where connections come from that are made elsewhere."""

    def __init__(self, server: Server, address: Address, mapping: int, tls: SSLContext | None = None) -> None:
        self.address = address
        self.tls = tls
        self.mapping = mapping  # bytes from which on connections ask for whole pages; 0: never
        self.hello = server.hello_for(mapping)


class _Listener(_Entrance):
    """One listening socket."""

    def __init__(
        self,
        server: Server,
        sock: socket.socket,
        address: Address,
        mapping: int,
        tls: SSLContext | None,
        inherited: bool,
    ) -> None:
        super().__init__(server, address, mapping, tls)
        self.server = server
        self.inherited = inherited  # others may listen on the same socket, now or later
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self.loop.add_reader(sock.fileno(), self.accept)

    def accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                accepted, peer = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self.server.accept_pauses += 1
                _log.error("%s: cannot accept, trying again in %g s: %s", self.address, _ACCEPT_PAUSE_SECONDS, error)
                self.loop.remove_reader(self.sock.fileno())
                self._pause = self.loop.call_later(_ACCEPT_PAUSE_SECONDS, self.resume)
                return
            self.server.accepted(self, accepted, peer)

    def resume(self) -> None:
        self._pause = None
        self.loop.add_reader(self.sock.fileno(), self.accept)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self.sock.fileno() >= 0:
            self.loop.remove_reader(self.sock.fileno())
            self.sock.close()
            if self.address.is_unix and not self.inherited:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.address.path)


class Listening:
    """What `Server.listen` returns: an async context manager that yields the bound address, and can also be awaited for
    it."""

    def __init__(self, server: Server, address: str | socket.socket, backlog: int, tls: SSLContext | None) -> None:
        self._server = server
        self._tls = tls
        self._source = listening_source(address)
        self._backlog = backlog
        self._listener: _Listener | None = None

    def __await__(self) -> Generator[Any, None, str]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> str:
        if self._listener is not None:
            raise FailedPrecondition("listening already")
        self._listener = await self._server._open(self._source, self._backlog, self._tls)
        return str(self._listener.address)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._server._stop_listening(self._listener)
        if not self._server._listeners:
            await (self._server.close() if kind is None else self._server.close(grace=0))


class Server:
    """Serves the methods of services.

    locks: the lock strategy of the region map; see `zcrpc.locks.names()`.
    receive: "zerocopy" maps payloads, "copy" copies them, "auto" does what is cheaper on this host. Unix sockets always
        copy.
    receive_threads: native threads that receive off the GIL; 0: in the event loop, which suits all but large payloads.
    budget: bytes of memory for received payloads that are still in use. When they are used up, connections are not read
        until some are free again; nothing fails. A payload that could never fit is refused.
    retain: bytes of that kept warm for the next payloads when they are free.
    max_message: bytes of buffers in one call at most; more is RESOURCE_EXHAUSTED.
    max_header: bytes of everything else in one call at most, up to 131072.
    max_in_flight: calls of one connection whose handlers wait; more is RESOURCE_EXHAUSTED.
    max_calls: the same of all connections together.
    max_queued: calls in all that have come and are not begun, because their peer has not taken earlier results; more is
        RESOURCE_EXHAUSTED.
    max_metadata: bytes of a call's metadata at most; more is RESOURCE_EXHAUSTED.
    max_connections: more are told so and closed.
    place_from: buffers of at least so many bytes in all are placed in a region, at most 65536; less is copied to
        `bytes` at once.
    map_from: buffers of at least so many bytes are mapped, if mapping is chosen at all.
    max_unread: bytes of small results waiting for a peer that does not read, from which on it is not read either.
    max_unsent: bytes of large results waiting to be sent to a peer, from which on no more of its calls are begun.
    stream_window: bytes of a stream's items that may be here and not be taken yet, besides one that is longer; when
        there are more, the peer waits. connection_window: the same for all streams of a connection together.
    stall_timeout: seconds after which a peer is dropped that stops in the middle of a frame, or does not read what
        waits for it.
    busy_poll: seconds, 1 at most, that the event loop stays awake after something came, if things come as near to each
        other as that: small calls are answered sooner, and a core is busy meanwhile. 50e-6 or 100e-6 will do.
    hello_timeout: seconds that a new connection has to introduce itself, and to be authenticated; and the same for its
        TLS handshake before.
    keepalive, keepalive_timeout: seconds of silence after which a client is sent a ping, and that it has to answer;
        None: it is not.
    idle_timeout: seconds without a call after which a connection is closed; its client makes a new one when it needs
        it. None: never.
    max_connection_age: seconds, a tenth more or less, after which a connection takes no more calls; its client makes a
        new one. None: any age. max_connection_age_grace: seconds that calls in flight have then, before they are
        cancelled; None: all that they need.
    threads: handlers of `@method(blocking=True)` that run at once at most. max_waiting: calls that wait for a thread at
        most; more is RESOURCE_EXHAUSTED.
    interceptors: functions around every call, the outermost first; see zcrpc/interceptors.py.
    authenticate: gives the identity of a new connection's `Credentials`, or raises `Unauthenticated`; plain or async.
        None and False are refusals too. Without it every connection is taken.
    introspection: serves what there is to know about the server itself: its methods, and its statistics. Its health is
        served in any case.
    compression: "zstd", or a `Compression`, compresses payloads on connections whose clients want it too.

    Large results are sent by reference: a buffer of 16 KiB or more that a handler returns must not change until it has
    been sent.
    """

    def __init__(
        self,
        *services: Service,
        locks: str = "per-region",
        receive: Receive = "auto",
        receive_threads: int = 0,
        budget: int = 1 << 30,
        retain: int = 16 << 20,
        max_message: int = 256 << 20,
        max_header: int = 64 << 10,
        max_in_flight: int = 1024,
        max_connections: int = 10_000,
        max_calls: int = 10_000,
        max_queued: int = 10_000,
        max_metadata: int = DEFAULT_LIMIT,
        place_from: int = 32 << 10,
        map_from: int = 64 << 10,
        max_unread: int = 1 << 20,
        max_unsent: int = 64 << 20,
        stream_window: int = STREAM_WINDOW,
        connection_window: int = CONNECTION_WINDOW,
        stall_timeout: float = 30.0,
        busy_poll: float = 0.0,
        hello_timeout: float = 10.0,
        keepalive: float | None = None,
        keepalive_timeout: float = 20.0,
        idle_timeout: float | None = None,
        max_connection_age: float | None = None,
        max_connection_age_grace: float | None = None,
        threads: int = _THREADS,
        max_waiting: int = 1024,
        interceptors: Sequence[Interceptor] = (),
        authenticate: Authenticate | None = None,
        introspection: bool = True,
        compression: Option = None,
    ) -> None:
        calibration.validate(receive)
        for name, value in (
            ("max_in_flight", max_in_flight),
            ("max_connections", max_connections),
            ("max_calls", max_calls),
            ("max_queued", max_queued),
            ("threads", threads),
            ("max_waiting", max_waiting),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if receive_threads < 0:
            raise ValueError(f"receive_threads={receive_threads}: must not be negative")
        if max_metadata < 0:
            raise ValueError(f"max_metadata={max_metadata}: must not be negative")
        if authenticate is not None and not callable(authenticate):
            raise TypeError(f"authenticate is a function of Credentials, not {authenticate!r}")
        _check_services(services)
        self.threads = Threads(threads, max_waiting)
        self.health = Health(dict.fromkeys(type(service).__zcrpc_name__ for service in services))
        self.meter = Meter(self._measure)
        self._statistics = Statistics(self) if introspection else None
        builtin: list[Service] = [self.health]
        if self._statistics is not None:
            described = [*map(type, services), Health, Statistics, Reflection]
            builtin += [self._statistics, Reflection(described)]
        self.handlers, self.stream_handlers, self.methods = _table((*services, *builtin), self.threads)
        self._interceptors = check(interceptors)
        self._handlers = {number: handler for table in self._tables() for number, (_, handler) in table.items()}
        self._intercept(self._interceptors)
        self.authenticate = authenticate
        self.max_calls = max_calls
        self.max_queued = max_queued
        self.max_metadata = max_metadata
        self.max_connections = max_connections
        self.max_in_flight = max_in_flight
        self.max_message = min(max_message, budget)
        self.packing = prepare(compression, self.max_message)
        self.max_unsent = max_unsent
        self.hello_timeout = hello_timeout
        self.stall_timeout = stall_timeout
        self.watching = Watching(keepalive=keepalive, keepalive_timeout=keepalive_timeout, idle_timeout=idle_timeout)
        self.ageing = Ageing(age=max_connection_age, grace=max_connection_age_grace)
        self._map_from = map_from
        self._receive: Receive = receive
        self._threads = receive_threads
        self._limits = Limits(
            header=max_header,
            payload=self.max_message,
            in_flight=max_in_flight,
            stream_window=stream_window,
            connection_window=connection_window,
            metadata=max_metadata,
        )
        self._options = ReactorOptions(
            threaded=receive_threads > 0,
            receive=calibration.MODES[receive],
            place_from=min(place_from, map_from, self.max_message),
            map_from=map_from,
            header_limit=max_header,
            payload_limit=self.max_message,
            outbound_limit=max_unread,
            stall_ms=round(stall_timeout * 1000),
            busy_poll=busy_poll,
        )
        self.regions = RegionMap(locks=locks, budget=budget, retain=retain)
        self.runner: Runner  # set with the loop, when listening begins
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reactors: list[Reactor] = []
        self._listeners: list[_Listener] = []
        self._connections: set[ServerConnection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()  # of TLS
        self._tunnels: set[Tunnel] = set()
        self._quiet = asyncio.Event()  # nothing is in flight, and all are gone, when closing
        self._closed = asyncio.Event()
        self._patience = 0.0  # until when it lasts by the loop's time, when closing
        self._last: Stats | None = None
        self.closing = False
        self._forked = False
        self._requests = 0  # over connections that are gone
        self.errors = self.expired = 0
        self.refused = self.accept_pauses = self.unauthenticated = self.handshakes_failed = self.retired = 0
        self.exhausted = dict.fromkeys(("in_flight", "calls", "queued", "message", "metadata", "decompressed"), 0)
        self.calls = 0  # handlers that have suspended, in all connections
        self.full = False  # they are as many as there may be
        self.queued = 0  # calls put off, in all connections
        self._refusals = 0
        remember(self)

    # ---- listening

    def listen(self, address: str | socket.socket, *, backlog: int = 1024, ssl: SSLContext | None = None) -> Listening:
        """Listens on tcp://host:port (port 0: any free one) or unix://path; or on a bound socket that is handed over,
        itself or as fd://number, which others may listen on as well. With `ssl`, a server's SSLContext, by TLS;
        one whose verify_mode is CERT_REQUIRED asks clients for certificates. What is received is then copied.

            async with server.listen("tcp://127.0.0.1:0") as address: ...

        The address is the one that was bound. Leaving the context of a server's last listener closes the server, with
        the default grace. Can be awaited instead; then close the server yourself. Raises OSError if the address cannot
        be had.
        """
        tls.validate(ssl, server_side=True)
        return Listening(self, address, backlog, ssl)

    async def serve_forever(self) -> None:
        """Returns when the server has been closed."""
        await self._closed.wait()

    async def serve_until_signalled(self, grace: float = 5.0) -> signal.Signals | None:
        """Serves until SIGTERM or SIGINT, then closes with `grace`; a second one ends the grace. Returns the first, or
        None if the server was closed by other means. Needs the main thread; what was to handle these signals before
        does so again afterwards."""
        closing: list[asyncio.Task[None]] = []
        caught: list[signal.Signals] = []

        def react(number: signal.Signals) -> None:
            caught.append(number)
            _log.info("%s: going away%s", number.name, "" if len(caught) == 1 else " now")
            closing.append(asyncio.ensure_future(self.close(grace if len(caught) == 1 else 0)))

        with signals.heeded(signals.STOPPING, react):
            await self.serve_forever()
            await asyncio.gather(*closing)
        return caught[0] if caught else None

    def hello_for(self, map_from: int) -> Hello:
        """What connections are greeted with that receive by mapping from so many bytes on (0: do not)."""
        return Hello(
            limits=self._limits,
            chunk=lib.ZC_CHUNK_BYTES,
            map_from=map_from,
            features=[] if self.packing is None else [FEATURE],
            methods=self.methods,
        )

    async def _open(self, source: Address | int | socket.socket, backlog: int, context: SSLContext | None) -> _Listener:
        if self._forked:
            raise FailedPrecondition(f"this server {MESSAGE}")
        if self.closing:
            raise FailedPrecondition("the server is closed")
        loop = self._own(asyncio.get_running_loop())
        sock, address = await bind(source)
        try:
            map_from = 0
            if not address.is_unix and context is None:
                map_from = await calibration.mapped_from(self._receive, self._map_from)
            if not address.is_unix:
                watch_over(sock, self.stall_timeout)
            sock.listen(backlog)
            self._start(loop)
            listener = _Listener(self, sock, address, map_from, context, not isinstance(source, Address))
        except BaseException:
            sock.close()
            raise
        self._listeners.append(listener)
        _log.info("listening on %s", address)
        return listener

    def _own(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        if self._loop is not None and self._loop is not loop:
            raise FailedPrecondition("the server belongs to another event loop")
        return loop

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._reactors:
            return
        self._loop = loop
        self.runner = Runner(loop)
        for _ in range(max(1, self._threads)):
            self._reactors.append(Reactor(loop, self.regions.handle, self._options, self.runner))

    def _stop_listening(self, listener: _Listener) -> None:
        listener.close()
        if listener in self._listeners:
            self._listeners.remove(listener)

    # ---- calls

    def measure(self) -> None:
        """From now on counts the calls of each method, how they end and how long they take, for `zcrpc.prometheus`,
        `zcrpc top` and `meter`. That costs each call about as much as an interceptor does."""
        self.meter.begin()

    def _measure(self, on: bool) -> None:
        self._intercept((self.meter.intercept, *self._interceptors) if on else self._interceptors)

    def _tables(self) -> tuple[Handlers, Handlers]:
        return self.handlers, self.stream_handlers

    def _intercept(self, interceptors: tuple[Interceptor, ...]) -> None:
        """Puts interceptors around all handlers, from the next call on. Where there are none, handlers are called as
        they are."""
        for table in self._tables():
            for number, (plan, _) in table.items():
                handler = self._handlers[number]
                table[number] = plan, Intercepted(interceptors, handler, kind_of(plan)) if interceptors else handler

    # ---- connections

    async def adopt(self, sock: socket.socket) -> None:
        """Serves a connected stream socket that was made elsewhere: an end of a socketpair, or one that was handed over
        by another process. It belongs to the server from now on."""
        if self._forked:
            raise FailedPrecondition(f"this server {MESSAGE}")
        if self.closing:
            raise FailedPrecondition("the server is closed")
        sock.setblocking(False)
        is_unix, map_from = sock.family == socket.AF_UNIX, 0
        if is_unix:
            address = Address(path=str(sock.getsockname() or "socketpair"))
        else:
            host, port, *_ = sock.getsockname()
            address = Address(host=host, port=port)
            map_from = await calibration.mapped_from(self._receive, self._map_from)
        self._start(self._own(asyncio.get_running_loop()))
        self.accepted(_Entrance(self, address, map_from), sock, sock.getpeername())

    def accepted(self, listener: _Entrance, sock: socket.socket, peer: Any) -> None:
        """A new connection: goes to the reactor that has the fewest."""
        process = peer_process(sock)
        if process is None:
            name = f"{listener.address} ← {peer[0]}:{peer[1]}"
            where = Address(host=peer[0], port=peer[1])
        else:
            name = f"{listener.address} ← process {process.pid}, fd {sock.fileno()}"
            where = listener.address
        caller = Caller(str(where), process, identity=process)
        admitted = len(self._connections) + len(self._handshakes) - self._refusals < self.max_connections
        if not admitted:
            self.refused += 1
            _log.warning("%s: refused, there are %d connections", name, self.max_connections)
            if self._refusals >= _REFUSALS_AT_ONCE or listener.tls is not None:
                sock.close()
                return
        if listener.tls is None:
            self._take(listener, sock, name, caller, None, admitted)
        else:
            assert self._loop is not None
            task = self._loop.create_task(self._shake_hands(listener, listener.tls, sock, name, caller))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(
        self, listener: _Entrance, context: SSLContext, sock: socket.socket, name: str, caller: Caller
    ) -> None:
        assert self._loop is not None
        try:
            async with asyncio.timeout(self.hello_timeout):
                tunnel = await tls.open_tunnel(self._loop, sock, context, server_side=True)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            self.handshakes_failed += 1
            why = f"none within {self.hello_timeout:g} s" if isinstance(error, TimeoutError) else tls.describe(error)
            _log.warning("%s: TLS handshake: %s", name, why)
            return
        self._tunnels.add(tunnel)
        tunnel.on_close = lambda: self._tunnels.discard(tunnel)
        if self.closing:
            tunnel.close()
        else:
            caller.certificate = tunnel.peer_certificate
            if caller.identity is None:
                caller.identity = caller.certificate
            self._take(listener, tunnel.inner, name, caller, tunnel, True)

    def _take(
        self,
        listener: _Entrance,
        sock: socket.socket,
        name: str,
        caller: Caller,
        tunnel: Tunnel | None,
        admitted: bool,
    ) -> None:
        """A connection that can be talked over."""
        reactor = min(self._reactors, key=lambda reactor: len(reactor.connections))
        fd = sock.fileno()
        try:
            connection = ServerConnection(self, reactor, fd, listener.mapping > 0, listener.hello, name, caller, tunnel)
        except Exception:
            _log.exception("%s: could not be taken over", name)
            sock.close()
            if tunnel is not None:
                tunnel.close()
            return
        sock.detach()
        self._connections.add(connection)
        if not admitted:
            self._refusals += 1
            connection.refuse()

    def connection_closed(self, connection: ServerConnection) -> None:
        """Its last word."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._requests += connection.requests
        if not connection.admitted:
            self._refusals -= 1
        self._note_quiet()

    @property
    def requests(self) -> int:
        """Calls that came in."""
        return self._requests + sum(connection.requests for connection in self._connections)

    def call_begun(self) -> None:
        """A handler has suspended."""
        self.calls += 1
        self.full = self.calls >= self.max_calls

    def call_done(self) -> None:
        """A suspended handler has ended."""
        self.calls -= 1
        self.full = self.calls >= self.max_calls
        self._note_quiet()

    def _note_quiet(self) -> None:
        if self.closing:
            self._quiet.set()

    # ---- life

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def stats(self) -> Stats:
        """Counters and gauges. After `close`, those of its end."""
        if self._last is not None:
            return self._last
        return collect(
            [reactor for reactor in self._reactors if not reactor.is_closed],
            self.regions,
            connections=len(self._connections),
            requests=self.requests,
            errors=self.errors,
            expired=self.expired,
            calls=self.calls,
            refused=self.refused,
            retired=self.retired,
            handshakes_failed=self.handshakes_failed,
            accept_pauses=self.accept_pauses,
            queued=self.queued,
            unauthenticated=self.unauthenticated,
            exhausted={**self.exhausted, "waiting": self.threads.refused},
            threads=self.threads.running,
            waiting=self.threads.waiting,
            packing=self.packing,
        )

    def abandon(self) -> None:
        """This process was forked from the server's. See `zcrpc.forking`."""
        self._forked = self.closing = True
        for listener in self._listeners:
            listener.sock.close()
        for each in (self._listeners, self._connections, self._handshakes, self._tunnels, self._reactors):
            each.clear()
        self.threads.abandon()
        self._closed.set()

    async def close(self, grace: float = 5.0) -> None:
        """Goes away: listens no more, asks for no new calls and refuses them with UNAVAILABLE, lets those in flight
        finish for `grace` seconds, cancels the others, sends what is to be sent, closes the connections. Payloads that
        somebody holds stay valid. Called again with a shorter grace, it shortens it."""
        if self._forked:
            return
        if self.closing:
            self._hasten(grace)
            await self._closed.wait()
            return
        self.closing = True
        self._patience = asyncio.get_running_loop().time() + grace
        self.health.drain()
        if self._statistics is not None:
            self._statistics.drain()
        for listener in list(self._listeners):
            self._stop_listening(listener)
        for task in self._handshakes:
            task.cancel()
        for connection in self._connections:
            connection.be_careful()
            connection.send_goaway(Status.UNAVAILABLE, "the server is going away")
        try:
            await asyncio.gather(*self._handshakes, return_exceptions=True)
            await self._until(lambda: not self.calls)
            for connection in list(self._connections):
                connection.cancel_calls("the server has gone away")
            await self._until(lambda: not self.calls, _CLEANUP_SECONDS)
            for connection in list(self._connections):
                connection.part("the server is going away")
            await self._until(lambda: not self._connections, _FAREWELL_SECONDS)
            await asyncio.sleep(0)  # whoever called us may be a handler, inside a batch
        finally:
            self._end()

    def _hasten(self, grace: float) -> None:
        self._patience = min(self._patience, asyncio.get_running_loop().time() + grace)
        self._quiet.set()

    async def _until(self, done: Callable[[], bool], seconds: float | None = None) -> None:
        """Waits for so many seconds at most, or for as long as the patience that there is lasts."""
        loop = asyncio.get_running_loop()
        if seconds is not None:
            self._patience = loop.time() + seconds
        while not done() and loop.time() < self._patience:
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._patience):
                    await self._quiet.wait()

    def _end(self) -> None:
        self._last = self.stats()
        for reactor in self._reactors:
            reactor.close()
        for tunnel in list(self._tunnels):
            tunnel.close()
        if self._reactors:
            self.runner.close()
        self.threads.close()
        self.regions.close()
        self._closed.set()


def _check_services(services: tuple[Service, ...]) -> None:
    """TypeError or ValueError for what cannot be served."""
    for service in services:
        if isinstance(service, type) and issubclass(service, Service):
            raise TypeError(f"{service.__name__} is a class; serve an object of it: Server({service.__name__}())")
        if not isinstance(service, Service):
            raise TypeError(f"{service!r} is no zcrpc.Service")
        if service.__zcrpc_name__.startswith(_RESERVED):
            raise ValueError(f"{service.__zcrpc_name__}: names of services that begin with {_RESERVED!r} are reserved")


def _table(services: Sequence[Service], threads: Threads) -> tuple[Handlers, Handlers, dict[str, int]]:
    """Handlers by number, those of calls with streams apart; and numbers by name. Numbers begin with 1."""
    handlers: Handlers = {}
    stream_handlers: Handlers = {}
    numbers: dict[str, int] = {}
    for service in services:
        found = plans(type(service))
        if not found:
            raise TypeError(f"{type(service).__name__} has no @method")
        for plan in found.values():
            if plan.name in numbers:
                raise ValueError(f"two services have a method {plan.name}")
            number = numbers[plan.name] = len(numbers) + 1
            handler = getattr(service, plan.attribute)
            if plan.blocking:
                handler = threads.wrap(handler, plan.name)
            (stream_handlers if plan.streams else handlers)[number] = plan, handler
    return handlers, stream_handlers, numbers
