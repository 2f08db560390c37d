"""What a lock strategy costs by itself: find, read-lock and unlock a region, as often as threads can.

Native threads do it, without the GIL (zcrpc/lab/lock_bench.py). The time of a round is that of the whole run, threads
included; `ns_per_operation` and the rest in extra_info are of the loop alone. "none" locks nothing: what the rest of
the loop costs. `zcrpc lab bench` is the same in large, with latencies from intended starts.

The last test is the comparison itself: strategies alternate within one run, and only ratios of medians are believed.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import pytest
from rounds import alternate, medians

from zcrpc import locks
from zcrpc.lab.bench import Matrix, Point
from zcrpc.lab.lock_bench import NOT_LOCKS, Measured, Workload, measure
from zcrpc.regions import RegionMap

STRATEGIES = locks.names()
MATRIX = Matrix(locks=("global", "per-region", "speculative"), regions=(16,), hold_ns=(0,), write_percent=(0, 1, 100))

SCENARIOS: dict[str, dict[str, Any]] = {
    "uncontended": {"threads": 1, "iterations": 1_000_000},
    "2 threads, regions of their own": {"threads": 2, "iterations": 500_000},
    "2 threads, one region": {"threads": 2, "hot": True, "iterations": 500_000},
    "reader with a busy writer": {"threads": 1, "writers": 1, "writer_hold_ns": 5_000, "iterations": 5_000},
    "reader with a writer at times": {
        "threads": 1,
        "writers": 1,
        "writer_hold_ns": 500_000,
        "writer_pause_ns": 500_000,
        "iterations": 1_000_000,
    },
}


def timed(benchmark: Any, workload: Workload) -> list[Measured]:
    """Five runs, and what they measured."""
    results: list[Measured] = []
    benchmark.pedantic(lambda: results.append(measure(workload)), rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(
        ns_per_operation=median(result.ns_per_operation for result in results),
        million_operations_per_second=median(result.operations_per_second for result in results) / 1e6,
        cpu_ns_per_operation=median(result.cpu_ns_per_operation for result in results),
        longest_read_us=max(result.read_latency.max_us for result in results),
        longest_overtaking=max(result.longest_overtaking for result in results),
        jain=median(result.jain for result in results),
        writes=sum(result.writes + result.writer_locks for result in results),
        fallback_percent=100 * sum(r.fallbacks for r in results) / max(sum(r.reads for r in results), 1),
    )
    return results


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pairs(benchmark: Any, scenario: str, strategy: str) -> None:
    """Read-lock and unlock: `iterations` pairs of each thread."""
    settings = SCENARIOS[scenario]
    benchmark.group = f"locks: {scenario}"
    results = timed(benchmark, Workload(strategy=strategy, **settings))
    assert all(result.reads == settings["threads"] * settings["iterations"] for result in results)


@pytest.mark.parametrize("floor", NOT_LOCKS)
def test_floors(benchmark: Any, floor: str) -> None:
    """The same without a lock, and with a pair of calls of libc instead of a strategy."""
    benchmark.group = "locks: uncontended"
    results = timed(benchmark, Workload(strategy=floor, **SCENARIOS["uncontended"]))
    assert all(result.reads == SCENARIOS["uncontended"]["iterations"] for result in results)


@pytest.mark.parametrize("strategy", MATRIX.locks)
@pytest.mark.parametrize("point", MATRIX.points, ids=lambda p: f"{p.threads}-{p.layout}-{p.write_percent:g}%")
def test_matrix(benchmark: Any, point: Point, strategy: str) -> None:
    """Threads that read and write: the matrix of `zcrpc lab bench`, in small."""
    benchmark.group = f"locks: {point.threads} × {point.layout}, {point.write_percent:g} % writes"
    workload = Workload(
        strategy=strategy,
        threads=point.threads,
        regions=point.regions,
        hot=point.layout == "hot",
        write_fraction=point.write_percent / 100,
        iterations=100_000,
    )
    for result in timed(benchmark, workload):
        assert result.reads + result.writes == point.threads * workload.iterations
        assert result.write_locks == result.writes


@pytest.mark.parametrize("strategy", ["global", "per-region"])
def test_python_read(benchmark: Any, strategy: str) -> None:
    """The same from Python: `with regions.read(address)`, one thread."""
    benchmark.group = "locks: from Python"
    with RegionMap(locks=strategy) as regions:
        address = regions.attach(1).start

        def read() -> None:
            with regions.read(address):
                pass

        benchmark(read)


def test_per_region_against_global() -> None:
    """What the design promises, as ratios in one run: medians of alternating rounds of 10 ms."""
    ways = {
        (scenario, strategy): partial(
            measure, Workload(strategy=strategy, **{**settings, "iterations": 0, "seconds": 0.01})
        )
        for scenario, settings in SCENARIOS.items()
        for strategy in ("global", "per-region")
    }
    results = alternate(ways, 11)
    cost = medians(results, lambda each: each.ns_per_operation)

    def ratio(scenario: str) -> float:
        return cost[scenario, "global"] / cost[scenario, "per-region"]

    assert ratio("uncontended") > 0.5  # no dearer than twice the one lock
    assert ratio("2 threads, regions of their own") > 1.5
    assert ratio("reader with a busy writer") > 20  # a reader of an untouched region does not wait for the writer
    assert all(result.fallbacks == 0 for result in results["reader with a busy writer", "per-region"])
    for strategy in ("global", "per-region"):  # and nobody starves
        assert median(result.reads for result in results["reader with a busy writer", strategy]) > 100
        assert min(result.writer_locks for result in results["reader with a busy writer", strategy]) > 100
