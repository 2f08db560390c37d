"""The model against what others measured: every point, those that fail too.

Two numbers are calibrated, each on one point, and used unchanged for all others: RMWs per ownership where sections are
empty (zero-length sections, 28 threads) and where they are not (9 µs, 28 threads). The instructions around an RMW are
those of one thread alone. Such points are marked and count as neither passed nor failed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from statistics import mean
from typing import Any

import msgspec

from zcrpc.lab.simulate import topology
from zcrpc.lab.simulate.prediction import STORM
from zcrpc.lab.simulate.topology import Topology
from zcrpc.lab.simulate.workload import Workload, simulate

TOLERANCE = 0.15
SWEPT = (1, 2, 4, 6, 8, 10, 12)  # RMWs per ownership
SEEDS = (1, 2, 3)
GLIBC_AROUND_NS = 6.75  # a pair alone takes 27.5 ns: two RMWs of 7 ns, and twice this
TABLE_THREADS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 160, 224, 336, 444)
CALIBRATED = {(0.0, 1), (0.0, 28), (9.0, 28)}  # hold in µs, threads


@dataclass(slots=True, frozen=True)
class Check:
    """One published point. Costs in ns per operation, all threads together, unless `unit` says otherwise.

    `low` and `high` are the published range: of runs, or of what was said. `by_b`: the prediction for each of SWEPT.
    """

    series: str
    threads: int
    unit: str
    published: float
    low: float
    high: float
    predicted: float
    by_b: tuple[float, ...]
    verdict: str  # "pass", "fail" or "calibrated"

    @property
    def error_percent(self) -> float:
        return 100 * (self.predicted / self.published - 1)


@dataclass(slots=True, frozen=True)
class Case:
    """How a published point is simulated."""

    series: str
    threads: int
    topology: Topology
    locks: str
    workload: Workload
    unit: str = "ns"

    def predict(self, b: int | None = None) -> float:
        costs = [
            simulate(self.topology, self.locks, self.threads, self.workload, b=b, operations=1500, seed=seed)
            for seed in SEEDS
        ]
        return mean(cost.ns_per_operation for cost in costs)


def check(case: Case, published: float, low: float, high: float, *, calibrated: bool, sweep: bool) -> Check:
    """Simulates one point. It passes within 15 % of the published figure."""
    predicted = case.predict()
    by_b = tuple(case.predict(b) for b in SWEPT) if sweep else ()
    verdict = "calibrated" if calibrated else judge(published, predicted)
    return Check(case.series, case.threads, case.unit, published, low, high, predicted, by_b, verdict)


def judge(published: float, predicted: float) -> str:
    """The verdict on a figure that nothing was calibrated on."""
    return "pass" if abs(predicted / published - 1) <= TOLERANCE else "fail"


# ---- pthread_rwlock on 448 hardware threads ----


def rwlock_points() -> dict[tuple[float, int], tuple[float, float, float]]:
    """(hold in µs, threads) → ns per pair: mean, low and high of the runs."""
    text = _data("rwlock_scaling_xeon8176_448t.csv").decode()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        (float(row["hold_us"]), int(row["threads"])): (
            1e9 / float(row["pairs_per_s_mean"]),
            1e9 / float(row["pairs_per_s_max"]),
            1e9 / float(row["pairs_per_s_min"]),
        )
        for row in rows
    }


def rwlock(holds_us: tuple[float, ...], threads: tuple[int, ...] | range, *, sweep: bool = False) -> Iterator[Check]:
    """The published points at these holds and thread counts, as far as there are any."""
    machine = topology.builtin()
    for (hold, count), (published, low, high) in rwlock_points().items():
        if hold in holds_us and count in threads:
            workload = Workload(hold_ns=1000 * hold, around_ns=GLIBC_AROUND_NS)
            case = Case(f"pthread rwlock, {hold:g} µs section", count, machine, "global-pthread", workload)
            calibrated = (hold, count) in CALIBRATED
            yield check(case, published, low, high, calibrated=calibrated, sweep=sweep)


# ---- the kernel ----


def sockets(machine: Topology, level: str, cpus: int) -> Topology:
    """A part of a machine: up to the level of that name, with so many CPUs."""
    kept = [each for each in machine.levels if each.cpus <= next(x.cpus for x in machine.levels if x.name == level)]
    kept[-1] = msgspec.structs.replace(kept[-1], cpus=cpus)
    return msgspec.structs.replace(machine, name=f"{cpus} CPUs of {machine.name}", levels=tuple(kept))


def kernel_slopes(*, sweep: bool = False) -> Iterator[Check]:
    """ns that a pair's cost grows with each CPU: the total cost, once the line is always busy."""
    facts = _facts()["kernel_slopes"]
    four, eight = sockets(topology.builtin(), "four sockets", 224), topology.builtin()
    for name, locks in (("qrwlock", "global"), ("rwsem", "global-pthread")):
        slope = facts["ns_per_cpu"][name]
        for said, machine in (("four", four), ("eight", eight)):
            for cpus in facts["cpus"]:
                case = Case(f"kernel {name}, slope, {said} sockets", cpus, machine, locks, Workload(), unit="ns/CPU")
                yield check(case, slope, slope, slope, calibrated=False, sweep=sweep)


