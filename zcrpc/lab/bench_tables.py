"""The lock benchmark for people: tables of medians, and what they say of the strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from zcrpc.lab.bench import Layout, Loop, Row
from zcrpc.lab.tables import short

_LAYOUT: dict[Layout, str] = {"disjoint": "regions of their own", "hot": "one hot region"}
_SHOWN_PERCENT = 1.0  # the latency table is for the largest percentage of writes up to this
_SAMPLES_PER_999 = 1000  # with fewer samples, p99.9 is the maximum
_LEGEND = (
    "Throughput: closed loop, median ± half of the range. Late: from when a schedule had an operation begin until it "
    "was inside; medians, and the largest max of all rounds. Of the closed loop: jain, Jain's index of the threads' "
    "rates; overtaken, most reads that got in before a waiting writer; fell back, % of reads that took the map lock."
)


class _Section:
    """The rows of one number of threads, layout, hold and number of regions."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.first = rows[0]
        self.strategies = list(dict.fromkeys(row.strategy for row in rows))
        self.percents = sorted({row.write_percent for row in rows})

    def values(self, loop: Loop, strategy: str, percent: float, name: str) -> list[float]:
        asked = (loop, strategy, percent)
        return [getattr(row, name) for row in self._rows if (row.loop, row.strategy, row.write_percent) == asked]

    def has(self, loop: Loop) -> bool:
        return any(row.loop == loop for row in self._rows)

    def offered(self, percent: float) -> float:
        """Operations per second that the open loop's schedule had."""
        return max(row.offered_per_second for row in self._rows if row.write_percent == percent)

    @property
    def title(self) -> str:
        first = self.first
        threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
        regions = "" if first.layout == "hot" else f" ({first.regions})"
        hold = f", held {first.hold_ns:,} ns" if first.hold_ns else ""
        crowded = "" if first.pinned else ", more threads than cores"
        return f"{threads}, {_LAYOUT[first.layout]}{regions}{hold}{crowded}"


def _sections(rows: Sequence[Row]) -> list[_Section]:
    grouped: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.hold_ns, row.threads, row.layout, row.regions), []).append(row)
    return [_Section(each) for each in grouped.values()]


def report(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """Two tables for each section: throughput by percentage of writes; latency and fairness at one of them."""
    for section in _sections(rows):
        yield Text(section.title, style="bold")
        yield _throughput(section)
        yield Text()
        if section.has("open"):
            yield _latency(section)
            yield Text()
    yield Text(_LEGEND, style="dim")


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("", no_wrap=True)
    return table


def _throughput(section: _Section) -> Table:
    table = _table()
    table.columns[0].header = "M operations/s\nby writes"
    for percent in section.percents:
        table.add_column(f"\n{percent:g} %", justify="right", no_wrap=True)
    for strategy in section.strategies:
        cells = (section.values("closed", strategy, percent, "operations_per_second") for percent in section.percents)
        table.add_row(strategy, *(_with_spread([each / 1e6 for each in values]) for values in cells))
    return table


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ±{short((max(values) - min(values)) / 2)}" if len(values) > 1 else ""
    return short(median(values)) + spread


def _shown(section: _Section) -> float:
    rare = [percent for percent in section.percents if 0 < percent <= _SHOWN_PERCENT]
    return max(rare, default=section.percents[-1])


def _latency(section: _Section) -> Table:
    percent = _shown(section)
    table = _table()
    table.columns[0].header = f"µs late at {percent:g} %\nwrites, {short(section.offered(percent))}/s"
    for heading in ("read\np50", "\np99", "\np99.9", "\nmax", "write\np99.9", "\nmax"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("\njain", "over-\ntaken", "fell\nback"):
        table.add_column(heading, justify="right", no_wrap=True)
    for strategy in section.strategies:
        if section.values("open", strategy, percent, "reads"):
            table.add_row(strategy, *_latency_cells(section, strategy, percent))
    return table


def _latency_cells(section: _Section, strategy: str, percent: float) -> Iterator[str]:
    def of(loop: Loop, name: str, pick: Callable[[list[float]], float] = median) -> float:
        values = section.values(loop, strategy, percent, name)
        return pick(values) if values else 0.0

    for kind, shares in (("read", ("p50", "p99", "p999")), ("write", ("p999",))):
        samples = of("open", f"{kind}_samples")
        for share in shares:
            known = samples > (_SAMPLES_PER_999 if share == "p999" else 0)
            yield brief(of("open", f"{kind}_latency_{share}_us")) if known else "–"
        yield brief(of("open", f"{kind}_latency_max_us", max)) if samples else "–"
    yield f"{of('closed', 'jain'):.2f}"
    yield brief(of("closed", "longest_overtaking", max))
    yield brief(of("closed", "fallback_percent"))


def brief(value: float) -> str:
    """Two digits, in four characters at most: 0.037 is 0.04, 1,616 is 1.6k."""
    for limit, divisor, suffix in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        scaled = value / divisor
        if scaled < 0.995 and not suffix:
            return f"{scaled:.2f}" if value else "0"
        if value < limit * 0.9995:
            return f"{scaled:.1f}{suffix}" if scaled < 9.95 else f"{scaled:.0f}{suffix}"
    return f"{value / 1e9:.0f}G"


def conclusions(rows: Sequence[Row]) -> list[str]:
    """What the medians say, in a line each: who gains from a second thread, who wins on one hot region, and whose
    readers wait for writers."""
    said: list[str] = []
    sections = _sections(rows)
    alone = {
        (each.first.hold_ns, each.first.regions): each
        for each in sections
        if each.first.threads == 1 and each.first.layout == "disjoint"
    }
    for section in sections:
        one = alone.get((section.first.hold_ns, section.first.regions))
        if section.first.threads > 1 and section.first.layout == "disjoint" and one is not None:
            said.append(_scaling(section, one))
        if section.first.threads > 1 and len(section.strategies) > 1:
            said.append(_against_first(section))
    return [each for each in said if each]


def _rates(section: _Section, percent: float) -> dict[str, float]:
    found = {name: section.values("closed", name, percent, "operations_per_second") for name in section.strategies}
    return {name: median(values) for name, values in found.items() if values}


def _scaling(section: _Section, one: _Section) -> str:
    percent = section.percents[0]
    rates, before = _rates(section, percent), _rates(one, percent)
    ratios = {name: rates[name] / before[name] for name in rates if before.get(name)}
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(ratios.items(), key=lambda each: -each[1]))
    return f"{section.title}, {percent:g} % writes: throughput over that of 1 thread × {told}." if told else ""


def _against_first(section: _Section) -> str:
    """The best two against the first strategy named, by throughput; and by reader p99.9."""
    base, percent = section.strategies[0], section.percents[0]
    rates = _rates(section, percent)
    if len(rates) < 2 or not rates.get(base):
        return ""
    others = sorted((name for name in rates if name != base), key=lambda name: -rates[name])[:2]
    text = f"{section.title}, {percent:g} % writes: over {base}, "
    text += " and ".join(f"{name} does {rates[name] / rates[base]:.2f} × the operations" for name in others)
    return text + _tail(section, base) + "."


def _tail(section: _Section, base: str) -> str:
    percent = _shown(section)
    found = {name: section.values("open", name, percent, "read_latency_p999_us") for name in section.strategies}
    waits = {name: median(values) for name, values in found.items() if values}
    if percent == 0 or base not in waits:
        return ""
    best = min(waits, key=lambda name: waits[name])
    text = f"; at {percent:g} %, one read in a thousand is {brief(waits[base])} µs late or more"
    return text if best == base else f"{text}, with {best} {brief(waits[best])}"
