"""Connections on which nothing happens: is the peer still there, and is the connection still needed?

*Keepalive*: when nothing came from the peer for a while it is sent a ping; if nothing comes then either, it is gone.
This notices processes that hang and middleboxes that forgot the connection, at the price of taking a process that is
merely busy for one that hangs, so it is off by default. Hosts that are gone are noticed anyway, by their kernel's
silence (`sockets.watch_over`).

*Idle*: a connection on which no call was made for a while is closed in good order.

Both are looked at by one entry among the reactor's deadlines, and cost a call nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

# An idle connection is closed this part of the timeout late at most.
_LATE: Final = 1 / 8
# The reactor's clock has steps of up to 10 ms, the deadlines of 5.
_SLACK_SECONDS: Final = 0.02


@dataclass(slots=True, frozen=True, kw_only=True)
class Watching:
    """Seconds. keepalive: of silence before a ping; None: none are sent. keepalive_timeout: that an answer may take.
    idle_timeout: without a call before the connection is closed; None: never."""

    keepalive: float | None = None
    keepalive_timeout: float = 20.0
    idle_timeout: float | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("keepalive", self.keepalive),
            ("keepalive_timeout", self.keepalive_timeout),
            ("idle_timeout", self.idle_timeout),
        ):
            if value is not None and not 0.01 <= value <= 1e6:
                raise ValueError(f"{name}={value:g}: must be between 0.01 and 1e+06 seconds")


class Watched(Protocol):
    """What a connection tells a `Watch`, and is told."""

    def silence(self) -> float:
        """Seconds since anything came from the peer; 0 while it is not read."""

    def take_calls(self) -> bool:
        """Whether there was a call since this was asked last, or is one in flight."""

    def probe(self) -> None:
        """Sends a ping."""

    def silent(self, seconds: float) -> None:
        """The peer is gone."""

    def unused(self, seconds: float) -> None:
        """No call was made for so long."""

    def watch(self, seconds: float, item: Watch) -> int:
        """Calls item.expire() later; returns what `unwatch` takes."""

    def unwatch(self, tick: int, item: Watch) -> None:
        """Not any more."""


class Watch:
    """Looks after one connection until it is stopped."""

    __slots__ = ("_connection", "_doubted", "_idle_for", "_limits", "_slept", "_tick", "_unanswered")

    def __init__(self, connection: Watched, limits: Watching) -> None:
        self._connection = connection
        self._limits = limits
        self._unanswered: float | None = None  # seconds since a ping that was not answered
        self._doubted = False
        self._idle_for = 0.0
        self._slept = 0.0
        self._tick = 0
        if limits.keepalive is not None or limits.idle_timeout is not None:
            self._sleep(self._first())

    def _first(self) -> float:
        waits = [self._limits.keepalive, self._idle_step()]
        return min(wait for wait in waits if wait is not None)

    def _idle_step(self) -> float | None:
        return None if self._limits.idle_timeout is None else self._limits.idle_timeout * _LATE

    def _sleep(self, seconds: float) -> None:
        self._slept = seconds
        self._tick = self._connection.watch(seconds, self)

    def stop(self) -> None:
        """The connection is closed."""
        if self._tick:
            self._connection.unwatch(self._tick, self)
            self._tick = 0

    def answered(self) -> None:
        """The answer to a ping has come."""
        self._unanswered = None

    def expire(self) -> None:
        """Looks, and decides when to look again."""
        self._tick = 0
        idle = self._look_idle()
        alive = None if idle is None else self._look_alive()
        if idle is not None and alive is not None:
            self._sleep(min(idle, alive))

    def _look_idle(self) -> float | None:
        """Seconds until the next look; None: closed."""
        limit = self._limits.idle_timeout
        if limit is None:
            return 1e6
        self._idle_for = 0.0 if self._connection.take_calls() else self._idle_for + self._slept
        if self._idle_for >= limit:
            self._connection.unused(limit)
            return None
        return min(limit * _LATE, limit - self._idle_for)

    def _look_alive(self) -> float | None:
        """The same."""
        keepalive = self._limits.keepalive
        if keepalive is None:
            return 1e6
        silence = self._connection.silence()
        if self._unanswered is not None:
            self._unanswered += self._slept
            if silence >= self._unanswered - _SLACK_SECONDS:
                return self._wait_on(silence)
            self._unanswered = None
        if silence < keepalive - _SLACK_SECONDS:
            return max(keepalive - silence, _SLACK_SECONDS)
        self._unanswered, self._doubted = 0.0, False
        self._connection.probe()
        return self._limits.keepalive_timeout

    def _wait_on(self, silence: float) -> float | None:
        assert self._unanswered is not None
        left = self._limits.keepalive_timeout - self._unanswered
        if left > _SLACK_SECONDS:
            return left
        if not self._doubted:  # it may have been us who did not look: the loop reads before this comes again
            self._doubted = True
            return _SLACK_SECONDS
        self._connection.silent(silence)
        return None
