"""The lock benchmark: what strategies cost by themselves, over a matrix of threads, regions, holds and writes.

A *point* of the matrix is a number of threads that read and write: each in regions of its own (*disjoint*), or all in
one (*hot*). Each strategy runs at each point twice a round. First in a closed loop, every thread as fast as it can:
that is its throughput, its CPU time, its fairness. Then in an open loop, operations beginning on a fixed schedule:
that is its latency, from when each was to begin, so that a stall is seen by all that should have begun meanwhile. The
schedule is the same for all strategies at a point, or their latencies could not be compared: half of what the slowest
of them did in the first round's closed loop, and at most `FASTEST_RATE`, beyond which it would be mostly clocks that
are timed.

Rounds go over the whole matrix, and strategies alternate within a point, every second round backwards, so that drift
of the machine hits all alike. Which operations write is drawn by the round's number: the same for all strategies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from zcrpc import locks as locks_of
from zcrpc.counting import counters
from zcrpc.lab.lock_bench import MOST_REGIONS, MOST_THREADS, NOT_LOCKS, Measured, Workload
from zcrpc.lab.processes import Child, ChildFailed
from zcrpc.lab.results import Latency
from zcrpc.regions import LockCounters

Layout = Literal["disjoint", "hot"]
Loop = Literal["closed", "open"]

LOCKS: Final = (
    "global",
    "global-pthread",
    "global-phase-fair",
    "global-bravo",
    "region-rwlock",
    "per-region",
    "speculative",
    "range",
)
WARM_UP_SECONDS: Final = 0.005  # caches, and the bias of the strategies that have one
FASTEST_RATE: Final = 2e6  # operations per second and thread of an open loop: 500 ns each
LOAD: Final = 0.5  # of the slowest strategy's throughput


@dataclass(slots=True, frozen=True, kw_only=True)
class Point:
    """What all strategies are measured at."""

    threads: int
    regions: int
    layout: Layout
    hold_ns: int
    write_percent: float


@dataclass(slots=True, frozen=True, kw_only=True)
class Matrix:
    """What is to be measured. Raises `ValueError`, saying what is impossible, when created.

    Args:
        locks: names of strategies; "none" and "pthread-pair" too, which are measured where nothing is written.
        threads: numbers of threads; more than there are cores share them.
        regions: numbers of regions, dealt to the threads. A hot region is one whatever this says.
        hold_ns: how long readers and writers stay inside, computing.
        write_percent: of the operations: the map lock, and the lock of one of the thread's regions.
        layouts: one thread alone is measured in its own regions only, if those are asked for.
        seconds: measured for each strategy at each point in each of the two loops, spread over the rounds.
        rate: operations per second and thread of the open loops; 0: half of the slowest strategy's throughput.
        hold: lock and unlock even where a strategy lets readers look without holding.
    """

    locks: tuple[str, ...] = LOCKS
    threads: tuple[int, ...] = (1, 2)
    regions: tuple[int, ...] = (16,)
    hold_ns: tuple[int, ...] = (0, 1000)
    write_percent: tuple[float, ...] = (0, 0.1, 1, 10, 100)
    layouts: tuple[Layout, ...] = ("disjoint", "hot")
    rounds: int = 5
    seconds: float = 0.2
    rate: float = 0.0
    hold: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def points(self) -> list[Point]:
        """All of them, in the order of a round."""
        points = [
            Point(
                threads=threads,
                regions=1 if layout == "hot" else regions,
                layout=layout,
                hold_ns=hold_ns,
                write_percent=percent,
            )
            for hold_ns in self.hold_ns
            for threads in self.threads
            for layout in self.layouts
            for regions in self.regions
            for percent in self.write_percent
            if layout == "disjoint" or threads > 1 or "disjoint" not in self.layouts
        ]
        return list(dict.fromkeys(points))

    def locks_at(self, point: Point) -> tuple[str, ...]:
        """Those that can be measured there."""
        return tuple(name for name in self.locks if name not in NOT_LOCKS or point.write_percent == 0)

    @property
    def total(self) -> int:
        """How many rows a run yields."""
        return 2 * self.rounds * sum(len(self.locks_at(point)) for point in self.points)


@dataclass(slots=True, frozen=True)
class Row(LockCounters):
    """One strategy at one point in one loop of one round. native/lab/lock_bench.h says what the figures mean."""

    strategy: str
    loop: Loop
    layout: Layout
    threads: int
    regions: int
    hold_ns: int
    write_percent: float
    round: int
    seconds: float
    pinned: bool  # each thread had a core of its own

    offered_per_second: float  # all threads together; 0 in a closed loop
    operations_per_second: float
    reads: int
    writes: int
    ns_per_operation: float
    cpu_ns_per_operation: float  # an open loop waits by computing
    jain: float
    # Wanted → inside. In an open loop from the intended start, of every operation; in a closed one, of a sample of
    # them, from when they began.
    read_samples: int
    read_latency_p50_us: float
    read_latency_p99_us: float
    read_latency_p999_us: float
    read_latency_max_us: float
    write_samples: int
    write_latency_p50_us: float
    write_latency_p99_us: float
    write_latency_p999_us: float
    write_latency_max_us: float
    # Reads of other threads that got in between a writer's wish and its turn. Closed loop only.
    longest_overtaking: int
    overtaking_p99: int

    fallback_percent: float  # of the reads


def run(matrix: Matrix) -> Iterator[Row]:
    """Measures the matrix and yields each row as it is done. Stop iterating to stop it.

    Raises:
        zcrpc.lab.processes.ChildFailed: a strategy ended the process that measures; says which one.
    """
    rates: dict[Point, float] = {}
    with _Bench() as bench:
        for number in range(matrix.rounds):
            for point in matrix.points:
                order = matrix.locks_at(point)[:: 1 if number % 2 == 0 else -1]
                closed = []
                for strategy in order:
                    closed.append(_row(point, number, bench.measure(_workload(matrix, point, strategy, number, 0))))
                    yield closed[-1]
                if point not in rates:
                    rates[point] = matrix.rate or _rate(point, closed)
                for strategy in order:
                    yield _row(point, number, bench.measure(_workload(matrix, point, strategy, number, rates[point])))


def _rate(point: Point, closed: list[Row]) -> float:
    slowest = min((row.operations_per_second for row in closed), default=0.0) / point.threads
    return min(max(LOAD * slowest, 1.0), FASTEST_RATE)


def _workload(matrix: Matrix, point: Point, strategy: str, number: int, rate: float) -> Workload:
    return Workload(
        strategy=strategy,
        threads=point.threads,
        regions=point.regions,
        hot=point.layout == "hot",
        hold=matrix.hold,
        write_fraction=point.write_percent / 100,
        seed=number,
        reader_hold_ns=point.hold_ns,
        writer_hold_ns=point.hold_ns,
        rate_per_thread=rate,
        warm_up_seconds=WARM_UP_SECONDS,
        seconds=matrix.seconds / matrix.rounds,
    )


class _Bench:
    """The process that measures; started with the first workload."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None:
            self._child.__exit__(*error)

    def measure(self, workload: Workload) -> tuple[Workload, Measured]:
        try:
            if self._child is None:
                self._child = Child("zcrpc.lab.lock_bench", workload)
            else:
                self._child.send(workload)
            return workload, self._child.receive(Measured)
        except ChildFailed as error:
            raise ChildFailed(f"measuring {workload.strategy}: {error}") from None


