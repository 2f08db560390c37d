"""What surrounds a call: `context()` tells a handler who calls and how long there is left, `outgoing()` sets options
for the calls that are made within it.

Both are one context variable, so what a handler starts (tasks, task groups, threads of `asyncio.to_thread`) belongs to
its call, and the calls that it makes inherit its deadline.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from zcrpc.metadata import NOTHING, Metadata

if TYPE_CHECKING:
    from zcrpc.credentials import Caller
    from zcrpc.service import Plan


# What is known of a call that is served. A list, since each call has one: that is made in 40 ns, an object of a class
# in 300. A `Context` is made of it for who asks.
CALLER, PLAN, UNTIL, METADATA, CONTEXT, STOPPED, STREAM = range(7)
Served: TypeAlias = list[Any]


class Context:
    """The call that a handler serves. See `context`."""

    __slots__ = ("_caller", "_plan", "_served", "_until", "answer")

    def __init__(self, served: Served) -> None:
        self._served = served
        self._caller: Caller = served[CALLER]
        self._plan: Plan = served[PLAN]
        self._until: float = served[UNTIL]  # by time.monotonic(); 0: no deadline
        self.answer: dict[str, str | bytes] = {}

    @property
    def method(self) -> str:
        """ "Service.method"."""
        return self._plan.name

    @property
    def peer(self) -> str:
        """Where the caller is: tcp://host:port, or the unix://path that it has connected to."""
        return self._caller.address

    @property
    def identity(self) -> Any:
        """What the server's `authenticate` has made of the caller's credentials. Without one: the `Process` at the
        other end of a Unix socket, else None."""
        return self._caller.identity

    @property
    def metadata(self) -> Metadata:
        """What the caller sent along. Not authenticated: it is what the caller says."""
        metadata: Metadata = self._served[METADATA]
        return metadata

    @property
    def response_metadata(self) -> dict[str, str | bytes]:
        """What is sent along with the answer, be that a result or an error. Fill it before the handler ends."""
        return self.answer

    @property
    def deadline(self) -> float | None:
        """Seconds left, not under 0; None if the caller set no limit. When they have passed, the handler is
        cancelled."""
        return max(0.0, self._until - time.monotonic()) if self._until else None

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: the caller cancelled, the deadline passed, the connection was
        lost. A coroutine learns by being cancelled; this is for threads, and for what cleans up."""
        stopped: bool = self._served[STOPPED]
        return stopped

    def __repr__(self) -> str:
        return f"<call of {self.method}() from {self.peer}>"


class Outgoing:
    """Options of the calls made within a `with` statement, and what came back. See `outgoing`."""

    __slots__ = ("_token", "enclosing", "metadata", "response_metadata", "timeout")

    def __init__(self, timeout: float | None, metadata: Metadata | None) -> None:
        self.timeout = timeout
        self.metadata = metadata
        self.response_metadata: Metadata = NOTHING
        """What came with the latest answer, be that a result or an error."""
        self.enclosing: Scope = None
        self._token: contextvars.Token[Scope] | None = None

    def __enter__(self) -> Outgoing:
        if self._token is not None:
            raise RuntimeError("these options are in force already")
        self.enclosing = SCOPE.get()
        self._token = SCOPE.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        SCOPE.reset(self._token)
        self._token = None


Scope: TypeAlias = Served | Outgoing | None

SCOPE: Final[contextvars.ContextVar[Scope]] = contextvars.ContextVar("zcrpc", default=None)
"""The call that is served here, or the options that were set last, which know what they were set within."""


def context() -> Context:
    """The call that is being served: peer, identity, metadata, deadline, cancellation.

        @zcrpc.method
        async def put(self, key: str, value: memoryview) -> int:
            call = zcrpc.context()
            await quota(call.identity, timeout=call.deadline)

    For handlers, interceptors of a server, and what they start or await. RuntimeError anywhere else.
    """
    scope = SCOPE.get()
    while isinstance(scope, Outgoing):
        scope = scope.enclosing
    if scope is None:
        raise RuntimeError("zcrpc.context() is for handlers and what they start; no call is being served here")
    return context_of(scope)


def context_of(served: Served) -> Context:
    """The one context of a call."""
    found: Context | None = served[CONTEXT]
    if found is None:
        found = served[CONTEXT] = Context(served)
    return found


def outgoing(*, timeout: float | None = None, metadata: Metadata | None = None) -> Outgoing:
    """Options for every call that is made within, in typed and untyped clients alike.

        with zcrpc.outgoing(timeout=2.0, metadata={"tenant": "blue"}) as out:
            await store.put("k", value)
        out.response_metadata

    timeout: seconds for each of the calls, where it is not given `timeout=` itself. metadata: sent with each, besides
    what it is given as `metadata=`, which wins where both have a key. Blocks may be nested; the inner one wins.
    """
    return Outgoing(timeout, metadata)


@contextmanager
def detached() -> Iterator[None]:
    """What is called or started within belongs to no call and no `outgoing`: it inherits no deadline.

    with zcrpc.detached():
        tasks.add(asyncio.create_task(audit(entry)))  # goes on when this call is over
    """
    token = SCOPE.set(None)
    try:
        yield
    finally:
        SCOPE.reset(token)


def settle(
    scope: Served | Outgoing, timeout: float | None, metadata: Metadata | None
) -> tuple[float | None, Metadata | None, Outgoing | None]:
    """Timeout and metadata of a call that is made within a scope, and who wants to know what came back."""
    nearest: Outgoing | None = None
    at: Scope = scope
    while isinstance(at, Outgoing):
        nearest = nearest or at
        if timeout is None:
            timeout = at.timeout
        if at.metadata:
            metadata = {**at.metadata, **(metadata or {})}
        at = at.enclosing
    if at is not None:
        left = context_of(at).deadline
        if left is not None and (timeout is None or left < timeout):
            timeout = left
    return timeout, metadata, nearest
