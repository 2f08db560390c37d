"""Machines: how long a cache line takes from one CPU to another.

A topology is a tree of equal groups (siblings in a core, cores in a socket, …). Two CPUs are as far apart as the
smallest group that holds both. `rmw_ns` is one blind read-modify-write on a line that the other CPU owns;
`load_rmw_ns` is one that looks at the line first, which moves it twice: once to share it, once to own it.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

Nanoseconds = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
MOST_CPUS = 4096


class InvalidTopology(ValueError):
    """The file does not describe a machine; the message is one line and says why."""


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Groups of `cpus` CPUs; the costs are between two CPUs of one group, in different groups of the level below."""

    name: str
    cpus: int
    rmw_ns: Nanoseconds
    load_rmw_ns: Nanoseconds


class Topology(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine. `levels` go from the smallest group to the whole machine.

    `owned_ns` is an RMW on a line that the CPU owns already. `spread_over` names the level over whose groups threads
    are dealt out in turn, as the kernel's scheduler does; siblings are used last.
    """

    name: str
    source: str
    owned_ns: Nanoseconds
    spread_over: str
    levels: tuple[Level, ...]

    @property
    def cpus(self) -> int:
        return self.levels[-1].cpus

    def between(self, a: int, b: int) -> Level:
        """The smallest group that holds both CPUs."""
        for level in self.levels:
            if a // level.cpus == b // level.cpus:
                return level
        raise ValueError(f"{self.name} has CPUs 0 to {self.cpus - 1}, not {max(a, b)}")

    def placement(self, threads: int) -> list[int]:
        """A CPU for each thread: groups of `spread_over` in turn, cores before siblings, each CPU once.

        Raises `ValueError` if there are more threads than CPUs.
        """
        if not 1 <= threads <= self.cpus:
            raise ValueError(f"{self.name} has 1 to {self.cpus} CPUs, not {threads}")
        group = next(level.cpus for level in self.levels if level.name == self.spread_over)
        core = next((level.cpus for level in self.levels if level.name == "sibling"), 1)
        within = [start + sibling for sibling in range(core) for start in range(0, group, core)]
        by_turn = [base + offset for offset in within for base in range(0, self.cpus, group)]
        return by_turn[:threads]


def builtin(name: str = "xeon-8176") -> Topology:
    """A machine that comes with the package."""
    return parse(resources.files(__package__).joinpath("data", f"{name}.json").read_bytes(), name)


def read(path: Path) -> Topology:
    """A topology file, JSON. Raises `InvalidTopology`."""
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidTopology(f"cannot read {path}: {error.strerror}") from None


def parse(content: bytes, where: str) -> Topology:
    """Raises `InvalidTopology`, which names `where`."""
    try:
        machine = msgspec.json.decode(content, type=Topology)
    except msgspec.DecodeError as error:
        raise InvalidTopology(f"{where} is no topology: {error}") from None
    if complaint := _complaint(machine):
        raise InvalidTopology(f"{where} is no topology: {complaint}")
    return machine


def _complaint(machine: Topology) -> str | None:
    if not machine.levels:
        return "it has no levels"
    below = 1
    for level in machine.levels:
        if level.cpus <= below or level.cpus % below or level.cpus > MOST_CPUS:
            return f"level {level.name} has {level.cpus} CPUs, which is no larger multiple of {below} up to {MOST_CPUS}"
        below = level.cpus
    if machine.spread_over not in [level.name for level in machine.levels]:
        return f"spread_over names no level: {machine.spread_over}"
    return None
