"""Results files as rows with types. What cannot be used is named and left out, the rest is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from zcrpc.lab import results
from zcrpc.lab.report.kinds import KINDS, Kind
from zcrpc.lab.results import Machine, Results, UnreadableResults

T = TypeVar("T")

LARGEST: Final = 1e20  # of any figure: counts have 64 bits
LONGEST_NAME: Final = 200  # characters
LONGEST_TEXT: Final = 1000  # characters; what torture says of a violation has some hundred
NAMED_ROWS: Final = 3  # unusable rows of a file that are described one by one


@dataclass(slots=True, frozen=True)
class Source:
    """A results file that was read."""

    path: Path
    kind: str
    when: str
    machine: Machine
    rows: int


@dataclass(slots=True, frozen=True)
class Placed:
    """A row, and the machine that it was measured on."""

    machine: Machine
    row: Any


@dataclass(slots=True)
class Collection:
    """All that could be read: the files, the rows of each kind, and what is wrong with the others."""

    sources: list[Source] = field(default_factory=list)
    rows: dict[str, list[Placed]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str, row: type[T]) -> list[tuple[Machine, T]]:
        """The rows of a kind, each with its machine."""
        return [(each.machine, each.row) for each in self.rows.get(kind, []) if isinstance(each.row, row)]

    def machines(self) -> list[Machine]:
        """Every machine once, in the order of the files."""
        return list(dict.fromkeys(machine_of(source.machine) for source in self.sources))


def read(paths: Sequence[Path]) -> Collection:
    """Reads results files; a file that is named twice is read once."""
    found = Collection()
    for path in dict.fromkeys(paths):
        try:
            _add(found, path, results.read(path))
        except UnreadableResults as error:
            found.problems.append(str(error))
    return found


def machine_of(machine: Machine) -> Machine:
    """The machine itself: with which Python and zcrpc it measured does not make it another one."""
    return dataclasses.replace(machine, python="", zcrpc="")


def _add(found: Collection, path: Path, read: Results) -> None:
    kind = KINDS.get(read.kind)
    if kind is None:
        found.problems.append(f"{path} is of the kind {_cut(read.kind)!r}, which this version does not know")
        return
    if not read.rows:
        found.problems.append(f"{path} has no rows")
        return
    machine = _cut_machine(read.machine)
    rows = [Placed(machine_of(machine), row) for row in _convert(path, kind, read.rows, found.problems)]
    if rows:
        found.sources.append(Source(path, kind.name, f"{read.when:%Y-%m-%d %H:%M} UTC", machine, len(rows)))
        found.rows.setdefault(kind.name, []).extend(rows)


def _convert(path: Path, kind: Kind, rows: Iterable[dict[str, Any]], problems: list[str]) -> Iterator[Any]:
    unusable = 0
    for number, row in enumerate(rows, 1):
        try:
            yield _usable(msgspec.convert(row, kind.row))
        except ValueError as error:  # msgspec.ValidationError too
            unusable += 1
            if unusable <= NAMED_ROWS:
                problems.append(f"{path}: row {number} is not usable: {error}")
    if unusable > NAMED_ROWS:
        problems.append(f"{path}: {unusable - NAMED_ROWS} more rows are not usable")


def _usable(row: Any) -> Any:
    for each in dataclasses.fields(row):
        value = getattr(row, each.name)
        if isinstance(value, int | float) and not abs(value) <= LARGEST:  # nor is NaN
            raise ValueError(f"{each.name} is no possible figure")
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise ValueError(f"{each.name} is longer than {LONGEST_TEXT} characters")
    return row


def _cut_machine(machine: Machine) -> Machine:
    return dataclasses.replace(
        machine,
        kernel=_cut(machine.kernel),
        architecture=_cut(machine.architecture),
        processor=_cut(machine.processor),
        python=_cut(machine.python),
        zcrpc=_cut(machine.zcrpc),
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "…"
