"""Lock strategies as programs over cache lines: what each operation touches, in the order of native/lock/*.c.

A program's state changes right after the yield of the RMW that stands for the change. `read_lock` returns how the
region is held; `read_unlock` gets that back and returns whether the section stands: only a speculative one may not, and
is then done again. A writer changes one region; everybody else's are untouched.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from zcrpc.lab.simulate.engine import LOAD, LOAD_RMW, RMW, WAIT, Machine, Thread

Steps = Generator[tuple[int, Any], None, None]
LockSteps = Generator[tuple[int, Any], None, str]
UnlockSteps = Generator[tuple[int, Any], None, bool]


class Lock:
    """What a strategy is here. `fallbacks` counts reads that took the map lock because the cheap way did not do."""

    name = ""

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        self.fallbacks = 0

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        raise NotImplementedError

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        raise NotImplementedError

    def write_lock(self, thread: Thread, region: int) -> Steps:
        raise NotImplementedError

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        raise NotImplementedError


class FairRwlock:
    """native/lock/fair_rwlock.h: requests and completions on one line, one blind RMW in and one out."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.line = machine.line(name)
        self._requested = [0, 0]  # readers, writers
        self._completed = [0, 0]

    def read_lock(self) -> Steps:
        yield RMW, self.line
        ticket = self._requested[1]
        self._requested[0] += 1
        yield WAIT, (self.line, lambda: self._completed[1] == ticket)

    def read_unlock(self) -> Steps:
        yield RMW, self.line
        self._completed[0] += 1

    def write_lock(self) -> Steps:
        yield RMW, self.line
        ticket = list(self._requested)
        self._requested[1] += 1
        yield WAIT, (self.line, lambda: self._completed == ticket)

    def write_unlock(self) -> Steps:
        yield RMW, self.line
        self._completed[1] += 1


class Global(Lock):
    """native/lock/global.c"""

    name = "global"

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._lock = FairRwlock(machine, "map.lock")

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        yield from self._lock.read_lock()
        return "map"

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        yield from self._lock.read_unlock()
        return True

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield from self._lock.write_lock()

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield from self._lock.write_unlock()


class GlobalMutex(Lock):
    """Everybody excludes everybody: first come, first served."""

    name = "global-mutex"

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._line = machine.line("map.mutex")
        self._next = self._serving = 0

    def _lock(self) -> Steps:
        yield RMW, self._line
        ticket = self._next
        self._next += 1
        yield WAIT, (self._line, lambda: self._serving == ticket)

    def _unlock(self) -> Steps:
        yield RMW, self._line
        self._serving += 1

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        yield from self._lock()
        return "map"

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        yield from self._unlock()
        return True

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield from self._lock()

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield from self._unlock()


class GlobalPthread(Lock):
    """glibc's rwlock: one central word, looked at before each RMW; readers overtake waiting writers, who may starve."""

    name = "global-pthread"

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._line = machine.line("map.rwlock")
        self._readers = 0
        self._writing = False

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        yield LOAD_RMW, self._line
        while self._writing:
            yield WAIT, (self._line, lambda: not self._writing)
            yield LOAD_RMW, self._line
        self._readers += 1
        return "map"

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        yield LOAD_RMW, self._line
        self._readers -= 1
        return True

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield LOAD_RMW, self._line
        while self._writing or self._readers:
            yield WAIT, (self._line, lambda: not self._writing and not self._readers)
            yield LOAD_RMW, self._line
        self._writing = True

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield LOAD_RMW, self._line
        self._writing = False


class PerRegion(Lock):
    """native/lock/per_region.c: two loads of map.seq around one RMW of the region, whose stamp and count are looked at
    first, and a blind one to put it; the map lock when the region is write-locked."""

    name = "per-region"

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._map = FairRwlock(machine, "map.lock")
        self._seq = machine.line("map.seq")
        self._regions = [machine.line(f"region {number}") for number in range(regions)]
        self._refs = [0] * regions
        self._stamped = -1  # the region that is write-locked

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        yield LOAD, self._seq
        if self._stamped != region:
            yield LOAD_RMW, self._regions[region]
            self._refs[region] += 1
            yield LOAD, self._seq
            if self._stamped != region:
                return "region"
            yield RMW, self._regions[region]
            self._refs[region] -= 1
        self.fallbacks += 1
        yield from self._map.read_lock()
        return "map"

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        if mode == "map":
            yield from self._map.read_unlock()
        else:
            yield RMW, self._regions[region]
            self._refs[region] -= 1
        return True

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield from self._map.write_lock()
        yield RMW, self._seq
        yield RMW, self._regions[region]
        self._stamped = region  # the flag that keeps new readers out; the stamp takes over from it
        yield WAIT, (self._regions[region], lambda: self._refs[region] == 0)
        yield RMW, self._regions[region]

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield RMW, self._seq
        self._stamped = -1
        yield from self._map.write_unlock()


