"""A client that blocks, for scripts, notebooks and threads.

    with zcrpc.blocking.connect("tcp://127.0.0.1:7000", Store) as store:
        n = store.put("k", array, timeout=2.0)
        for entry in store.tail(since=0): ...

All blocking clients of a process share an event loop, which runs in a thread of its own from the first `connect` to the
end of the process. So they work where another loop runs, as in a notebook, and from several threads at once. The price
is a switch between threads, there and back, for each call and for each batch of a stream's items: about 0.1 ms.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, Unpack, overload

from zcrpc import client as asynchronous
from zcrpc.channel import State
from zcrpc.client import ConnectOptions
from zcrpc.errors import FailedPrecondition
from zcrpc.metadata import Metadata
from zcrpc.service import Plan, Service, plans
from zcrpc.stats import Stats
from zcrpc.streaming import Stream

T = TypeVar("T")
S = TypeVar("S", bound=Service)

# How long the end of the process waits for connections to be closed.
_FAREWELL_SECONDS: Final = 3.0


class _Background:
    """The event loop of the blocking clients, and its thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.clients: set[asynchronous.Client] = set()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._main, name="zcrpc.blocking", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _main(self) -> None:
        import uvloop

        # Not asyncio.Runner: it starts a thread to end the executor's, and when a process ends Python 3.12 starts none.
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(self._run())
        finally:
            loop.close()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await asyncio.gather(*(client.close() for client in self.clients), return_exceptions=True)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def check(self) -> None:
        """FailedPrecondition where nothing can be waited for."""
        if self.pid != os.getpid():
            raise FailedPrecondition(
                f"this client belongs to process {self.pid}, of which this is a fork; connect again here"
            )
        if threading.current_thread() is self._thread:
            raise FailedPrecondition("a blocking client is used in its own event loop, where nothing may block")
        if not self._thread.is_alive():
            raise FailedPrecondition("the blocking clients of this process are closed: it ends")

    def run(self, make: Callable[[], Awaitable[T]]) -> T:
        """What is awaited in the loop, in the context of this thread. Ctrl-C and whatever else interrupts the waiting
        cancels it."""
        self.check()

        async def work() -> T:
            return await make()

        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
            raise

    def close(self) -> None:
        """Closes all clients, and ends the loop."""
        if self.pid == os.getpid() and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_FAREWELL_SECONDS)


_background: _Background | None = None
_lock = threading.Lock()
_of_parents: Final[list[_Background | None]] = []


def _shared() -> _Background:
    global _background
    with _lock:
        if _background is None:
            _background = _Background()
            atexit.register(_background.close)
        return _background


def _forked() -> None:
    """In a child: the loop's thread is not here. What belongs to it stays as it is: sockets are shared with the
    parent, and to close them in good order would be the end of its connections."""
    global _background, _lock
    _of_parents.append(_background)
    _background, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forked)


