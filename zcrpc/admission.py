"""Whether a call may begin: some are refused, and those of a peer that does not take its results are put off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from zcrpc.calls import release
from zcrpc.errors import Status
from zcrpc.streams import Receiver
from zcrpc.wire import STREAMS

if TYPE_CHECKING:
    from zcrpc.serving import ServerConnection

_FULL: Final = "{} calls are in flight, the server's limit"

# Method, flags, when its deadline is (0: never), header and payload of a call that is put off; its stream of items.
Postponed = tuple[int, int, float, bytes, bytes | memoryview, Receiver | None]


class Admission:
    """Lets the calls of one connection begin. Contains those that are put off."""

    __slots__ = ("_connection", "_postponed")

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._postponed: dict[int, Postponed] = {}

    def __len__(self) -> int:
        return len(self._postponed)

    def __contains__(self, stream: int) -> bool:
        return stream in self._postponed

    def allows(
        self,
        stream: int,
        method: int,
        deadline_ms: int,
        header: bytes,
        payload: bytes | memoryview,
        flags: int = 0,
        receiver: Receiver | None = None,
    ) -> bool:
        """Refuses a call that is not to be served, and puts off one that is not to be served now."""
        connection, postponed = self._connection, self._postponed
        server, streams = connection.server, connection.streams
        limit = server.max_in_flight
        if (
            not stream
            or stream in connection.calls
            or stream in postponed
            or (streams is not None and receiver is None and stream in streams.receivers)
        ):
            connection.violated(f"a call on stream {stream}, which is in use" if stream else "a call on stream 0")
        elif connection.ended is not None:
            pass  # the peer knows, from the last goaway, that this was not begun
        elif not connection.introduced:
            connection.violated("a call before it was answered with a hello")
        elif server.closing or connection.parting is not None or connection.retiring is not None:
            connection.refuse_call(stream, Status.UNAVAILABLE, connection.retiring or "the server is going away")
        elif not connection.admitted:
            connection.refuse_call(stream, Status.RESOURCE_EXHAUSTED, "the server has too many connections")
        elif len(connection.calls) + len(postponed) >= limit or connection.running >= 2 * limit:
            connection.exhaust(stream, "in_flight", f"{limit} calls are in flight on this connection, its limit")
        elif connection.pinned > server.max_unsent or postponed:
            if server.queued >= server.max_queued:
                connection.exhaust(stream, "queued", f"{server.max_queued} calls wait to be begun, the server's limit")
                return False
            until = connection.reactor.loop.time() + deadline_ms / 1000 if deadline_ms else 0.0
            postponed[stream] = method, flags, until, header, payload, receiver
            server.queued += 1
        elif server.full:
            connection.exhaust(stream, "calls", _FULL.format(server.max_calls))
        else:
            return True
        return False

    def take_back(self, stream: int) -> bool:
        """A call that was put off is not to be served any more. False if there is none."""
        if self._postponed.pop(stream, None) is None:
            return False
        self._connection.server.queued -= 1
        return True

    def drop(self) -> None:
        """Nobody waits any more for what was put off."""
        self._connection.server.queued -= len(self._postponed)
        self._postponed.clear()

    def go_on(self) -> None:
        """Serves what was put off until the peer had taken its results."""
        connection, server = self._connection, self._connection.server
        while self._postponed and connection.pinned <= server.max_unsent:
            stream = next(iter(self._postponed))
            method, flags, until, header, payload, receiver = self._postponed.pop(stream)
            server.queued -= 1
            deadline_ms = 0
            if until:
                deadline_ms = math.ceil((until - connection.reactor.loop.time()) * 1000)
                if deadline_ms <= 0:
                    connection.expired(stream, "the deadline passed before the call was begun")
                    release(receiver, None)
                    continue
            if server.full:
                connection.exhaust(stream, "calls", _FULL.format(server.max_calls))
                release(receiver, None)
                continue
            if flags & STREAMS:
                connection.begin_streams(stream, method, flags, deadline_ms, header, payload, receiver)
                continue
            connection.request_now(stream, method, flags, deadline_ms, header, payload)
        connection.be_careful()
