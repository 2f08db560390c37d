"""Latency for CPU time: an event loop that stays awake while traffic is dense.

To wake a loop that sleeps takes longer than a small call does. See docs/tuning-receive.md for when that matters.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable


class BusyPoll:
    """Keeps an event loop awake for a while after something came, so that what comes next need not wake it.

    It asks again in each turn of the loop, among its other callbacks, and lets the loop sleep after `seconds` without
    an event. It does not begin before two events came as near to each other as that: where they are farther apart,
    staying awake would never have been worth it.
    """

    __slots__ = ("_awake", "_last", "_loop", "_poll", "_seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, poll: Callable[[], object]) -> None:
        """poll: looks for events, and calls `came` if there are any."""
        self._loop = loop
        self._seconds = seconds
        self._poll = poll
        self._last = -math.inf
        self._awake: asyncio.Handle | None = None

    def came(self) -> None:
        """There was an event."""
        now = time.monotonic()
        if self._awake is None and now - self._last <= self._seconds:
            self._awake = self._loop.call_soon(self._again)
        self._last = now

    def _again(self) -> None:
        self._awake = None
        self._poll()
        if self._awake is None and time.monotonic() - self._last <= self._seconds:
            self._awake = self._loop.call_soon(self._again)

    def close(self) -> None:
        """Lets the loop sleep."""
        self._last = -math.inf
        if self._awake is not None:
            self._awake.cancel()
            self._awake = None
