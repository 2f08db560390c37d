"""A server's statistics as a service, for `zcrpc top` and whoever else wants to look at a running server."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from zcrpc.errors import InvalidArgument
from zcrpc.metering import BOUNDS, Meter
from zcrpc.regions import LockCounters
from zcrpc.service import Service, method

if TYPE_CHECKING:
    from zcrpc.server import Server

_SHORTEST: Final = 0.05
_LONGEST: Final = 3600.0


@dataclass(slots=True, frozen=True, kw_only=True)
class LockStats(LockCounters):
    """The counters of the region map's lock strategy, and its name."""

    strategy: str


class MethodStats(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a method while it was measured. `statuses`: how many ended with which. `seconds`: of all of them
    together. `buckets`: how many took how long, by `Snapshot.bounds` and above the last. `active`: now."""

    active: int
    statuses: dict[str, int]
    seconds: float
    buckets: list[int]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A server at one moment. `when`: seconds by its monotonic clock, for rates between two snapshots of one server.
    `uptime`: seconds. `counters` and `fallbacks`, `exhausted`: those of `zcrpc.Stats`. `methods`: as far as they were
    measured; `measures`: whether they are now. `bounds`: of their histograms' buckets, in seconds."""

    pid: int
    when: float
    uptime: float
    counters: dict[str, float]
    fallbacks: dict[str, int]
    exhausted: dict[str, int]
    lock: LockStats
    measures: bool
    bounds: list[float]
    methods: dict[str, MethodStats]


class Statistics(Service, name="zcrpc.Stats"):
    """What the server does and has done. Every `zcrpc.Server` has it, unless it is made with introspection=False."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._begun = time.monotonic()
        self._gone = asyncio.Event()

    def drain(self) -> None:
        """The server goes away: those that watch are not to hold it up."""
        self._gone.set()

    @method
    async def snapshot(self) -> Snapshot:
        """The server now."""
        return self._snapshot()

    @method
    async def watch(self, interval: float = 1.0) -> AsyncIterator[Snapshot]:
        """The server now, and again every `interval` seconds, 0.05 to 3600. Meanwhile its methods are measured. Ends
        when the server goes away."""
        if not _SHORTEST <= interval <= _LONGEST:
            raise InvalidArgument(f"interval={interval:g}: must be between {_SHORTEST:g} and {_LONGEST:g} seconds")
        meter = self._server.meter
        meter.begin()
        try:
            while True:
                yield self._snapshot()
                try:
                    async with asyncio.timeout(interval):
                        await self._gone.wait()
                    return
                except TimeoutError:
                    pass
        finally:
            meter.end()

    def _snapshot(self) -> Snapshot:
        stats, now = self._server.stats(), time.monotonic()
        counters = {
            field.name: value
            for field in dataclasses.fields(stats)
            if isinstance(value := getattr(stats, field.name), (int, float))
        }
        meter: Meter = self._server.meter
        return Snapshot(
            pid=os.getpid(),
            when=now,
            uptime=now - self._begun,
            counters=counters,
            fallbacks=stats.fallbacks,
            exhausted=stats.exhausted,
            lock=LockStats(strategy=self._server.regions.locks, **dataclasses.asdict(stats.lock)),
            measures=meter.measures,
            bounds=list(BOUNDS),
            methods={
                name: MethodStats(
                    active=each.active,
                    statuses={status.name: count for status, count in each.statuses.items()},
                    seconds=each.seconds,
                    buckets=list(each.buckets),
                )
                for name, each in meter.methods.items()
            },
        )
