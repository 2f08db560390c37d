"""Cache lines, the threads that want them, and time.

A thread is a generator that yields what it does next and is resumed at the moment that this is done:

    (WORK, ns)          compute
    (RMW, line)         a blind read-modify-write; the line is owned when the generator goes on
    (LOAD_RMW, line)    the same, having looked at the line first
    (LOAD, line)        the line is shared when the generator goes on
    (WAIT, (line, may)) as LOAD, but not before `may()` is true; asked again whenever the line was changed

What a generator does between two yields is atomic, so it changes the lock's state right after the yield of the RMW
that stands for it. Lines serve their queue first come, first served, except that an owner may do up to `b` RMWs before
it has to let go, as long as each comes within LINGER_NS of the one before. Loads side by side are served together.
Waiting costs nothing but the load at its end: neither the traffic of those that spin nor the kernel's wake is modelled.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from zcrpc.lab.simulate.topology import Topology

WORK, RMW, LOAD_RMW, LOAD, WAIT = range(5)
LINGER_NS = 24.0  # half a transfer within a socket: what a snoop takes to arrive
HIT_NS = 1.0  # a load from the CPU's own cache

Program = Generator[tuple[int, Any], None, None]


class Thread:
    """A program on a CPU; `index` is its number among the threads."""

    __slots__ = ("cpu", "index", "program")

    def __init__(self, index: int, cpu: int) -> None:
        self.index = index
        self.cpu = cpu
        self.program: Program


class Line:
    """Where one cache line is, and who wants it. `busy_ns` is the time it was being moved or changed."""

    __slots__ = ("busy", "busy_ns", "epoch", "moves", "name", "owner", "queue", "served", "sharers", "waiters")

    def __init__(self, name: str, owner: int = -1) -> None:
        self.name = name
        self.owner = owner  # a CPU; -1: in memory, nobody has it yet
        self.sharers: set[int] = set()  # CPUs with a copy, the owner not among them
        self.queue: deque[tuple[Thread, int]] = deque()
        self.waiters: list[tuple[Thread, Callable[[], bool]]] = []
        self.busy = 0  # accesses under way; more than one only of loads
        self.served = 0  # RMWs of this ownership
        self.epoch = 0  # tells a timer that it is out of date
        self.busy_ns = 0.0
        self.moves = 0


class Machine:
    """Runs threads on a topology.

    Args:
        b: RMWs per ownership of a line that others wait for, at least 1.
        around_ns: instructions around each RMW.
    """

    __slots__ = ("_around", "_b", "_costs", "_heap", "_sequence", "_topology", "lines", "now", "stopped")

    def __init__(self, topology: Topology, *, b: int, around_ns: float = 0.0) -> None:
        if b < 1:
            raise ValueError("b must be 1 or more RMWs per ownership")
        self._topology = topology
        self._b = b
        self._around = around_ns
        self._costs: dict[tuple[int, int], tuple[float, float]] = {}
        self._heap: list[tuple[float, int, Thread | None, Line | None, int]] = []
        self._sequence = 0
        self.lines: list[Line] = []
        self.now = 0.0
        self.stopped = False

    def line(self, name: str) -> Line:
        line = Line(name)
        self.lines.append(line)
        return line

    def start(self, thread: Thread, program: Program, at_ns: float = 0.0) -> None:
        thread.program = program
        self._at(at_ns, thread, None, WORK)

    def run(self) -> None:
        """Until `stopped` is set, or nobody has anything left to do."""
        heap = self._heap
        while heap and not self.stopped:
            self.now, _, thread, line, kind = heapq.heappop(heap)
            if line is None:
                if thread is not None:
                    self._resume(thread)
            elif thread is not None:
                self._done(line, thread, kind)
            elif line.epoch == kind and not line.busy:  # the owner did not come back in time
                self._serve_next(line, self.now - LINGER_NS)

    def _at(self, time: float, thread: Thread | None, line: Line | None, kind: int) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, thread, line, kind))

    def _resume(self, thread: Thread) -> None:
        """Goes on until the thread has to wait for something."""
        program = thread.program
        while not self.stopped:
            try:
                kind, what = next(program)
            except StopIteration:
                return
            if kind == WORK:
                self._at(self.now + what, thread, None, WORK)
                return
            if kind == WAIT:
                kind, (what, may) = LOAD, what
                if not may():
                    what.waiters.append((thread, may))
                    return
                if thread.cpu == what.owner or thread.cpu in what.sharers:
                    continue  # came with the RMW just before
            if kind == LOAD and (thread.cpu == what.owner or thread.cpu in what.sharers):
                self._at(self.now + HIT_NS, thread, None, WORK)
                return
            self._ask(what, thread, kind)
            return

    # ---- a line ----

    def _ask(self, line: Line, thread: Thread, kind: int) -> None:
        owner_again = thread.cpu == line.owner and line.served < self._b
        if line.busy or (line.queue and not owner_again):
            line.queue.append((thread, kind))
        else:
            self._begin(line, thread, kind, self.now)

    def _serve_next(self, line: Line, since: float) -> None:
        thread, kind = line.queue.popleft()
        self._begin(line, thread, kind, since)
        while kind == LOAD and line.queue and line.queue[0][1] == LOAD:
            self._begin(line, line.queue.popleft()[0], LOAD, since)

    def _begin(self, line: Line, thread: Thread, kind: int, since: float) -> None:
        """`since`: when the line could be had; in the past if its owner was waited for."""
        if kind != LOAD and line.owner != thread.cpu:
            line.served = 0
            line.moves += 1
        cost = self._cost(line, thread.cpu, kind)
        if not line.busy:  # loads side by side count once
            line.busy_ns += cost
        line.busy += 1
        line.epoch += 1
        self._at(max(self.now, since + cost), thread, line, kind)

    def _cost(self, line: Line, cpu: int, kind: int) -> float:
        here = line.owner in (-1, cpu)
        cost = self._topology.owned_ns if here else self._pair(line.owner, cpu)[kind == LOAD_RMW]
        if kind == LOAD:
            return cost
        for sharer in line.sharers:  # each copy has to go, all at once
            if sharer != cpu:
                cost = max(cost, self._pair(sharer, cpu)[0])
        return cost + self._around

    def _pair(self, a: int, b: int) -> tuple[float, float]:
        costs = self._costs.get((a, b))
        if costs is None:
            level = self._topology.between(a, b)
            costs = self._costs[a, b] = (level.rmw_ns, level.load_rmw_ns)
        return costs

    def _done(self, line: Line, thread: Thread, kind: int) -> None:
        line.busy -= 1
        if kind == LOAD:
            line.sharers.add(thread.cpu)
        else:
            line.owner = thread.cpu
            line.sharers.clear()
            line.served += 1
        self._resume(thread)
        if kind != LOAD and line.waiters:
            self._wake(line)
        if not line.queue or line.busy:
            return
        if kind == LOAD or line.served >= self._b:
            self._serve_next(line, self.now)
        else:
            self._at(self.now + LINGER_NS, None, line, line.epoch)

    def _wake(self, line: Line) -> None:
        """Those that may go on now load the line."""
        asleep = []
        for waiter, may in line.waiters:
            if may():
                line.queue.append((waiter, LOAD))
            else:
                asleep.append((waiter, may))
        line.waiters = asleep
