"""Deadlines of many calls behind one timer.

A timer per call is a heap operation each to set and to cancel, for something that hardly ever happens. Here a deadline
is an entry in a set of those that fall into the same 5 ms; the loop's timer is armed for the earliest set alone.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from typing import Protocol

_log = logging.getLogger("zcrpc.deadlines")

TICK_SECONDS = 0.005


class Expiring(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """The deadlines of one event loop's calls. Each is met at most one tick late, and never early."""

    __slots__ = ("_armed", "_loop", "_sets", "_ticks", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sets: dict[int, set[Expiring]] = {}
        self._ticks: list[int] = []  # a heap of the keys of _sets, and of some that are gone
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0

    def __len__(self) -> int:
        return sum(map(len, self._sets.values()))

    def add(self, seconds: float, item: Expiring) -> int:
        """Calls item.expire() `seconds` from now, unless it is discarded before. Returns what `discard` needs."""
        tick = int((self._loop.time() + seconds) / TICK_SECONDS) + 1
        items = self._sets.get(tick)
        if items is None:
            self._sets[tick] = items = set()
            heapq.heappush(self._ticks, tick)
            if not self._is_armed_by(tick):
                self._arm(tick)
        items.add(item)
        return tick

    def discard(self, tick: int, item: Expiring) -> None:
        """The item has no deadline any more. Nothing happens if it has passed."""
        items = self._sets.get(tick)
        if items is None:
            return
        items.discard(item)
        if not items:
            del self._sets[tick]
            if len(self._ticks) > 2 * len(self._sets) + 64:
                self._ticks = sorted(self._sets)

    def close(self) -> None:
        """Forgets all of them."""
        self._sets.clear()
        self._ticks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = tick
        self._timer = self._loop.call_at(tick * TICK_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        # The loop may call a little early, by the resolution of its clock.
        now = int(self._loop.time() / TICK_SECONDS + 0.25)
        while self._ticks and self._ticks[0] <= now:
            for item in self._sets.pop(heapq.heappop(self._ticks), ()):
                try:
                    item.expire()
                except Exception:
                    _log.exception("a deadline could not be enforced")
        while self._ticks and self._ticks[0] not in self._sets:
            heapq.heappop(self._ticks)
        if self._ticks and not self._is_armed_by(self._ticks[0]):
            self._arm(self._ticks[0])

    def _is_armed_by(self, tick: int) -> bool:
        return self._timer is not None and self._armed <= tick
