"""What a lock strategy costs by itself: find, read-lock and unlock a region, as often as threads can.

Native threads do it, without the GIL. The time of a round is that of the whole run, threads included; `ns_per_read` and
the rest in extra_info are of the loop alone. "none" locks nothing: what the rest of the loop costs.

The last test is the comparison itself: strategies alternate within one run, and only ratios of medians are believed.
"""

from __future__ import annotations

from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from zcrpc import locks
from zcrpc._native import check, ffi, lib
from zcrpc.regions import RegionMap

STRATEGIES = locks.names()

SCENARIOS: dict[str, dict[str, int]] = {
    "uncontended": {"readers": 1, "iterations": 1_000_000},
    "2 threads, regions of their own": {"readers": 2, "iterations": 500_000},
    "2 threads, one region": {"readers": 2, "hot": 1, "iterations": 500_000},
    "reader with a busy writer": {"readers": 1, "writers": 1, "writer_hold_ns": 5_000, "iterations": 5_000},
    "reader with a writer at times": {
        "readers": 1,
        "writers": 1,
        "writer_hold_ns": 500_000,
        "writer_pause_ns": 500_000,
        "iterations": 1_000_000,
    },
}


def run(strategy: str, **settings: float) -> SimpleNamespace:
    """One run of the native driver; the fields of struct zc_lock_bench_result."""
    name = ffi.new("char[]", strategy.encode())
    options = ffi.new("struct zc_lock_bench_options *", {"strategy": name, **settings})
    result = ffi.new("struct zc_lock_bench_result *")
    check(lib.zc_lock_bench(options, result), f"timing {strategy}")
    fields = [field for field, _ in ffi.typeof("struct zc_lock_bench_result").fields]
    return SimpleNamespace(**{field: getattr(result, field) for field in fields})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pairs(benchmark: Any, scenario: str, strategy: str) -> None:
    """Read-lock and unlock: `iterations` pairs of each reader."""
    settings = SCENARIOS[scenario]
    benchmark.group = f"locks: {scenario}"
    results: list[SimpleNamespace] = []
    benchmark.pedantic(lambda: results.append(run(strategy, **settings)), rounds=5, warmup_rounds=1)
    assert all(result.reads == settings["readers"] * settings["iterations"] for result in results)
    benchmark.extra_info.update(
        ns_per_read=median(result.ns_per_read for result in results),
        million_reads_per_second=median(result.reads_per_second for result in results) / 1e6,
        longest_read_us=max(result.longest_read_ns for result in results) / 1e3,
        writes=sum(result.writes for result in results),
        fallback_percent=100 * sum(r.fallbacks for r in results) / sum(r.reads for r in results),
    )


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
    results: dict[tuple[str, str], list[SimpleNamespace]] = {}
    for _ in range(11):
        for scenario, settings in SCENARIOS.items():
            for strategy in ("global", "per-region"):
                result = run(strategy, **{**settings, "iterations": 0, "seconds": 0.01})
                results.setdefault((scenario, strategy), []).append(result)

    def ratio(scenario: str) -> float:
        cost = [median(r.ns_per_read for r in results[scenario, name]) for name in ("global", "per-region")]
        return cost[0] / cost[1]

    assert ratio("uncontended") > 0.5  # no dearer than twice the one lock
    assert ratio("2 threads, regions of their own") > 1.5
    assert ratio("reader with a busy writer") > 20  # a reader of an untouched region does not wait for the writer
    assert all(result.fallbacks == 0 for result in results["reader with a busy writer", "per-region"])
    for strategy in ("global", "per-region"):  # and nobody starves
        assert min(result.reads for result in results["reader with a busy writer", strategy]) > 100
        assert min(result.writes for result in results["reader with a busy writer", strategy]) > 100
