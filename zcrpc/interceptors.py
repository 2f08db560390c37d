"""Interceptors: functions around every call of a server or a client, to log, measure, authorise, retry.

    async def log_calls(call, proceed):
        begun = time.perf_counter()
        try:
            return await proceed(call)
        finally:
            log.info("%s took %.6f s", call.method, time.perf_counter() - begun)

    server = zcrpc.Server(Store(), interceptors=[log_calls])
    client = await zcrpc.connect(address, interceptors=[log_calls])

`proceed(call)` is what comes next: the next interceptor, and behind the last of them the handler, or the wire. Its
result is the call's; where results are a stream, it is an asynchronous iterator of them. The first of a list is the
outermost. An interceptor may refuse (raise), change arguments and metadata, replace the result, or call `proceed`
again.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zcrpc.context import Context, Outgoing, context
from zcrpc.metadata import NOTHING, Metadata
from zcrpc.streams import Receiver
from zcrpc.wire import STREAM_IN, STREAM_OUT

if TYPE_CHECKING:
    from zcrpc.service import Plan

Kind: TypeAlias = Literal["unary", "server-stream", "client-stream", "bidi-stream"]


class Call:
    """A call on its way through interceptors, the same on both sides.

    `method`: "Service.method". `kind`: "unary", "server-stream", "client-stream" or "bidi-stream". `arguments`,
    `keywords`: may be replaced; at a server they are converted already, and have a place for `items`, which only counts
    as a place. `items`: the stream of items from the caller, or None; may be replaced, by one that counts them, say.
    """

    __slots__ = ("arguments", "items", "keywords", "kind", "method")

    def __init__(self, method: str, kind: Kind, arguments: Sequence[Any], keywords: dict[str, Any], items: Any) -> None:
        self.method = method
        self.kind = kind
        self.arguments = arguments
        self.keywords = keywords
        self.items = items

    def __repr__(self) -> str:
        return f"<{self.kind} call of {self.method}()>"

    @property
    def peer(self) -> str:
        """The address of the other side."""
        raise NotImplementedError

    @property
    def identity(self) -> Any:
        """At a server, who calls; see `Context.identity`. At a client, None."""
        raise NotImplementedError

    @property
    def deadline(self) -> float | None:
        """Seconds left; None for no limit."""
        raise NotImplementedError


class IncomingCall(Call):
    """A call at a server. What `context()` knows of it, it knows as well."""

    __slots__ = ("_came", "context", "refusal")

    def __init__(
        self,
        context: Context,
        kind: Kind,
        arguments: Sequence[Any],
        keywords: dict[str, Any],
        refusal: Exception | None,
    ) -> None:
        came = next((each for each in (*arguments, *keywords.values()) if isinstance(each, Receiver)), None)
        super().__init__(context.method, kind, arguments, keywords, came)
        self._came = came
        self.context = context
        self.refusal = refusal  # its arguments do not fit the method: what `proceed` will raise

    @property
    def peer(self) -> str:
        return self.context.peer

    @property
    def identity(self) -> Any:
        return self.context.identity

    @property
    def deadline(self) -> float | None:
        return self.context.deadline

    @property
    def metadata(self) -> Metadata:
        """What the caller sent along."""
        return self.context.metadata

    @property
    def response_metadata(self) -> dict[str, str | bytes]:
        """What is sent along with the answer."""
        return self.context.response_metadata

    def bound(self) -> tuple[list[Any], dict[str, Any]]:
        """Arguments and keywords, with the items in their place."""
        came, items = self._came, self.items
        if came is None:
            return list(self.arguments), self.keywords
        return (
            [items if each is came else each for each in self.arguments],
            {name: items if each is came else each for name, each in self.keywords.items()},
        )


class OutgoingCall(Call):
    """A call at a client. `metadata`: sent along, to be added to. `response_metadata`: what came with the answer, once
    `proceed` has returned or raised. `idempotent`, `wait_for_ready`: as of `Client.call`."""

    __slots__ = (
        "_out",
        "_peer",
        "_response_metadata",
        "_until",
        "expected",
        "idempotent",
        "metadata",
        "opened",
        "wait_for_ready",
    )

    def __init__(
        self,
        peer: str,
        method: str,
        kind: Kind,
        arguments: Sequence[Any],
        keywords: dict[str, Any],
        items: Any,
        timeout: float | None,
        metadata: Metadata | None,
        expected: Any,
        out: Outgoing | None,
        idempotent: bool = False,
        wait_for_ready: bool | None = None,
    ) -> None:
        super().__init__(method, kind, arguments, keywords, items)
        self._peer = peer
        self.idempotent = idempotent
        self.wait_for_ready = wait_for_ready
        self.deadline = timeout
        self.metadata: dict[str, str | bytes] = dict(metadata or {})
        self.expected = expected  # how results are converted
        self.opened: list[weakref.ref[Any]] = []  # streams
        self._out = out
        self.response_metadata = NOTHING

    @property
    def response_metadata(self) -> Metadata:
        """What came with the latest answer."""
        return self._response_metadata

    @response_metadata.setter
    def response_metadata(self, metadata: Metadata) -> None:
        self._response_metadata = metadata
        if self._out is not None:
            self._out.response_metadata = metadata

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def identity(self) -> Any:
        return None

    @property
    def deadline(self) -> float | None:
        """Seconds left for all that `proceed` does from now on; None for no limit. May be set."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    @deadline.setter
    def deadline(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds


Proceed: TypeAlias = Callable[[Any], Awaitable[Any]]
Interceptor: TypeAlias = Callable[[Any, Proceed], Awaitable[Any]]


def chain(interceptors: Sequence[Interceptor], last: Proceed) -> Proceed:
    """One function that passes a call through interceptors, the first first, to `last`."""
    for interceptor in reversed(interceptors):
        last = _link(interceptor, last)
    return last


def _link(interceptor: Interceptor, proceed: Proceed) -> Proceed:
    return lambda call: interceptor(call, proceed)


def check(interceptors: Sequence[Interceptor]) -> tuple[Interceptor, ...]:
    """TypeError for what is no interceptor."""
    for interceptor in interceptors:
        if not callable(interceptor):
            raise TypeError(f"an interceptor is `async def intercept(call, proceed)`, not {interceptor!r}")
    return tuple(interceptors)


def kind_of(plan: Plan) -> Kind:
    """What kind of call a method has."""
    kinds: dict[int, Kind] = {0: "unary", STREAM_OUT: "server-stream", STREAM_IN: "client-stream"}
    return kinds.get(plan.streams, "bidi-stream")


class Intercepted:
    """A handler behind a server's interceptors. It is called as the handler would be."""

    __slots__ = ("_handler", "_kind", "_proceed")

    def __init__(self, interceptors: Sequence[Interceptor], handler: Callable[..., Any], kind: Kind) -> None:
        self._handler = handler
        self._kind = kind
        self._proceed = chain(interceptors, self._serve)

    def __call__(self, *arguments: Any, **keywords: Any) -> Coroutine[Any, Any, Any]:
        return self._run(arguments, keywords, None)

    def refuse(self, error: Exception) -> Coroutine[Any, Any, Any]:
        """The call of someone whose arguments do not fit: interceptors see it, the handler does not."""
        return self._run((), {}, error)

    async def _run(self, arguments: Sequence[Any], keywords: dict[str, Any], refusal: Exception | None) -> Any:
        return await self._proceed(IncomingCall(context(), self._kind, arguments, keywords, refusal))

    async def _serve(self, call: IncomingCall) -> Any:
        if call.refusal is not None:
            raise call.refusal
        arguments, keywords = call.bound()
        result = self._handler(*arguments, **keywords)
        return await result if isinstance(result, Awaitable) else result
