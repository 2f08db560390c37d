"""Threads that use a lock, and what came of it.

*Closed*: each thread begins its next operation when the last is done, as a benchmark does; with it the model is
validated. *Open*: operations arrive at random at each thread, whether it is ready or not, as requests do; waiting times
are counted from the arrival. In both, an operation is work outside the lock, then a section inside it.

Mutual exclusion is checked on every operation: no writer changed the region during a section that stands.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from random import Random
from typing import Any

from zcrpc.lab.simulate.engine import WORK, Machine, Program, Thread
from zcrpc.lab.simulate.programs import Lock, find
from zcrpc.lab.simulate.topology import Topology

# RMWs per ownership, each calibrated on one published point (published.py): where sections and what lies between them
# are empty, RMWs come in runs; where they are not, every RMW moves the line.
B_BACK_TO_BACK, B_APART = 10, 1
JITTER = 0.02  # of work and hold, which are never shorter than asked: so that threads do not march in step


@dataclass(slots=True, frozen=True, kw_only=True)
class Workload:
    """What threads do. Times in ns.

    Args:
        hold_ns, work_ns: inside and outside the section, of each operation.
        write_fraction: of the operations, which write-lock the thread's region.
        one_region: all use the same; else each has its own.
        around_ns: instructions around each RMW.
        writer_interval_ns, writer_hold_ns: one more thread write-locks a region that nobody else uses, and holds the
            lock for so long of each interval; 0: none.
        load: 0: closed; above: open, arrivals at this fraction of what a thread without locks could do.
    """

    hold_ns: float = 0.0
    work_ns: float = 0.0
    write_fraction: float = 0.0
    one_region: bool = False
    around_ns: float = 0.0
    writer_interval_ns: float = 0.0
    writer_hold_ns: float = 0.0
    load: float = 0.0

    @property
    def likely_b(self) -> int:
        """RMWs per ownership where nobody says otherwise."""
        return B_APART if self.hold_ns + self.work_ns > 0 else B_BACK_TO_BACK


@dataclass(slots=True, frozen=True)
class Outcome:
    """What came of it, after a warm-up of a quarter of the operations.

    `bound_per_second` is the asymptotic bound, min(n / (work + hold), 1 / D): D is the time that the busiest line is
    occupied per operation, transfers per operation times their mean cost. Waits are from asking for the lock to having
    it; `late_p99_us` is from an operation's arrival (open) or start (closed) to its end.
    """

    locks: str
    threads: int
    operations: int
    operations_per_second: float
    bound_per_second: float
    ns_per_operation: float  # elapsed time over operations of all threads: the benchmark's total cost
    line_moves_per_operation: float
    fallback_percent: float
    wait_p50_us: float
    wait_p99_us: float
    wait_p999_us: float
    late_p99_us: float
    writes_per_second: float


class Broken(AssertionError):
    """A simulated lock let a reader and a writer into the same region."""


class Run:
    """One simulation under way."""

    def __init__(self, topology: Topology, locks: str, threads: int, workload: Workload, b: int, seed: int) -> None:
        self.machine = Machine(topology, b=b, around_ns=workload.around_ns)
        storm = workload.writer_interval_ns > 0
        regions = (1 if workload.one_region else threads) + storm
        self.lock: Lock = find(locks)(self.machine, threads + storm, regions)
        self.workload = workload
        self.random = Random(seed)
        self.threads = threads
        self.writing = [False] * regions
        self.version = [0] * regions
        self.inside = [0] * regions
        self.started = self.finished = self.writes = 0
        self.waits: list[float] = []
        self.late: list[float] = []
        self.target = self.warm_up = 0
        self.began_ns = 0.0
        self._mark: tuple[list[float], int, int, int] = ([], 0, 0, 0)
        placed = topology.placement(threads + storm if threads + storm <= topology.cpus else threads)
        order = placed[:threads]
        self.random.shuffle(order)  # the order of the queue is not that of the machine
        for index, cpu in enumerate(order):
            thread = Thread(index, cpu)
            period = workload.work_ns + workload.hold_ns + 1
            self.machine.start(thread, self._operations(thread), self.random.random() * period)
        if storm:
            thread = Thread(threads, placed[-1])
            self.machine.start(thread, self._storm(thread, regions - 1), 0.0)

    def measure(self, operations: int) -> Outcome:
        self.warm_up, self.target = max(operations // 4, 2 * self.threads), operations
        self.machine.run()
        return self._outcome()

    # ---- threads ----

    def _operations(self, thread: Thread) -> Program:
        w = self.workload
        region = 0 if w.one_region else thread.index
        rate = w.load / (w.work_ns + w.hold_ns) if w.load else 0.0
        arrival = self.machine.now
        while True:
            if rate:
                arrival += self.random.expovariate(rate)
                if arrival > self.machine.now:
                    yield WORK, arrival - self.machine.now
            began = self.machine.now
            self.started += 1
            if w.work_ns:
                yield WORK, self._about(w.work_ns)
            if w.write_fraction and self.random.random() < w.write_fraction:
                yield from self._write(thread, region, w.hold_ns)
            else:
                yield from self._read(thread, region)
            self._finish(self.machine.now - (arrival if rate else began))

    def _read(self, thread: Thread, region: int) -> Generator[tuple[int, Any], None, None]:
        asked = self.machine.now
        while True:
            mode = yield from self.lock.read_lock(thread, region)
            version, exclusive = self.version[region], mode != "nothing"
            self.inside[region] += exclusive
            if exclusive and self.writing[region]:
                raise Broken(f"{self.lock.name}: a reader came in where a writer was")
            locked = self.machine.now
            if self.workload.hold_ns:
                yield WORK, self._about(self.workload.hold_ns)
            self.inside[region] -= exclusive
            stands = yield from self.lock.read_unlock(thread, region, mode)
            if stands:
                break
        if mode == "nothing" and version != self.version[region]:
            raise Broken(f"{self.lock.name}: a section stands that a writer went through")
        self.waits.append(locked - asked)

    def _write(self, thread: Thread, region: int, hold_ns: float) -> Generator[tuple[int, Any], None, None]:
        asked = self.machine.now
        yield from self.lock.write_lock(thread, region)
        self.waits.append(self.machine.now - asked)
        if self.writing[region] or self.inside[region]:
            raise Broken(f"{self.lock.name}: a writer came in where somebody was")
        self.writing[region] = True
        self.version[region] += 1
        if hold_ns:
            yield WORK, hold_ns
        self.version[region] += 1
        self.writing[region] = False
        yield from self.lock.write_unlock(thread, region)
        self.writes += 1

    def _storm(self, thread: Thread, region: int) -> Program:
        w = self.workload
        due = self.random.random() * w.writer_interval_ns
        while True:
            yield WORK, max(due - self.machine.now, 0.0)
            yield from self._write(thread, region, w.writer_hold_ns)
            self.waits.pop()  # the writer's own
            due = max(due + w.writer_interval_ns, self.machine.now)

    def _about(self, ns: float) -> float:
        return ns * (1 + JITTER * self.random.random())

    def _finish(self, late_ns: float) -> None:
        self.finished += 1
        self.late.append(late_ns)
        if self.finished == self.warm_up:
            self.waits.clear()
            self.late.clear()
            self.began_ns = self.machine.now
            lines = self.machine.lines
            self._mark = ([x.busy_ns for x in lines], sum(x.moves for x in lines), self.lock.fallbacks, self.writes)
        self.machine.stopped = self.finished >= self.warm_up + self.target

    # ---- what came of it ----

    def _outcome(self) -> Outcome:
        busy, moves, fallbacks, writes = self._mark
        lines = self.machine.lines
        done = self.finished - self.warm_up
        elapsed = self.machine.now - self.began_ns
        demand = max(line.busy_ns - before for line, before in zip(lines, busy, strict=True)) / done
        section = self.workload.work_ns + self.workload.hold_ns
        bounds = [1 / demand if demand else float("inf"), self.threads / section if section else float("inf")]
        return Outcome(
            locks=self.lock.name,
            threads=self.threads,
            operations=done,
            operations_per_second=1e9 * done / elapsed,
            bound_per_second=1e9 * min(bounds),
            ns_per_operation=elapsed / done,
            line_moves_per_operation=(sum(line.moves for line in lines) - moves) / done,
            fallback_percent=100 * (self.lock.fallbacks - fallbacks) / done,
            wait_p50_us=percentile(self.waits, 0.5) / 1e3,
            wait_p99_us=percentile(self.waits, 0.99) / 1e3,
            wait_p999_us=percentile(self.waits, 0.999) / 1e3,
            late_p99_us=percentile(self.late, 0.99) / 1e3,
            writes_per_second=1e9 * (self.writes - writes) / elapsed,
        )


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; 0 of none."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def simulate(
    topology: Topology,
    locks: str,
    threads: int,
    workload: Workload,
    *,
    b: int | None = None,
    operations: int = 3000,
    seed: int = 1,
) -> Outcome:
    """Runs `threads` on the machine. The same arguments give the same outcome. `b`: `Workload.likely_b` if None.

    Raises:
        ValueError: no such lock, more threads than the machine has, b below 1.
        Broken: the program of the lock is wrong.
    """
    return Run(topology, locks, threads, workload, workload.likely_b if b is None else b, seed).measure(operations)
