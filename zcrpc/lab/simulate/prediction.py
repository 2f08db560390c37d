"""What follows for the seed workload on more cores.

Requests of 4 KiB, receive zerocopy, a region for each receiver: `zcrpc lab seed` on two cores takes 10.4 µs of CPU a
request, of which 1.65 µs from finding the region to unlocking it. The storm is that of the seed: one more thread holds
the map lock for 500 µs of every 1,000, and changes only a region that nobody receives into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from zcrpc.lab.simulate.topology import Topology
from zcrpc.lab.simulate.workload import Outcome, Workload, simulate

SEED = Workload(hold_ns=1_650, work_ns=8_750)
STORM = replace(SEED, writer_interval_ns=1_000_000, writer_hold_ns=500_000)
LOAD = 0.7  # of what receivers without locks could do
STORM_NS = 2_500_000  # simulated for each figure
OPERATIONS = 3_000  # at least


@dataclass(slots=True, frozen=True)
class Prediction:
    """One strategy on so many cores. `saturated`: closed loop, without a writer; the others: arrivals at LOAD."""

    locks: str
    cores: int
    b: int
    offered_per_second: float
    saturated: Outcome
    readers_only: Outcome
    storm: Outcome

    def overloaded(self, outcome: Outcome) -> bool:
        """Less was done than arrived: waiting times grow for as long as it lasts."""
        return outcome.operations_per_second < 0.95 * self.offered_per_second


def predict(
    topology: Topology, locks: Sequence[str], cores: Sequence[int], b: int | None = None
) -> Iterator[Prediction]:
    """Every strategy on every number of cores. Raises `ValueError` as `simulate`."""
    for count in cores:
        for name in locks:
            yield predict_one(topology, name, count, SEED.likely_b if b is None else b)


def predict_one(topology: Topology, locks: str, cores: int, b: int) -> Prediction:
    """The seed workload under one lock on so many cores: saturated, at an offered load, and through a storm."""
    offered = 1e9 * LOAD * cores / (SEED.work_ns + SEED.hold_ns)
    operations = max(OPERATIONS, 16 * cores)
    through_a_storm = max(OPERATIONS, int(offered * STORM_NS / 1e9))
    return Prediction(
        locks,
        cores,
        b,
        offered,
        simulate(topology, locks, cores, SEED, b=b, operations=operations),
        simulate(topology, locks, cores, replace(SEED, load=LOAD), b=b, operations=operations),
        simulate(topology, locks, cores, replace(STORM, load=LOAD), b=b, operations=through_a_storm),
    )
