"""Calls by method: how many, how they ended, how long they took.

It costs about as much as an interceptor does, so nothing is measured until somebody wants to know: `Server.measure`,
`zcrpc top`, `zcrpc.prometheus`. Meanwhile handlers are called as they are.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from zcrpc.errors import Status, failure
from zcrpc.interceptors import IncomingCall, Proceed

BOUNDS: Final = (*(round(step * 10.0**power, 6) for power in range(-5, 1) for step in (1, 2.5, 5)), 10.0)
"""Upper bounds of the histogram's buckets in seconds, from 10 µs to 10 s; one more bucket is for all above."""


def outcome(call: IncomingCall, error: BaseException) -> Status:
    """The status that the caller of a call gets which ended with an error."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return Status.DEADLINE_EXCEEDED if call.deadline == 0.0 else Status.CANCELLED
    return failure(error)[0]


class Counters:
    """The calls of one method. `statuses`: how many ended with which; `seconds`: of all of them; `buckets`: how many
    took how long, see `BOUNDS`; `active`: now."""

    __slots__ = ("active", "buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.active = 0
        self.statuses: dict[Status, int] = {}
        self.seconds = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)

    def ended(self, status: Status, seconds: float) -> None:
        self.active -= 1
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1


class Meter:
    """The counters of a server, filled by an interceptor. switch: called with True when somebody begins to want them,
    with False when nobody does any more."""

    def __init__(self, switch: Callable[[bool], None]) -> None:
        self.methods: dict[str, Counters] = {}
        self._switch = switch
        self._users = 0

    def begin(self) -> None:
        """Somebody wants to know."""
        self._users += 1
        if self._users == 1:
            self._switch(True)

    def end(self) -> None:
        """Somebody has seen enough. What was counted stays."""
        self._users -= 1
        if not self._users:
            self._switch(False)

    @property
    def measures(self) -> bool:
        return self._users > 0

    async def intercept(self, call: IncomingCall, proceed: Proceed) -> Any:
        """The outermost interceptor of a server that measures."""
        counters = self.methods.get(call.method)
        if counters is None:
            counters = self.methods[call.method] = Counters()
        counters.active += 1
        begun = time.perf_counter()
        try:
            result = await proceed(call)
        except BaseException as error:
            counters.ended(outcome(call, error), time.perf_counter() - begun)
            raise
        if call.kind in ("server-stream", "bidi-stream"):
            return _until_the_end(result, call, counters, begun)
        counters.ended(Status.OK, time.perf_counter() - begun)
        return result


async def _until_the_end(items: Any, call: IncomingCall, counters: Counters, begun: float) -> AsyncIterator[Any]:
    status = Status.OK
    try:
        async for item in items:
            yield item
    except BaseException as error:
        status = outcome(call, error)
        raise
    finally:
        counters.ended(status, time.perf_counter() - begun)
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


def quantile(buckets: list[int], share: float) -> float:
    """Seconds that `share` of the calls took at most, from a histogram: between a bucket's bounds calls are taken to be
    spread evenly. NaN if there were none; the last bound for those above it."""
    wanted = share * sum(buckets)
    if not wanted:
        return float("nan")
    seen, low = 0, 0.0
    for count, bound in zip(buckets, BOUNDS, strict=False):
        if count and seen + count >= wanted:
            return low + (bound - low) * (wanted - seen) / count
        seen, low = seen + count, bound
    return BOUNDS[-1]
