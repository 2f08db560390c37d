"""Calls whose handlers have suspended, and how those end: with a result, by their deadline, because nobody waits."""

from __future__ import annotations

from collections.abc import Iterable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from zcrpc.context import PLAN, STOPPED, Served
from zcrpc.eager import Suspended
from zcrpc.errors import Internal
from zcrpc.streams import Receiver, Sender

if TYPE_CHECKING:
    from zcrpc.serving import ServerConnection


class Call:
    """A call whose handler has suspended."""

    __slots__ = ("answered", "connection", "served", "stream", "suspended", "tick")

    def __init__(self, connection: ServerConnection, stream: int, served: Served, suspended: Suspended) -> None:
        self.connection = connection
        self.stream = stream
        self.served = served
        self.suspended = suspended
        self.tick = 0
        self.answered = False

    @property
    def method(self) -> str:
        name: str = self.served[PLAN].name
        return name

    def expire(self) -> None:
        """Its deadline has passed: answered at once, whatever the handler makes of being cancelled."""
        self.tick = 0
        self.stop()
        self.connection.expired(self.stream, f"{self.method}: the deadline passed before it was done")

    def stop(self) -> None:
        """Cancels the handler; nobody waits for its answer any more."""
        self.answered = self.served[STOPPED] = True
        self.connection.calls.pop(self.stream, None)
        self.suspended.cancel()

    def finish(self, result: Any, error: BaseException | None) -> None:
        """The handler is done."""
        connection = self.connection
        connection.running -= 1
        connection.be_careful()
        if self.tick:
            connection.reactor.deadlines.discard(self.tick, self)
        if not self.answered:
            connection.calls.pop(self.stream, None)
            if error is None:
                connection.reply(self.stream, self.served, result)
            else:
                connection.fail_with(self.stream, error, self.served)
        connection.server.call_done()


class StreamCall(Call):
    """A call with streams whose handler has suspended."""

    __slots__ = ("receiver", "sender")

    receiver: Receiver | None
    sender: Sender | None

    def stop(self) -> None:
        release(self.receiver, self.sender)
        super().stop()

    def finish(self, result: Any, error: BaseException | None) -> None:
        super().finish(result, error)
        release(self.receiver, self.sender)


def release(receiver: Receiver | None, sender: Sender | None) -> None:
    """A call is over: nobody consumes its items any more, and none are sent."""
    if receiver is not None:
        receiver.discard()
    if sender is not None:
        sender.close()


async def produce(result: Any, sender: Sender) -> None:
    """Sends what the handler of a stream returned."""
    if isinstance(result, CoroutineType):
        result = await result
    if not isinstance(result, Iterable) and not hasattr(result, "__aiter__"):
        raise Internal(f"{sender.name}() returned no stream but {type(result).__name__}")
    await sender.drive(result)
