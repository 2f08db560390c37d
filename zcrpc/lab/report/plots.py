"""Drawings, as SVG that stands in the page itself: it scales, and takes its colours and its font from the page.

A drawing is as wide as a phone in portrait, in units of a phone's pixels, so that its text is as large there as any
other; what would not fit stands outside: titles and legends are the page's. Texts are drawn as they are, never as
mathematics: names of strategies come from plugins and from files.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from zcrpc.lab.report.figures import Spread, number

Tick = Callable[[float], str]

WIDTH: Final = 350  # units; with the page's margins, a phone's 390 pixels
_TEXT: Final = 16
_UNITS_PER_INCH: Final = 72  # matplotlib's SVG has a point as its unit
_ROW_CHARACTERS: Final = 35  # of a name and its figure together, of average width; our longest name has 22
_TICK_CHARACTERS: Final = 36  # of all ticks below a drawing
_RANGE: Final = 1e9  # of a logarithmic axis; what is smaller stands at its end
_ROW: Final = 42  # of bars and ladders: a line of text and what is below it

# The page has the colours under these names, for light and dark; the first is that of the text. They were searched for
# so that any two differ by 14 (100 × distance in OKLab) or more, for readers with any colour vision.
COLOURS: Final = {
    "--text": "#1a1a1a",
    "--c1": "#359bd9",
    "--c2": "#bb3a6d",
    "--c3": "#a5931b",
    "--c4": "#5550c0",
    "--c5": "#18460c",
    "--c6": "#5e006f",
}
_GRID: Final = {"--grid": "#d8d8d8", "--faint": "#5f6368", "--paper": "#fefefe"}
_PALETTE: Final = tuple(COLOURS.values())
_MARKERS: Final = "osD^vPX*<>ph"
_DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)))
MARKS: Final = ("|", "o", "D", "s")  # of a ladder: from the median to the maximum
_SVG: Final = "{http://www.w3.org/2000/svg}"
_LONG_NUMBER: Final = re.compile(r"-?\d+\.\d{3,}")
_LINK: Final = "{http://www.w3.org/1999/xlink}href"

_SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zcrpc",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # wider than what the page will have: nothing is cut off
    "font.size": _TEXT,
    "axes.labelsize": _TEXT,
    "xtick.labelsize": _TEXT,
    "ytick.labelsize": _TEXT,
    "text.color": COLOURS["--text"],
    "axes.labelcolor": COLOURS["--text"],
    "axes.edgecolor": _GRID["--faint"],
    "xtick.color": _GRID["--faint"],
    "ytick.color": _GRID["--faint"],
    "xtick.labelcolor": COLOURS["--text"],
    "ytick.labelcolor": COLOURS["--text"],
    "grid.color": _GRID["--grid"],
    "xtick.major.pad": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "lines.linewidth": 2,
    "lines.markersize": 7,
}


@dataclass(slots=True, frozen=True)
class Style:
    """How a series looks: by its number, in colour, in its mark and in its dashes."""

    index: int

    @property
    def colour(self) -> str:
        return _PALETTE[self.index % len(_PALETTE)]

    @property
    def marker(self) -> str:
        return _MARKERS[self.index % len(_MARKERS)]

    @property
    def dash(self) -> Any:
        return _DASHES[self.index // len(_PALETTE) % len(_DASHES)]


@dataclass(slots=True, frozen=True)
class Line:
    """A series. `loose`: marks without a line, for what was measured beside what was predicted."""

    name: str
    style: Style
    points: list[tuple[float, Spread]]
    loose: bool = False


@dataclass(slots=True, frozen=True)
class Bar:
    """A figure with its name; `unit` follows the number."""

    name: str
    style: Style
    value: Spread
    unit: str = ""


@dataclass(slots=True, frozen=True)
class Ladder:
    """A distribution: its percentiles, from the median to the maximum, each with its spread; `figure` is said of it."""

    name: str
    figure: str
    style: Style
    rungs: list[Spread]


@dataclass(slots=True, frozen=True)
class Pair:
    """A figure that was measured, with its range, and what had been predicted."""

    style: Style
    measured: Spread
    predicted: float


def lines(series: Sequence[Line], *, x: str, y: str, alt: str, tick: Tick | None = None, even: bool = False) -> Markup:
    """Lines over `x`; error bars are the range over the rounds. Axes are logarithmic where values are far apart.

    Nothing is drawn where there are no points.

    Args:
        x, y: what stands along the axes; the unit of `y` gets "million " and the like before it.
        alt: what the drawing is, for those who do not see it.
        tick: writes a value of `x`.
        even: the values of `x` stand at equal distances.
    """
    if not any(line.points for line in series):
        return Markup()
    with _figure(300) as (figure, axes):
        xs = sorted({at for line in series for at, _ in line.points})
        where = {at: float(place) if even else at for place, at in enumerate(xs)}
        values = [s for line in series for _, s in line.points]
        high = max(s.high for s in values)
        low = max(min((s.median for s in values if s.median > 0), default=high), high / _RANGE)
        divisor, word = _unit(high)
        if even:
            _name_places(axes, [(tick or _tick)(at) for at in xs])
        else:
            _scale_x(axes, xs, tick or _tick)
        floor = _scale_y(axes, low / divisor, high / divisor)
        for line in reversed(series):  # the first is on top
            _draw_line(axes, line, where, divisor, floor)
        axes.set_xlabel(x)
        axes.set_title(f"{word}{y}", loc="left", fontsize=_TEXT, x=0, pad=10, ha="left")
        return _svg(figure, alt)


def bars(rows: Sequence[Bar], *, alt: str) -> Markup:
    """Bars from zero, each with its name and figure above it; a thin line is the range over the rounds."""
    with _figure(_ROW * len(rows) + 8) as (figure, axes):
        longest = max((row.value.high for row in rows), default=0) or 1
        _rows(axes, [(row.name, f"{row.value}{row.unit}") for row in rows])
        for place, row in enumerate(rows):
            value, colour = row.value, row.style.colour
            axes.barh(place + 0.22, value.median / longest, height=0.3, color=colour, align="center")
            if value.high - value.low > 0.02 * longest:  # of the width; less is not to be seen
                ends = [value.low / longest, value.high / longest]
                axes.plot(ends, [place + 0.22] * 2, color=_GRID["--paper"], linewidth=4)
                axes.plot(ends, [place + 0.22] * 2, color=COLOURS["--text"], linewidth=1.5)
        axes.set_xlim(-0.005, 1.02)
        axes.xaxis.set_visible(False)
        axes.axvline(0, color=_GRID["--faint"], linewidth=1)
        return _svg(figure, alt)


def ladders(rows: Sequence[Ladder], *, x: str, alt: str) -> Markup:
    """Distributions on a logarithmic axis: a mark for each percentile; a thin line is its range over the rounds."""
    with _figure(_ROW * len(rows) + 62) as (figure, axes):
        values = [s for row in rows for s in row.rungs]
        positive = [s.median for s in values if s.median > 0]
        high = max((s.high for s in values), default=0.0)
        low = max(min(positive, default=1.0), high / _RANGE)
        axes.set_xscale("log")
        start = 10.0 ** math.floor(math.log10(low) - 0.05)
        end = 10.0 ** math.ceil(math.log10(max(high, 2 * low)) + 0.02)
        axes.set_xlim(start, end)
        _decades(axes.xaxis, start, end, 4)
        _rows(axes, [(row.name, row.figure) for row in rows])
        for place, row in enumerate(rows):
            _draw_ladder(axes, place + 0.22, row, start)
        axes.set_xlabel(x)
        return _svg(figure, alt)


def parity(pairs: Sequence[Pair], *, tolerance: float, x: str, y: str, alt: str) -> Markup:
    """Predicted over measured on logarithmic axes, with the diagonal, and a band that is `tolerance` wide."""
    with _figure(330) as (figure, axes):
        values = [v for pair in pairs for v in (pair.measured.median, pair.predicted) if v > 0]
        high = max(values, default=1.0) * 1.6
        low = max(min(values, default=1.0) / 1.6, high / _RANGE)
        axes.fill_between(
            [low, high],
            [low * (1 - tolerance), high * (1 - tolerance)],
            [low * (1 + tolerance), high * (1 + tolerance)],
            color=_GRID["--grid"],
            linewidth=0,
        )
        axes.plot([low, high], [low, high], color=_GRID["--faint"], linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for pair in pairs:
            at = max(pair.measured.median, low)
            whiskers = [[max(at - pair.measured.low, 0)], [max(pair.measured.high - at, 0)]]
            axes.errorbar(
                [at], [max(pair.predicted, low)], xerr=whiskers, fmt=pair.style.marker, color=pair.style.colour
            )
        for axis in (axes.xaxis, axes.yaxis):
            _decades(axis, low, high, 4)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel(x)
        axes.set_title(y, loc="left", fontsize=_TEXT, x=0, pad=10, ha="left")
        return _svg(figure, alt)


def swatch(style: Style, *, mark: str | None = None, line: bool = True) -> Markup:
    """A legend's sign for a series."""
    shape = MarkerStyle(mark or style.marker)
    polygons: Any = shape.get_path().transformed(shape.get_transform()).to_polygons(closed_only=False)
    outline = " ".join("M" + " L".join(f"{10 * at:.1f},{-10 * up:.1f}" for at, up in polygon) for polygon in polygons)
    colour = "var(--text)" if mark else _variable(style.colour)
    dash = "" if isinstance(style.dash, str) else ",".join(str(length) for length in style.dash[1])
    stroke = f'<path d="M-16,0 L16,0" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>' if line else ""
    return Markup(
        f'<svg class="swatch" viewBox="-18 -9 36 18" aria-hidden="true">{stroke}'
        f'<path d="{outline}" fill="{colour}" stroke="{colour}" stroke-width="2"/></svg>'
    )


