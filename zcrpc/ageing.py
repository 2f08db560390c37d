"""Connections that grow old: after some time a server asks for another one, which gRPC calls max_connection_age.

So the load of clients that stay for days spreads to servers that were added, behind a load balancer or a name too, and
who a client is gets looked at again. The client hears a goaway and makes another connection for its next calls; those
in flight finish; what crossed the goaway is refused unseen, and the client makes it again. No call is lost.

Looked at by an entry among the reactor's deadlines; costs a call nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Protocol

# Of the age, either way, as in gRPC: connections that were made together are not all made again together.
_JITTER: Final = 0.1
# How often a connection that is to go is asked whether its last call has ended.
_LOOK_SECONDS: Final = 0.05


@dataclass(slots=True, frozen=True, kw_only=True)
class Ageing:
    """Seconds. age: of a connection that takes no more calls; None: none is too old. grace: for calls in flight then,
    before they are cancelled; None: as long as they take."""

    age: float | None = None
    grace: float | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_connection_age", self.age, 0.01),
            ("max_connection_age_grace", self.grace, 0.0),
        ):
            if value is not None and not least <= value <= 1e8:
                raise ValueError(f"{name}={value:g}: must be between {least:g} and 1e+08 seconds")


class Old(Protocol):
    """What a connection tells an `Age`, and is told."""

    def retire(self, why: str) -> None:
        """Asks for no more calls, and takes none."""

    def is_done(self) -> bool:
        """Whether no call is in flight any more."""

    def part(self, why: str) -> None:
        """Closes in good order."""

    def cancel_calls(self, why: str) -> None:
        """Ends all that are in flight."""

    def watch(self, seconds: float, item: Age) -> int:
        """Calls item.expire() later; returns what `unwatch` takes."""

    def unwatch(self, tick: int, item: Age) -> None:
        """Not any more."""


class Age:
    """The age of one connection, until it is stopped."""

    __slots__ = ("_connection", "_left", "_retired", "_tick", "_why")

    def __init__(self, connection: Old, limits: Ageing) -> None:
        self._connection = connection
        assert limits.age is not None
        self._left = limits.grace
        self._retired = False
        self._why = f"the connection has reached its age of {limits.age:g} s"
        self._tick = connection.watch(limits.age * random.uniform(1 - _JITTER, 1 + _JITTER), self)

    def stop(self) -> None:
        """The connection is closed."""
        if self._tick:
            self._connection.unwatch(self._tick, self)
            self._tick = 0

    def expire(self) -> None:
        """It is old enough, or was, and may be done now."""
        self._tick = 0
        connection = self._connection
        if not self._retired:
            self._retired = True
            connection.retire(self._why)
        elif self._left is not None:
            self._left -= _LOOK_SECONDS
        if self._left is not None and self._left <= 0 and not connection.is_done():
            connection.cancel_calls(self._why)
        if connection.is_done():
            connection.part(self._why)
        else:
            self._tick = connection.watch(_LOOK_SECONDS, self)
