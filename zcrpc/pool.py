"""The reactor and the region map that the clients of an event loop share."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from zcrpc import forking
from zcrpc.calibration import Receive
from zcrpc.reactor import Reactor, ReactorOptions
from zcrpc.regions import RegionMap


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """What clients of a loop must agree in to share a reactor."""

    locks: str
    receive: Receive
    budget: int
    retain: int
    reactor: ReactorOptions


class Pool:
    """A reactor and the region map that it receives into, shared by the clients of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Options) -> None:
        self.key = loop, options
        self.options = options
        self.users = 0
        self.regions = RegionMap(locks=options.locks, budget=options.budget, retain=options.retain)
        self.reactor = Reactor(loop, self.regions.handle, options.reactor)

    @classmethod
    def join(cls, loop: asyncio.AbstractEventLoop, options: Options) -> Pool:
        """The loop's pool for these options; `leave` it when done."""
        with _pools_lock:
            for abandoned in [pool for pool in _pools.values() if pool.key[0].is_closed()]:
                abandoned.close()
            pool = _pools.get((loop, options))
            if pool is None:
                pool = _pools[loop, options] = cls(loop, options)
            pool.users += 1
            return pool

    def leave(self) -> None:
        """The last one closes it."""
        with _pools_lock:
            self.users -= 1
            if not self.users:
                self.close()

    def close(self) -> None:
        _pools.pop(self.key, None)
        self.reactor.close()
        self.regions.close()


_pools: dict[tuple[asyncio.AbstractEventLoop, Options], Pool] = {}
_pools_lock = threading.Lock()


def _forget() -> None:
    global _pools_lock
    _pools_lock = threading.Lock()  # some thread may have held it
    _pools.clear()


forking.in_child(_forget)