# ---- what drawings share ----


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """A drawing of so many units, whatever a user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        cast("dict[str, Any]", matplotlib.rcParams).update(_SETTINGS)
        inches = (WIDTH / _UNITS_PER_INCH, height / _UNITS_PER_INCH)
        figure = Figure(figsize=inches, layout=ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=4 / 72))
        axes = figure.subplots()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        yield figure, axes


def _draw_line(axes: Axes, line: Line, where: Mapping[float, float], divisor: float, floor: float) -> None:
    points = sorted(line.points, key=lambda point: point[0])
    heights = [max(s.median / divisor, floor) for _, s in points]
    below = [max(at - max(s.low / divisor, floor), 0) for at, (_, s) in zip(heights, points, strict=True)]
    above = [max(s.high / divisor - at, 0) for at, (_, s) in zip(heights, points, strict=True)]
    axes.errorbar(
        [where[at] for at, _ in points],
        heights,
        yerr=[below, above],
        color=line.style.colour,
        marker=line.style.marker,
        linestyle="none" if line.loose else line.style.dash,
        markersize=11 if line.loose else 7,
        markeredgecolor=COLOURS["--text"] if line.loose else line.style.colour,
        elinewidth=1.2,
        capsize=3,
        zorder=4 if line.loose else 3,
    )


def _draw_ladder(axes: Axes, at: float, row: Ladder, start: float) -> None:
    places = [max(s.median, start) for s in row.rungs]
    colour = row.style.colour
    axes.plot([places[0], places[-1]], [at, at], color=colour, linewidth=3, solid_capstyle="butt")
    for mark, place, spread in zip(MARKS, places, row.rungs, strict=True):
        if spread.count > 1:
            ends = [max(spread.low, start), max(spread.high, start)]
            axes.plot(ends, [at, at], color=_GRID["--faint"], linewidth=1, marker="|", markersize=5)
        size, edge = (16, 3) if mark == "|" else (8, 0.5)
        axes.plot([place], [at], color=colour, marker=mark, markersize=size, markeredgewidth=edge, clip_on=False)


def _rows(axes: Axes, named: Sequence[tuple[str, str]]) -> None:
    """A row for each: its name and its figure, above where it will be drawn."""
    place_and_across = axes.get_yaxis_transform()
    for place, (name, figure) in enumerate(named):
        axes.text(
            0.01,
            place - 0.18,
            _shortened(name, _ROW_CHARACTERS - len(figure)),
            transform=place_and_across,
            va="center",
            ha="left",
        )
        axes.text(1, place - 0.18, figure, transform=place_and_across, va="center", ha="right")
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _shortened(name: str, room: int) -> str:
    return name if len(name) <= room else name[: max(room - 1, 1)] + "…"


def _scale_x(axes: Axes, xs: Sequence[float], tick: Tick) -> None:
    """Ticks at the values themselves, as far as there is room; by doubling where they are far apart."""
    positive = [at for at in xs if at > 0]
    far = len(positive) == len(xs) and xs[-1] >= 6 * xs[0]
    if far:
        axes.set_xscale("log", base=2)
    shown = xs[:: math.ceil(sum(len(tick(at)) + 2 for at in xs) / _TICK_CHARACTERS)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: tick(at)))
    margin = 1.25 if far else 0.15 * (xs[-1] - xs[0]) or 0.5
    axes.set_xlim(*((xs[0] / margin, xs[-1] * margin) if far else (xs[0] - margin, xs[-1] + margin)))


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """A tick with a name at 0, 1, 2 …"""
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.3, len(names) - 0.7)


def _scale_y(axes: Axes, low: float, high: float) -> float:
    """From zero, or logarithmic where values are far apart. Returns the lowest height that can be drawn."""
    if high <= 0:
        axes.set_ylim(0, 1)
        return 0.0
    if high < 20 * low:
        axes.set_ylim(0, 1.08 * high)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda at, _: _tick(at)))
        return 0.0
    axes.set_yscale("log")
    floor = low / 1.3
    axes.set_ylim(floor, 1.3 * high)
    _decades(axes.yaxis, floor, high, 6)
    return floor


def _decades(axis: Any, low: float, high: float, most: int) -> None:
    """Ticks at powers of ten, or at 1, 2 and 5 where those are few."""
    few = math.log10(high / low) < 1.8
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if few else (1,), numticks=2 * most if few else most))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda at, _: _tick(at)))


def _tick(at: float) -> str:
    for divisor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(at) >= divisor:
            return f"{at / divisor:g}{suffix}"
    return f"{at:g}"


def binary(size: float) -> str:
    """Bytes in the largest unit of 1024 that divides them, for names and ticks."""
    for divisor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= divisor and size % divisor == 0:
            return f"{size // divisor:g} {unit}"
    return f"{number(size)} B"


def _unit(high: float) -> tuple[float, str]:
    for divisor, word in ((1e9, "billion "), (1e6, "million "), (1e4, "thousand ")):
        if high >= divisor:
            return (1e3 if divisor == 1e4 else divisor), word
    return 1.0, ""


# ---- SVG ----


def _svg(figure: Figure, alt: str) -> Markup:
    """The drawing as an element of the page: without a size of its own, colours by name, and nothing superfluous."""
    figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
    figure.set_layout_engine("none")  # once is enough: saving would do it again, and draw all of it twice
    raw = io.BytesIO()
    figure.savefig(raw, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(raw.getvalue())
    used = _references(root)
    for element in root.iter():
        _adapt(element, used)
    _prune(root)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": alt, "class": "drawing"}
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _LINK[1:].partition("}")[0])
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(root: ElementTree.Element) -> set[str]:
    """The ids that something refers to."""
    found = set()
    for element in root.iter():
        found.add(element.get(_LINK, "").removeprefix("#"))
        found.add(element.get("clip-path", "").removeprefix("url(#").removesuffix(")"))
    return found


def _adapt(element: ElementTree.Element, used: set[str]) -> None:
    """Colours by name, the page's font, ids only where used, coordinates to a hundredth."""
    attributes = element.attrib
    if attributes.get("id") not in used:
        attributes.pop("id", None)
    if "style" in attributes:
        kept = [part.strip() for part in attributes["style"].split(";") if not part.strip().startswith("font")]
        attributes["style"] = ";".join(_named(part) for part in kept if part)
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    for name in {"d", "x", "y", "transform", "width", "height"} & attributes.keys():
        attributes[name] = " ".join(_LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", attributes[name]).split())
    if element.tag != f"{_SVG}text" and not (element.text or "").strip():
        element.text = None
    element.tail = None


def _prune(parent: ElementTree.Element) -> None:
    """Removes what is not seen, and groups that say nothing of what is in them."""
    children: list[ElementTree.Element] = []
    for child in parent:
        _prune(child)
        if child.tag == f"{_SVG}metadata" or child.get("style") == "fill:none":
            continue
        if child.tag == f"{_SVG}defs" and child.find(f"{_SVG}style") is not None:  # it would be the whole page's
            continue
        children.extend(child if child.tag == f"{_SVG}g" and not child.attrib else [child])
    parent[:] = children


def _named(declaration: str) -> str:
    name, _, value = declaration.partition(":")
    return f"{name}:{_variable(value.strip())}"


def _variable(colour: str) -> str:
    for name, value in (*COLOURS.items(), *_GRID.items()):
        if colour == value:
            return f"var({name})"
    return colour


def styles(names: Iterable[str], known: Sequence[str]) -> Callable[[str], Style]:
    """A style for each name: names that are known keep theirs in every report, others follow."""
    order = {name: place for place, name in enumerate(dict.fromkeys([*known, *names]))}
    return lambda name: Style(order[name])