class Speculative(Lock):
    """A sequence count over the whole map, no store by readers: the section stands if no writer was inside meanwhile.
    After ATTEMPTS failures, or if one is inside already, the map lock."""

    name = "speculative"
    ATTEMPTS = 3

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._map = FairRwlock(machine, "map.lock")
        self._line = machine.line("map.seq")
        self._seq = 0
        self._began = [0] * threads
        self._failed = [0] * threads

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        yield LOAD, self._line
        if self._seq % 2 == 0 and self._failed[thread.index] < self.ATTEMPTS:
            self._began[thread.index] = self._seq
            return "nothing"
        self.fallbacks += 1
        yield from self._map.read_lock()
        return "map"

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        if mode == "map":
            yield from self._map.read_unlock()
            self._failed[thread.index] = 0
            return True
        yield LOAD, self._line
        stands = self._seq == self._began[thread.index]
        self._failed[thread.index] = 0 if stands else self._failed[thread.index] + 1
        return stands

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield from self._map.write_lock()
        yield RMW, self._line
        self._seq += 1

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield RMW, self._line
        self._seq += 1
        yield from self._map.write_unlock()


class BigReader(Lock):
    """Each reader marks a line of its own, then looks at the writer's; the writer visits all of them."""

    name = "global-big-reader"

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._writers = FairRwlock(machine, "writers")  # among themselves
        self._flag = machine.line("writer inside")
        self._marks = [machine.line(f"mark {number}") for number in range(threads)]
        self._marked = [False] * threads
        self._closed = False

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        mark, number = self._marks[thread.index], thread.index
        while True:
            yield RMW, mark
            self._marked[number] = True
            yield LOAD, self._flag
            if not self._closed:
                return "mark"
            yield RMW, mark
            self._marked[number] = False
            yield WAIT, (self._flag, lambda: not self._closed)

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        yield RMW, self._marks[thread.index]
        self._marked[thread.index] = False
        return True

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield from self._writers.write_lock()
        yield RMW, self._flag
        self._closed = True
        yield from visit(self._marks, self._marked)

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield RMW, self._flag
        self._closed = False
        yield from self._writers.write_unlock()


class Bravo(Lock):
    """While biased, a reader only marks its slot of a table; a writer revokes the bias, scans the table, and forbids a
    new bias for 9 times as long as that took (ATC '19). Below it the fair lock. Here no two threads share a slot."""

    name = "global-bravo"
    INHIBIT = 9

    def __init__(self, machine: Machine, threads: int, regions: int) -> None:
        super().__init__(machine, threads, regions)
        self._machine = machine
        self._below = FairRwlock(machine, "map.lock")
        self._bias = machine.line("bias")
        self._slots = [machine.line(f"slot {number}") for number in range(threads)]
        self._taken = [False] * threads
        self._biased = True
        self._inhibited_until = 0.0

    def _is_biased(self) -> bool:
        return self._biased

    def read_lock(self, thread: Thread, region: int) -> LockSteps:
        slot, number = self._slots[thread.index], thread.index
        yield LOAD, self._bias
        if self._is_biased():
            yield RMW, slot
            self._taken[number] = True
            yield LOAD, self._bias
            if self._is_biased():
                return "slot"
            yield RMW, slot
            self._taken[number] = False
        self.fallbacks += 1
        yield from self._below.read_lock()
        if not self._is_biased() and self._machine.now >= self._inhibited_until:
            yield RMW, self._bias
            self._biased = True
        return "map"

    def read_unlock(self, thread: Thread, region: int, mode: str) -> UnlockSteps:
        if mode == "map":
            yield from self._below.read_unlock()
        else:
            yield RMW, self._slots[thread.index]
            self._taken[thread.index] = False
        return True

    def write_lock(self, thread: Thread, region: int) -> Steps:
        yield from self._below.write_lock()
        if self._biased:
            began = self._machine.now
            yield RMW, self._bias
            self._biased = False
            yield from visit(self._slots, self._taken)
            self._inhibited_until = self._machine.now + self.INHIBIT * (self._machine.now - began)

    def write_unlock(self, thread: Thread, region: int) -> Steps:
        yield from self._below.write_unlock()


def visit(lines: list[Any], taken: list[bool]) -> Steps:
    """A writer looks at every reader's line, and waits at those that are taken."""
    for number, line in enumerate(lines):
        yield WAIT, (line, lambda number=number: not taken[number])


LOCKS: dict[str, type[Lock]] = {
    lock.name: lock for lock in (Global, GlobalMutex, GlobalPthread, PerRegion, Speculative, BigReader, Bravo)
}


def find(name: str) -> type[Lock]:
    """Raises `ValueError`, which lists those there are."""
    if name not in LOCKS:
        raise ValueError(f"no program for lock strategy {name}; there are {', '.join(LOCKS)}")
    return LOCKS[name]
