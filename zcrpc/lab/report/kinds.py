"""The kinds of results that the report knows: what a row is, and which of its fields say what was measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from zcrpc.lab import bench, kernel
from zcrpc.lab.conflicts import Conflict
from zcrpc.lab.seed import Round
from zcrpc.lab.simulate.published import Check
from zcrpc.lab.simulate.workload import Outcome
from zcrpc.lab.torture import Tortured
from zcrpc.lab.upload import Upload


@dataclass(slots=True, frozen=True)
class Predicted(Outcome):
    """A row of `zcrpc lab simulate`: an outcome, and what was simulated. Per second and in ns, as `Outcome` says."""

    scenario: str
    topology: str
    b: int
    cores: int
    offered_per_second: float | None


@dataclass(slots=True, frozen=True)
class Kind:
    """A kind of results.

    Args:
        settings: fields that say what was measured; rows that agree in them are pooled. The other numbers are figures.
        ignored: fields that are neither.
        command: what makes such results.
    """

    name: str
    title: str
    row: type[Any]
    settings: tuple[str, ...]
    command: str
    ignored: tuple[str, ...] = ("round",)

    def figures(self) -> list[str]:
        """The names of the fields that are figures."""
        others = {*self.settings, *self.ignored}
        numbers = ("int", "float", "int | None", "float | None")
        return [each.name for each in dataclasses.fields(self.row) if each.name not in others and each.type in numbers]


_SEED = Kind(
    "seed",
    "Requests to a live server",
    Round,
    (
        "scenario",
        "strategy",
        "connections",
        "payload_bytes",
        "receive_threads",
        "connections_per_region",
        "receive",
        "writer_interval_us",
        "writer_hold_us",
        "writer_busy",
    ),
    "zcrpc lab seed --json seed.json",
    ignored=("round", "seconds"),
)
_UPLOAD = Kind(
    "upload",
    "Uploads from Python to Python",
    Upload,
    ("receive", "payload_bytes"),
    "zcrpc lab upload --payload 16384,262144,4194304 --rounds 3 --json upload.json",
    ignored=("seconds",),
)
_BENCH = Kind(
    "bench",
    "The lock benchmark",
    bench.Row,
    ("loop", "layout", "threads", "regions", "hold_ns", "write_percent", "pinned", "strategy"),
    "zcrpc lab bench --json bench.json",
    ignored=("round", "seconds"),
)
_TORTURE = Kind(
    "torture",
    "Torture",
    Tortured,
    ("strategy", "readers", "writers", "seed"),
    "zcrpc lab torture --locks all --json torture.json",
)
_KERNEL = Kind(
    "kernel",
    "The kernel's lock",
    kernel.Round,
    ("strategy", "kernel", "emulated", "writer", "receivers", "payload_bytes", "area_mib"),
    "zcrpc lab kernel --json kernel.json",
    ignored=("round", "seconds"),
)
_CONFLICTS = Kind(
    "conflicts",
    "Conflicts",
    Conflict,
    ("strategy", "way"),
    "make build/results/conflicts.json, from the sources",
)
_SIMULATE = Kind(
    "simulate",
    "Predictions",
    Predicted,
    ("scenario", "topology", "b", "cores", "locks", "threads"),
    "zcrpc lab simulate --json simulate.json",
)
_VALIDATION = Kind(
    "simulate-validation",
    "The model against what was measured",
    Check,
    ("series", "threads", "unit", "verdict"),
    "zcrpc lab simulate --validate --json validation.json",
)

_ALL = (_SEED, _UPLOAD, _BENCH, _KERNEL, _TORTURE, _CONFLICTS, _SIMULATE, _VALIDATION)
KINDS: Final = {kind.name: kind for kind in _ALL}