def uprobes(*, sweep: bool = False) -> Iterator[Check]:
    """Two sockets of 40 CPUs. What a lookup does besides the lock is what is left of one CPU's time."""
    facts = _facts()["uprobes"]
    sibling, socket, _, _ = topology.builtin().levels
    socket = msgspec.structs.replace(socket, cpus=40)
    both = sockets(topology.builtin(), "four sockets", 80).levels[-1]
    two = msgspec.structs.replace(topology.builtin(), name="two sockets", levels=(sibling, socket, both))
    for series, locks, points in (
        ("uprobes before", "global", facts["before_ns_per_op"]),
        ("uprobes after", "speculative", facts["after_ns_per_op"]),
    ):
        pair = 2 * two.owned_ns if locks == "global" else 0.0
        workload = Workload(work_ns=points["1"][0] - pair)
        for threads, (low, high) in points.items():
            case = Case(f"{series}, lookup", int(threads), two, locks, workload)
            yield check(case, (low + high) / 2, low, high, calibrated=threads == "1", sweep=sweep)


# ---- the seed workload ----


def seed_sketch() -> Iterator[Check]:
    """Two receiving threads and a writer. Nothing was calibrated on it."""
    facts = _facts()["seed"]
    runs = {name: simulate(topology.builtin(), name, 2, STORM, operations=40_000) for name in ("global", "per-region")}
    ratio = runs["global"].operations_per_second / runs["per-region"].operations_per_second
    found = [(f"{name}, wait p99.9", "µs", facts["wait_p999_us"][name], runs[name].wait_p999_us) for name in runs]
    found.append(("requests/s of global over per-region", "ratio", facts["throughput_ratio"], ratio))
    for series, unit, (low, high), predicted in found:
        middle = (low + high) / 2
        verdict = judge(middle, predicted)
        yield Check(f"seed, writer storm: {series}", 2, unit, middle, low, high, predicted, (), verdict)


# ---- rankings ----


@dataclass(slots=True, frozen=True)
class Ranking:
    """Which of two locks was faster, and by how much: ratios of ns per operation, slower over faster."""

    write_fraction: float
    faster: str
    slower: str
    published_ratio: float
    predicted_ratio: float

    @property
    def verdict(self) -> str:
        return "pass" if self.predicted_ratio > 1 else "fail"


def folly() -> Iterator[Ranking]:
    """folly's table: only the order is compared, its machine is another."""
    facts = _facts()["folly"]
    for row in facts["ns_per_op"]:
        workload = Workload(write_fraction=row["write_fraction"], one_region=True)
        cost = {
            name: Case("folly", facts["threads"], topology.builtin(), name, workload).predict()
            for name in (row["faster"], row["slower"])
        }
        ratio = cost[row["slower"]] / cost[row["faster"]]
        yield Ranking(row["write_fraction"], row["faster"], row["slower"], row["slower_ns"] / row["ns"], ratio)


def table_checks(*, sweep: bool = True) -> Iterator[Check]:
    """The points that docs/prediction.md shows."""
    yield from rwlock((0.0, 9.0), TABLE_THREADS, sweep=sweep)
    yield from rwlock((100.0, 1000.0), (28, 56, 112, 224, 444), sweep=sweep)
    yield from kernel_slopes(sweep=sweep)
    yield from uprobes(sweep=sweep)
    yield from seed_sketch()


def _facts() -> Any:
    return msgspec.json.decode(_data("published.json"))


def _data(name: str) -> bytes:
    return resources.files(__package__).joinpath("data", name).read_bytes()
