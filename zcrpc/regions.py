"""The region map by itself: regions of an arena, and the lock strategy that keeps readers and writers of them apart.

A server makes one for its receives; this is the same thing for a laboratory, or to see how it behaves.

    with RegionMap(locks="global", budget=64 << 20) as regions:
        region = regions.attach(1 << 20)
        with regions.read(region.start) as found: ...      # found == region, and it stays where it is
        with regions.write(region): ...                    # nobody is inside

Any thread may use a map. A thread holds one lock of a map at a time: what would wait for itself raises instead.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOENT, ENOMEM
from types import TracebackType
from typing import Any, Final, Literal, Self

from zcrpc import locks as strategies
from zcrpc._native import check, ffi, lib
from zcrpc.counting import counted, counter, gauge
from zcrpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from zcrpc.forking import MESSAGE, remember

DEFAULT_BUDGET: Final = 1 << 30
"""Bytes of regions at most. Address space is reserved, memory is not."""

DEFAULT_RETAIN: Final = 16 << 20
"""Bytes of idle regions kept warm: one payload of 16 MiB, or eight regions of small ones."""


class NoRegion(NotFound, LookupError):
    """There is no region at that address (any more)."""


class Misuse(FailedPrecondition, RuntimeError):
    """The call would have waited for a lock that the calling thread holds itself, or the map is closed."""


@dataclass(frozen=True, slots=True)
class Region:
    """A range of the arena, [start, end) in bytes of address, in whole units of 2 MiB.

    `mapped`: pages of TCP connections are mapped into it, and it is read-only; otherwise it is ordinary memory.
    """

    start: int
    end: int
    mapped: bool

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class LockCounters:
    """What a map's lock strategy has counted, over all threads."""

    read_locks: int = counter("Regions found and held.")
    fallbacks: int = counter("Regions held through the map lock because their own did not do.")
    retries: int = counter("Regions looked up again because they changed underneath.")
    misses: int = counter("Looked for a region where there is none.")
    write_locks: int = counter("Write locks of the region map.")
    waits: int = counter("Times that a reader or a writer had to wait for another thread.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MapStats:
    """A region map now, and since it was made. Bytes are bytes."""

    regions: int = gauge("Regions that are attached, idle ones included.")
    arena_bytes: int = gauge("Bytes of regions.")
    idle_bytes: int = gauge("Bytes of regions that are kept warm for the next payloads.")
    leases: int = gauge("Payloads that are held.")
    leased_bytes: int = gauge("Bytes of payloads that are held, in whole pages.")
    recycles: int = counter("Regions emptied under their write lock.")
    attaches: int = counter("Regions attached.")
    detaches: int = counter("Regions detached.")
    budget_refusals: int = counter("Reservations that had to wait because the memory budget was used up.")
    lock: LockCounters = LockCounters()


class _Actor:
    """What a thread needs to use a map, and what it holds of it. Freed with its thread, or by `close`."""

    __slots__ = ("__weakref__", "free", "guard", "holds", "native")

    def __init__(self, handle: Any) -> None:
        self.native = lib.zc_actor_create(handle)
        if self.native == ffi.NULL:
            raise MemoryError("an actor of a region map")
        lib.zc_map_hold(handle)
        self.free = weakref.finalize(self, _free_actor, handle, self.native)
        self.free.atexit = False
        self.guard = ffi.new("struct zc_guard *")
        self.holds: Literal["", "read", "write"] = ""


def _free_actor(handle: Any, native: Any) -> None:
    lib.zc_actor_destroy(handle, native)
    lib.zc_map_drop(handle)


class RegionMap:
    """An arena, the regions in it, and a lock strategy.

    locks: name of the strategy; see `zcrpc.locks.names()`.
    budget: bytes of regions at most, in use or idle, rounded up to 2 MiB.
    retain: bytes of idle regions kept warm for later payloads; more is given back to the system.

    Raises UnknownStrategy, InvalidArgument for sizes that make no sense, MemoryError.
    """

    def __init__(
        self, locks: str = "per-region", *, budget: int = DEFAULT_BUDGET, retain: int = DEFAULT_RETAIN
    ) -> None:
        strategy = strategies.find_native(locks)
        if not 0 < budget < 1 << 64 or not 0 <= retain < 1 << 64:
            raise InvalidArgument(f"a region map needs a budget above 0 and no negative retain, not {budget}, {retain}")
        options = ffi.new("struct zc_map_options *", {"budget": budget, "retain": retain})
        out = ffi.new("struct zc_map **")
        check(lib.zc_map_create(strategy, options, out), "creating a region map")
        self.locks = locks
        self.handle = out[0]
        """The core's `struct zc_map *`; NULL once closed."""
        self._drop = weakref.finalize(self, lib.zc_map_drop, self.handle)
        self._drop.atexit = False  # native threads may still be using it
        self._thread = threading.local()
        self._actors: weakref.WeakSet[_Actor] = weakref.WeakSet()
        self._last: MapStats | None = None
        self._writing = threading.Lock()  # before the map lock; guards what follows
        self._attached: dict[Region, Any] = {}
        self._forked = False
        remember(self)

    # ---- regions

    def attach(self, length: int, *, mapped: bool = False) -> Region:
        """A new region of at least `length` bytes, empty. A write to the map.

        Raises InvalidArgument for a length below 1, ResourceExhausted where the budget or the system does not allow
        it, OSError where this kernel cannot map sockets, Misuse inside `read` or `write`.
        """
        if not 0 < length < 1 << 64:
            raise InvalidArgument(f"a region cannot have {length} bytes")
        actor = self._idle_actor("attach a region")
        out = ffi.new("struct zc_region **")
        memory = lib.ZC_MAPPED if mapped else lib.ZC_COPIED
        with self._writing:
            code = lib.zc_region_attach(self.handle, actor.native, memory, length, out)
            if code == -ENOMEM:
                raise ResourceExhausted(f"no memory for a region of {length} bytes within the budget")
            check(code, "attaching a region")
            region = _describe(out[0])
            self._attached[region] = out[0]
        return region

    def detach(self, region: Region) -> None:
        """Gives a region up, with its memory, once nobody is inside. A write to the map. Raises NoRegion, Misuse."""
        actor = self._idle_actor("detach a region")
        with self._writing:
            check(lib.zc_region_detach(self.handle, actor.native, self._native(region)), f"detaching {region}")
            del self._attached[region]

    def recycle(self, region: Region) -> None:
        """Gives a region's pages back to the system and keeps it. A write to the map. Raises NoRegion, Misuse."""
        actor = self._idle_actor("recycle a region")
        with self._writing:
            check(lib.zc_region_recycle(self.handle, actor.native, self._native(region)), f"recycling {region}")

    # ---- locks

    @contextmanager
    def read(self, address: int) -> Iterator[Region]:
        """Finds the region at an address and holds it: it stays where it is until the block ends.

        Raises NoRegion; Misuse inside `read` or `write` of the same thread. To be left by the thread that entered.
        """
        actor = self._idle_actor("read")
        code = -ENOENT
        if 0 <= address < 1 << 64:
            code = lib.zc_map_read_lock(self.handle, actor.native, address, actor.guard)
        if code == -ENOENT:
            raise NoRegion(f"there is no region at {address:#x}")
        check(code, "reading a region")
        actor.holds = "read"
        try:
            yield _describe(actor.guard.region)
        finally:
            lib.zc_map_read_unlock(self.handle, actor.native, actor.guard)
            actor.holds = ""

    @contextmanager
    def write(self, *regions: Region) -> Iterator[None]:
        """Takes the map lock in write mode, and write-locks these regions: nobody is inside them until the block ends.

        Raises NoRegion; Misuse inside `read` or `write` of the same thread. To be left by the thread that entered.
        """
        actor = self._idle_actor("write")
        with self._writing:
            natives = [self._native(region) for region in regions]
            lib.zc_map_write_lock(self.handle, actor.native)
            actor.holds = "write"
            try:
                for native in natives:
                    lib.zc_map_write_lock_region(self.handle, actor.native, native)
                yield
            finally:
                lib.zc_map_write_unlock(self.handle, actor.native)
                actor.holds = ""

    # ---- the map

    def stats(self) -> MapStats:
        """The map's gauges and counters; of a closed map, as they were when it was closed."""
        if self._last is not None:
            return self._last
        native = ffi.new("struct zc_map_stats *")
        lib.zc_map_stats(self.handle, native)
        lock = LockCounters(**{name: getattr(native.lock, name) for name, _, _ in counted(LockCounters)})
        return MapStats(lock=lock, **{name: getattr(native, name) for name, _, _ in counted(MapStats)})

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self.handle == ffi.NULL)

    def close(self) -> None:
        """Lets the map go. Its memory stays as long as a payload holds some of it. Raises Misuse while a thread is
        inside `read` or `write`. Closing twice does nothing."""
        if self.closed:
            return
        actors = list(self._actors)
        if any(actor.holds for actor in actors):
            raise Misuse("a thread still holds a lock of this region map")
        self._last = self.stats()
        self.handle = ffi.NULL
        self._attached.clear()
        for actor in actors:
            actor.free()
        self._drop()

    def abandon(self) -> None:
        """This process was forked from the map's. See `zcrpc.forking`."""
        self._forked = True
        if self.closed:
            return
        lib.zc_map_abandon(self.handle)
        self.handle = ffi.NULL
        self._drop.detach()
        for actor in self._actors:
            actor.free.detach()
        lock = LockCounters(**dict.fromkeys(LockCounters.__slots__, 0))
        self._last = MapStats(lock=lock, **{name: 0 for name in MapStats.__slots__ if name != "lock"})

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._forked:
            raise Misuse(f"this region map {MESSAGE}")
        if self.closed:
            raise Misuse("this region map is closed")

    def _native(self, region: Region) -> Any:
        native = self._attached.get(region)
        if native is None:
            raise NoRegion(f"{region} is not attached to this region map")
        return native

    def _idle_actor(self, to: str) -> _Actor:
        """The calling thread's actor, if it holds nothing."""
        self._check_open()
        actor: _Actor | None = getattr(self._thread, "actor", None)
        if actor is None:
            actor = self._thread.actor = _Actor(self.handle)
            self._actors.add(actor)
        if actor.holds:
            raise Misuse(f"cannot {to} while this thread holds a {actor.holds} lock of the same region map")
        return actor


def _describe(native: Any) -> Region:
    mapped = lib.zc_region_memory(native) == lib.ZC_MAPPED
    return Region(lib.zc_region_start(native), lib.zc_region_end(native), mapped)