def _row(point: Point, number: int, done: tuple[Workload, Measured]) -> Row:
    workload, measured = done
    return Row(
        strategy=workload.strategy,
        loop="open" if workload.rate_per_thread else "closed",
        layout=point.layout,
        threads=point.threads,
        regions=point.regions,
        hold_ns=point.hold_ns,
        write_percent=point.write_percent,
        round=number,
        seconds=workload.seconds,
        offered_per_second=workload.rate_per_thread * point.threads,
        read_samples=measured.read_latency.samples,
        write_samples=measured.write_latency.samples,
        fallback_percent=100 * measured.fallbacks / measured.reads if measured.reads else 0.0,
        **_distribution("read_latency", measured.read_latency),
        **_distribution("write_latency", measured.write_latency),
        **{name: getattr(measured, name) for name in _AS_MEASURED},
    )


# Fields of a row that are the driver's own, under the same name.
_AS_MEASURED = (
    "pinned",
    "operations_per_second",
    "reads",
    "writes",
    "ns_per_operation",
    "cpu_ns_per_operation",
    "jain",
    "longest_overtaking",
    "overtaking_p99",
    *counters(LockCounters),
)


def _distribution(name: str, latency: Latency) -> dict[str, Any]:
    return {f"{name}_{part}": getattr(latency, part) for part in ("p50_us", "p99_us", "p999_us", "max_us")}


def _check(matrix: Matrix) -> None:
    known = (*locks_of.names(), *NOT_LOCKS)
    unknown = [name for name in matrix.locks if name not in known]
    lists = {
        "lock strategy": matrix.locks,
        "number of threads": matrix.threads,
        "number of regions": matrix.regions,
        "hold": matrix.hold_ns,
        "percentage of writes": matrix.write_percent,
        "layout": matrix.layouts,
    }
    empty = [name for name, values in lists.items() if not values]
    twice = [name for name, values in lists.items() if len(set(values)) < len(values)]
    few = "disjoint" in matrix.layouts and min(matrix.regions, default=0) < max(matrix.threads, default=0)
    impossible = {
        f"no such lock strategy: {', '.join(unknown)}; there are {', '.join(known)}": unknown,
        f"no {' and no '.join(empty)} was given": empty,
        f"a {' and a '.join(twice)} was given twice": twice,
        f"threads must be 1 to {MOST_THREADS}": not all(1 <= each <= MOST_THREADS for each in matrix.threads),
        f"regions must be 1 to {MOST_REGIONS:,}, 2 MiB of address space each": not all(
            1 <= each <= MOST_REGIONS for each in matrix.regions
        ),
        "holds must be 0 to 1,000,000,000 ns": not all(0 <= each <= 10**9 for each in matrix.hold_ns),
        "writes must be 0 to 100 %": not all(0 <= each <= 100 for each in matrix.write_percent),
        f"layouts must be of {', '.join(get_args(Layout))}": not set(matrix.layouts) <= set(get_args(Layout)),
        "there are fewer regions than threads, and disjoint ones for each were asked for": few,
        "rounds must be 1 to 1000": not 1 <= matrix.rounds <= 1000,
        "seconds must be more than 0 and at most 3600": not 0 < matrix.seconds <= 3600,
        "the rate must be 1 to 1,000,000,000 operations a second, or 0": not (
            matrix.rate == 0 or 1 <= matrix.rate <= 1e9
        ),
    }
    for complaint, holds in impossible.items():
        if holds:
            raise ValueError(complaint)
    if all(name in NOT_LOCKS for name in matrix.locks) and 0 not in matrix.write_percent:
        raise ValueError(f"{', '.join(matrix.locks)} can only be measured where nothing is written")
