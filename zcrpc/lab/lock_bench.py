"""The native lock benchmark: threads, without the GIL, that find, lock and unlock regions. native/lab/lock_bench.h says
what the options and the figures mean.

As a program it is the child of an experiment: it measures each workload that it is sent, so that neither a strategy
that crashes nor one that hangs takes the results of the others with it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from zcrpc import locks
from zcrpc._native import check, ffi, lib
from zcrpc.lab.processes import hear, say, serve
from zcrpc.lab.results import Latency, from_struct
from zcrpc.regions import LockCounters

MOST_THREADS: Final[int] = lib.ZC_LOCK_BENCH_THREADS
MOST_REGIONS: Final[int] = lib.ZC_LOCK_BENCH_REGIONS
NOT_LOCKS: Final = ("none", "pthread-pair")
"""What can be timed besides strategies where nothing is written: the rest of the loop; a pair of calls of libc."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Workload:
    """What the threads do: struct zc_lock_bench_options."""

    strategy: str
    threads: int = 1
    writers: int = 0
    regions: int = 0
    hot: bool = False
    hold: bool = False
    write_fraction: float = 0.0
    seed: int = 0
    reader_hold_ns: int = 0
    writer_hold_ns: int = 0
    writer_pause_ns: int = 0
    rate_per_thread: float = 0.0
    warm_up_seconds: float = 0.0
    iterations: int = 0
    seconds: float = 0.0


@dataclass(slots=True, frozen=True)
class Measured(LockCounters):
    """What came of it: struct zc_lock_bench_result."""

    reads: int
    writes: int
    operations_per_second: float
    ns_per_operation: float
    cpu_ns_per_operation: float
    jain: float
    read_latency: Latency
    writer_locks: int
    write_latency: Latency
    longest_overtaking: int
    overtaking_p99: int
    pinned: bool


def measure(workload: Workload) -> Measured:
    """Runs it in this process. Blocks, with the GIL released, until it is over.

    Raises:
        zcrpc.locks.UnknownStrategy: there is no such strategy, or it is one of `NOT_LOCKS` and there would be writes.
        zcrpc.InvalidArgument: the rest is impossible.
    """
    if workload.strategy not in NOT_LOCKS or workload.writers or workload.write_fraction:
        locks.find(workload.strategy)  # which may be a plugin that is not loaded yet
    settings = {field.name: getattr(workload, field.name) for field in dataclasses.fields(workload)}
    name = ffi.new("char[]", workload.strategy.encode())
    options = ffi.new("struct zc_lock_bench_options *", {**settings, "strategy": name})
    result = ffi.new("struct zc_lock_bench_result *")
    check(lib.zc_lock_bench(options, result), f"timing {workload.strategy}")
    return dataclasses.replace(from_struct(Measured, result), pinned=bool(result.pinned))


def _serve() -> None:
    def one_after_the_other(workload: Workload) -> Measured:
        while True:
            say(measure(workload))
            workload = hear(Workload)

    serve(Workload, one_after_the_other)


if __name__ == "__main__":
    _serve()