class Items(Generic[T], Iterator[T]):
    """The results of a call, one after the other. The call begins with the first item that is asked for; leaving the
    loop cancels it, unless something else still holds the iterator; to be sure, `with client.stream(…) as items` or
    `close()`."""

    def __init__(self, background: _Background, stream: Stream[T]) -> None:
        self._background = background
        self._stream = stream
        self._here: deque[T] = deque()
        self._over = False

    def __next__(self) -> T:
        if not self._here:
            if self._over:
                raise StopIteration
            try:
                self._here.extend(self._background.run(self._more))
            except StopAsyncIteration:
                self._over = True
                raise StopIteration from None
        return self._here.popleft()

    async def _more(self) -> list[T]:
        return [await anext(self._stream), *self._stream.ready()]

    def close(self) -> None:
        """Cancels the call, if it is not over."""
        self._over = True
        self._here.clear()
        self._background.run(self._stream.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client:
    """Calls that block. Made by `connect`; may be used by several threads at once."""

    def __init__(self, background: _Background, client: asynchronous.Client) -> None:
        self._background = background
        self._client = client

    @property
    def methods(self) -> list[str]:
        """What the server serves."""
        return self._client.methods

    @property
    def state(self) -> State:
        """Whether calls can be made."""
        return self._client.state

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
    ) -> Any:
        """Calls "Service.method" and waits for its result. See `zcrpc.Client.call`; here a generator, or any other
        iterator, among the arguments is the stream of items that the method takes. It is run in a thread of its own.
        Ctrl-C cancels the call."""
        arguments = tuple(_fed(each) for each in arguments)
        keywords = {name: _fed(each) for name, each in keywords.items()}
        return self._background.run(
            lambda: self._client.call(
                method,
                *arguments,
                timeout=timeout,
                metadata=metadata,
                returns=returns,
                idempotent=idempotent,
                wait_for_ready=wait_for_ready,
                **keywords,
            )
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
    ) -> Items[Any]:
        """Calls "Service.method", whose results are a stream: `for item in client.stream(…)`. See
        `zcrpc.Client.stream`, and `call` for streams to the server."""
        self._background.check()
        arguments = tuple(_fed(each) for each in arguments)
        keywords = {name: _fed(each) for name, each in keywords.items()}
        options: dict[str, Any] = {"timeout": timeout, "metadata": metadata, "wait_for_ready": wait_for_ready}
        return Items(self._background, self._client.stream(method, *arguments, returns=returns, **options, **keywords))

    def use(self, service: type[S]) -> Typed[S]:
        """An object with the methods of a service class, each a call that blocks, or an iterator where results are a
        stream."""
        return _proxy_class(service)(self)

    def ping(self, timeout: float | None = None) -> float:
        """Seconds to the server's reactor and back."""
        return self._background.run(lambda: self._client.ping(timeout))

    def stats(self) -> Stats:
        """See `zcrpc.Client.stats`."""

        async def stats() -> Stats:
            return self._client.stats()

        return self._background.run(stats)

    def close(self) -> None:
        """Closes the connections. At the end of the process that happens by itself. Results that are views stay
        valid."""
        if self._client in self._background.clients:
            self._background.run(self._client.close)
            self._background.clients.discard(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Typed(Generic[S]):
    """A service at a client: its methods, each a call that blocks, or an iterator where results are a stream; where it
    has no method of that name, `close`, `ping`, `stats` and `client` are those of the client. What mypy knows of the
    methods it has from the plugin `zcrpc.mypy`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


class _Proxy(Typed[Any]):
    """Base of those that are made for a service class."""

    @property
    def client(self) -> Client:
        return self._client

    def close(self) -> None:
        self._client.close()

    def ping(self, timeout: float | None = None) -> float:
        return self._client.ping(timeout)

    def stats(self) -> Stats:
        return self._client.stats()


_proxy_classes: dict[type[Service], type[_Proxy]] = {}


def _proxy_class(service: type[Service]) -> type[_Proxy]:
    known = _proxy_classes.get(service)
    if known is None:
        methods = {attribute: _proxy_method(service, plan) for attribute, plan in plans(service).items()}
        namespace = {"__doc__": service.__doc__, "__module__": service.__module__, **methods}
        known = _proxy_classes[service] = type(service.__name__, (_Proxy,), namespace)
    return known


def _proxy_method(service: type[Service], plan: Plan) -> Callable[..., Any]:
    attribute = plan.attribute

    def call(self: _Proxy, /, *arguments: Any, **keywords: Any) -> Any:
        background, client = self._client._background, self._client._client
        background.check()
        arguments = _with_items(plan, arguments, keywords)
        typed = getattr(client.use(service), attribute)
        if plan.outgoing is not None:
            return Items(background, typed(*arguments, **keywords))
        return background.run(lambda: typed(*arguments, **keywords))

    original = getattr(service, attribute)
    call.__name__, call.__qualname__, call.__doc__ = original.__name__, original.__qualname__, original.__doc__
    return call


def _with_items(plan: Plan, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a typed call, with the stream of items as one that the loop can wait for."""
    incoming = plan.incoming
    if incoming is None:
        return arguments
    if incoming.name in keywords:
        keywords[incoming.name] = _fed(keywords[incoming.name], typed=True)
    elif 0 <= incoming.index < len(arguments):
        index = incoming.index
        return (*arguments[:index], _fed(arguments[index], typed=True), *arguments[index + 1 :])
    return arguments


def _fed(value: Any, *, typed: bool = False) -> Any:
    """An argument; if it is an iterator, or any iterable where one is known to be wanted, as one that the loop can wait
    for. What is there already need not be waited for."""
    if isinstance(value, Sequence) or not isinstance(value, Iterable if typed else Iterator):
        return value
    return _Fed(iter(value))


class _Fed:
    """An iterable of this process's threads as an asynchronous one. It is run in a thread of its own, since it may
    block; one item is asked for when the one before has been taken."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items()

    async def _items(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        wanted: queue.SimpleQueue[asyncio.Future[tuple[Any, ...]] | None] = queue.SimpleQueue()
        thread = threading.Thread(target=self._produce, args=(loop, wanted), name="zcrpc.blocking.items", daemon=True)
        thread.start()
        try:
            while True:
                future: asyncio.Future[tuple[Any, ...]] = loop.create_future()
                wanted.put(future)
                found = await future
                if not found:
                    return
                yield found[0]
        finally:
            wanted.put(None)

    def _produce(self, loop: asyncio.AbstractEventLoop, wanted: queue.SimpleQueue[Any]) -> None:
        while (future := wanted.get()) is not None:
            found: tuple[Any, ...] | BaseException
            try:
                found = (next(self._source),)
            except StopIteration:
                found = ()
            except BaseException as error:
                found = error
            if loop.is_closed():
                break
            loop.call_soon_threadsafe(_settle, future, found)
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


def _settle(future: asyncio.Future[tuple[Any, ...]], found: tuple[Any, ...] | BaseException) -> None:
    if future.done():
        return
    if isinstance(found, BaseException):
        future.set_exception(found)
    else:
        future.set_result(found)


@overload
def connect(address: str | Sequence[str], service: None = None, **options: Unpack[ConnectOptions]) -> Client: ...
@overload
def connect(address: str | Sequence[str], service: type[S], **options: Unpack[ConnectOptions]) -> Typed[S]: ...
def connect(
    address: str | Sequence[str], service: type[Service] | None = None, **options: Unpack[ConnectOptions]
) -> Any:
    """Connects, and waits until that is done.

        client = zcrpc.blocking.connect(address)                    # a Client
        store = zcrpc.blocking.connect(address, Store)              # an object with Store's methods, which block

    Both are context managers, which close at their end; without, they are closed by `close()` or at the end of the
    process. The options are those of `zcrpc.connect`, and so are the errors. Belongs to this process: in a fork of it
    calls raise FailedPrecondition.
    """
    background = _shared()
    if service is not None:
        _proxy_class(service)

    async def open_client() -> asynchronous.Client:
        made = await asynchronous.connect(address, **options)
        background.clients.add(made)
        return made

    client = Client(background, background.run(open_client))
    return client if service is None else client.use(service)
