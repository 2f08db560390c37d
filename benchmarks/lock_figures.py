"""What the lock strategies are to reach by themselves, in tight loops of native threads (zcrpc/lab/lock_bench.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from rounds import alternate, medians
from targets import Figure, Settings

from zcrpc.lab.lock_bench import Measured, Workload, measure

SECONDS = 0.05
BUSY_NS = (5000, 0)
ROUNDS = 5  # for each round of other figures: many short ones, so that another guest's turn falls into few of them


def _ways(workloads: Mapping[str, Workload]) -> dict[str, Callable[[], Measured]]:
    return {name: partial(measure, workload) for name, workload in workloads.items()}


def _rates(settings: Settings, workloads: Mapping[str, Workload]) -> dict[str, float]:
    """Each one's operations per second: medians of short rounds, many of them, as another guest's turn is long."""
    found = alternate(_ways(workloads), ROUNDS * settings.rounds)
    return medians(found, lambda each: each.operations_per_second)


def _work(strategy: str, **more: Any) -> Workload:
    return Workload(strategy=strategy, seconds=SECONDS, warm_up_seconds=0.005, **more)


def alone(settings: Settings) -> Iterator[Figure]:
    """Find, lock, unlock, uncontended, against a pair of calls of libc that finds nothing. CPU time: the thread is by
    itself, and what else runs on its core is nobody's cost here."""
    names = ("pthread-pair", "none", "per-region", "speculative", "global")
    found = alternate(_ways({name: _work(name) for name in names}), ROUNDS * settings.rounds)
    cost = medians(found, lambda each: each.cpu_ns_per_operation)
    told = ", ".join(f"{name} {ns:.2f} ns" for name, ns in cost.items())
    for name, target in (("per-region", 1.0), ("speculative", 0.6)):
        ratio = cost[name] / cost["pthread-pair"]
        yield Figure(
            f"{name}, uncontended find + lock + unlock",
            f"≤ {target:.1f} × an uncontended pthread rwlock pair",
            f"{ratio:.2f} ×: {told}",
            ratio <= target,
        )


def together(settings: Settings) -> Iterator[Figure]:
    """Two readers: in regions of their own, and in one."""
    names = ("global", "per-region", "speculative")
    layouts: dict[str, dict[str, Any]] = {
        "alone": {"threads": 1},
        "disjoint": {"threads": 2},
        "hot": {"threads": 2, "hot": True},
    }
    ways = {f"{name} {at}": _work(name, **layout) for name in names for at, layout in layouts.items()}
    rate = _rates(settings, ways)
    for name, target in (("per-region", 1.6), ("speculative", 1.8), ("global", 0.0)):
        ratio = rate[f"{name} disjoint"] / rate[f"{name} alone"]
        yield Figure(
            f"{name}, 2 readers in regions of their own over 1",
            f"≥ {target:.1f} × the throughput" if target else "reported",
            f"{ratio:.2f} ×: {rate[f'{name} disjoint'] / 1e6:.1f} M/s over {rate[f'{name} alone'] / 1e6:.1f}",
            ratio >= target,
        )
    hot = {name: rate[f"{name} hot"] for name in names}
    yield Figure(
        "2 readers in one hot region",
        "reported; no win over global expected",
        ", ".join(f"{name} {speed / 1e6:.1f} M/s: {speed / hot['global']:.2f} × global" for name, speed in hot.items()),
        True,
    )


def beside_a_writer(settings: Settings) -> Iterator[Figure]:
    """A reader beside a writer that changes another region all the time, over the reader alone: with 5 µs inside, and
    with nothing to do there, which takes the map's own lines away as often as can be."""
    names = ("global", "per-region", "speculative")
    workloads = {f"{name} alone": _work(name) for name in names}
    for hold in BUSY_NS:
        workloads |= {f"{name} {hold}": _work(name, writers=1, writer_hold_ns=hold) for name in names}
    found = alternate(_ways(workloads), ROUNDS * settings.rounds)
    rate = medians(found, lambda each: each.operations_per_second)
    written = medians(found, lambda each: each.writer_locks / SECONDS)
    for hold in BUSY_NS:
        what = f"a reader beside a writer with {hold / 1e3:g} µs inside"
        for name, target in (("per-region", 0.5), ("speculative", 0.8)):
            ratio = rate[f"{name} {hold}"] / rate[f"{name} alone"]
            yield Figure(
                f"{name}, {what}, over the reader alone",
                f"≥ {target:.1f} × the throughput",
                f"{ratio:.2f} ×: {rate[f'{name} {hold}'] / 1e6:.1f} M/s over {rate[f'{name} alone'] / 1e6:.1f}, "
                f"the writer {written[f'{name} {hold}'] / 1e6:.2f} M/s",
                ratio >= target,
            )
        yield Figure(
            f"global, {what}",
            "both progress",
            f"reader {rate[f'global {hold}'] / 1e6:.2f} M/s ({rate[f'global {hold}'] / rate['global alone']:.3f} × "
            f"alone), writer {written[f'global {hold}'] / 1e6:.2f} M/s",
            min(rate[f"global {hold}"], written[f"global {hold}"]) > 10_000,
        )
