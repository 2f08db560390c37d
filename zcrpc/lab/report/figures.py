"""Medians with their spread, and rows put together by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Generic, TypeVar

from zcrpc.lab.report.kinds import Kind
from zcrpc.lab.report.reading import Placed
from zcrpc.lab.results import Machine
from zcrpc.lab.tables import short

T = TypeVar("T")

MOST_LINES: Final = 6_000  # of all tables of figures together, so that the page stays below 2 MB


@dataclass(slots=True, frozen=True)
class Spread:
    """The median of so many values, and their range."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises `statistics.StatisticsError` if there are none."""
        found = list(values)
        return cls(median(found), min(found), max(found), len(found))

    @property
    def half_range(self) -> float:
        """Half of the distance from the lowest to the highest value."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """The median ± half of the range, if there is one, with as many decimals."""
        middle = number(self.median)
        decimals = len(middle.partition(".")[2])
        exact = middle[-1:].isdigit() and 0 < self.half_range < 1000
        half = f"{self.half_range:.{decimals}f}" if exact else number(self.half_range)
        return f"{middle} ±{half}" if self.half_range else middle


def number(value: float) -> str:
    """Three digits or two decimals; smaller ones with one digit: 96.5k, 0.37, 0.004, -3.10. Counts as they are: 6."""
    if value < 0:
        return f"-{number(-value)}"
    if isinstance(value, int) and value < 1000:
        return str(value)
    if value >= 1e9:
        return f"{value:.3g}"
    return f"{value:.1g}" if 0 < value < 0.01 else short(value)


def duration(us: float) -> str:
    """A time that was measured in µs, in the unit in which it is read most easily."""
    for limit, divisor, unit in ((1e6, 1e6, "s"), (1e3, 1e3, "ms")):
        if us >= limit:
            return f"{number(us / divisor)} {unit}"
    return f"{number(us)} µs"


@dataclass(slots=True, frozen=True)
class Case(Generic[T]):
    """Rows that belong in one plot: measured on one machine, under the same conditions."""

    machine: Machine
    title: str  # what tells it from the other cases; may be empty
    rows: list[T]


def cases(rows: Iterable[tuple[Machine, T]], *conditions: Callable[[T], str]) -> list[Case[T]]:
    """Splits rows by machine and by what each condition says of them; where that differs, it is in the titles."""
    found: dict[tuple[Any, ...], list[T]] = {}
    for machine, row in rows:
        found.setdefault((*(say(row) for say in conditions), machine), []).append(row)
    varies = [len({key[place] for key in found}) > 1 for place in range(1 + len(conditions))]
    result = []
    for key, members in found.items():
        sayings = [*key[:-1], machine_line(key[-1])]
        said = [text for text, differs in zip(sayings, varies, strict=True) if differs and text]
        result.append(Case(key[-1], ", ".join(said), members))
    return result


def by(rows: Iterable[T], *fields: str) -> dict[Any, list[T]]:
    """Rows by a field's value, or by a tuple of values, in the order in which those come first."""
    found: dict[Any, list[T]] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in fields)
        found.setdefault(key[0] if len(fields) == 1 else key, []).append(row)
    return found


def machine_line(machine: Machine) -> str:
    """A machine in a few words."""
    memory = f"{machine.memory_bytes / (1 << 30):.3g} GiB"
    cpus = "1 CPU" if machine.cpus == 1 else f"{machine.cpus} CPUs"
    return f"Linux {machine.kernel}, {cpus}, {machine.processor} ({machine.architecture}), {memory}"


@dataclass(slots=True, frozen=True)
class Group:
    """The figures of rows that were measured alike: (field, spread) each."""

    settings: list[tuple[str, str]]
    lines: list[tuple[str, Spread]]


@dataclass(slots=True, frozen=True)
class FigureTable:
    """The figures of a kind on one machine. `left_out`: groups for which there was no room."""

    title: str
    machine: Machine
    common: list[tuple[str, str]]  # settings in which all groups agree
    groups: list[Group]
    left_out: int


def tables(rows: Mapping[str, Sequence[Placed]], kinds: Mapping[str, Kind]) -> list[FigureTable]:
    """Every figure of every kind with its spread."""
    result = []
    room = MOST_LINES
    for name, placed in rows.items():
        for machine in dict.fromkeys(each.machine for each in placed):
            table = _table(kinds[name], machine, [each.row for each in placed if each.machine == machine], room)
            room -= sum(len(group.lines) for group in table.groups)
            result.append(table)
    return result


def _table(kind: Kind, machine: Machine, rows: Sequence[Any], room: int) -> FigureTable:
    pooled: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        pooled.setdefault(tuple(getattr(row, name) for name in kind.settings), []).append(row)
    alike = [len({key[place] for key in pooled}) == 1 for place in range(len(kind.settings))]
    groups = []
    for key, members in pooled.items():
        lines = _lines(kind, members)
        room -= len(lines)
        if room < 0:
            break
        pairs = zip(kind.settings, key, alike, strict=True)
        groups.append(Group([(name, str(value)) for name, value, same in pairs if not same], lines))
    first = next(iter(pooled))
    common = [(name, str(value)) for name, value, same in zip(kind.settings, first, alike, strict=True) if same]
    return FigureTable(kind.title, machine, common, groups, len(pooled) - len(groups))


def _lines(kind: Kind, rows: Sequence[Any]) -> list[tuple[str, Spread]]:
    lines = []
    for name in kind.figures():
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if values:
            lines.append((name, Spread.of(values)))
    return lines
