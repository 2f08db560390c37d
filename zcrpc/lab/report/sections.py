"""A section of the page: a question, what the data say to it, and the drawings that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from markupsafe import Markup

from zcrpc.lab.report import plots
from zcrpc.lab.report.figures import Case, Spread, by, duration, machine_line, number
from zcrpc.lab.report.plots import Bar, Ladder, Style

T = TypeVar("T")
Look = Callable[[str], Style]

MOST_SERIES: Final = 20  # in one drawing; there are 14 strategies, and plugins
MOST_PANELS: Final = 8
_PERCENTILES: Final = ("p50", "p99", "p999", "max")
_SAID: Final = {"p50": "p50", "p99": "p99", "p999": "p99.9", "max": "max"}


@dataclass(slots=True, frozen=True)
class Panel:
    """A drawing under its title; the title says what tells it from the section's others."""

    title: str
    drawing: Markup


@dataclass(slots=True, frozen=True)
class Entry:
    """A line of the legend."""

    name: str
    swatch: Markup


@dataclass(slots=True, frozen=True)
class Section:
    """Args:
    anchor: its name in the page's address.
    finding: what there is to see, computed from the data; a line for each case.
    caption: what was measured, and how.
    table: a heading and rows, where words and numbers say more than a drawing.
    """

    anchor: str
    question: str
    finding: list[str]
    caption: str
    panels: list[Panel] = field(default_factory=list)
    legend: list[Entry] = field(default_factory=list)
    table: tuple[list[str], list[list[str]]] | None = None


@dataclass(slots=True, frozen=True)
class Missing:
    """A question that none of the files answers, and the command whose results would answer it."""

    question: str
    command: str


def panels(cases: Sequence[Case[T]], draw: Callable[[Case[T]], Markup]) -> list[Panel]:
    """A panel for each case, as far as there is room, and something to draw."""
    drawn = [Panel(case.title, draw(case)) for case in cases[:MOST_PANELS]]
    return [panel for panel in drawn if panel.drawing]


def left_out(cases: Sequence[Case[T]], most_series: int) -> str:
    """What the drawings do not show, as a sentence, or nothing."""
    text = ""
    if len(cases) > MOST_PANELS:
        text += f" {len(cases) - MOST_PANELS} more conditions are in the table of figures only."
    if most_series > MOST_SERIES:
        text += f" {most_series - MOST_SERIES} more series are in the table of figures only."
    return text


def findings(cases: Sequence[Case[T]], say: Callable[[list[T]], str], most: int = 4) -> list[str]:
    """What there is to see in each of the first few cases."""
    said = []
    for case in cases[:most]:
        text = say(case.rows)
        if text:
            said.append(f"{_capital(case.title)}: {text}" if case.title else _capital(text))
    return said


def measured_on(cases: Sequence[Case[T]]) -> str:
    """The machines, as the end of a caption."""
    lines = dict.fromkeys(machine_line(case.machine) for case in cases)
    return " Measured on " + "; and on ".join(lines) + "."


def rounds(rows: Sequence[object]) -> str:
    """How many rounds there were, and what is shown of them."""
    count = len({getattr(row, "round", 0) for row in rows})
    return "One round" if count == 1 else f"Medians of {count} rounds; thin lines are the range over them"


def medians(rows: Iterable[T], name: str, figure: Callable[[T], float]) -> dict[str, float]:
    """The median of a figure for each value of a field."""
    return {key: Spread.of(map(figure, group)).median for key, group in by(rows, name).items()}


def extremes(named: Mapping[str, float], unit: str = "", say: Callable[[float], str] = number) -> str:
    """Up to three figures with their names; of more the lowest and the highest."""
    if len(named) <= 3:
        return ", ".join(f"{say(value)}{unit} with {name}" for name, value in named.items())
    low, high = min(named, key=lambda name: named[name]), max(named, key=lambda name: named[name])
    return f"from {say(named[low])}{unit} with {low} to {say(named[high])}{unit} with {high}"


def series(rows: Iterable[T], name: str, look: Look) -> list[tuple[str, list[T]]]:
    """Rows by a field, in the same order everywhere, as far as there is room."""
    return sorted(by(rows, name).items(), key=lambda item: look(item[0]).index)[:MOST_SERIES]


def bars(rows: Iterable[T], name: str, figure: Callable[[T], float], look: Look, *, unit: str, alt: str) -> Markup:
    """A bar for each value of a field."""
    drawn = [Bar(key, look(key), Spread.of(map(figure, group)), unit) for key, group in series(rows, name, look)]
    return plots.bars(drawn, alt=alt)


def ladders(rows: Iterable[T], name: str, prefix: str, look: Look, *, alt: str) -> Markup:
    """A distribution for each value of a field, from fields such as `<prefix>_p99_us`."""
    drawn = []
    for key, group in series(rows, name, look):
        rungs = [Spread.of(getattr(row, f"{prefix}_{part}_us") for row in group) for part in _PERCENTILES]
        drawn.append(Ladder(key, f"p99.9 {duration(rungs[2].median)}", look(key), rungs))
    return plots.ladders(drawn, x="µs", alt=alt)


def percentile_legend() -> list[Entry]:
    """The marks of a ladder."""
    signs = zip(_PERCENTILES, plots.MARKS, strict=True)
    return [Entry(_SAID[part], plots.swatch(Style(0), mark=mark, line=False)) for part, mark in signs]


def series_legend(names: Iterable[str], look: Look) -> list[Entry]:
    """The signs of the series."""
    order = sorted(set(names), key=lambda name: look(name).index)
    return [Entry(name, plots.swatch(look(name))) for name in order[:MOST_SERIES]]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
