"""What the lock benchmark showed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from zcrpc.lab.bench import Row
from zcrpc.lab.report import plots
from zcrpc.lab.report.figures import Case, Spread, by, cases, duration
from zcrpc.lab.report.kinds import KINDS
from zcrpc.lab.report.plots import Line
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.report.sections import (
    Look,
    Missing,
    Section,
    extremes,
    findings,
    ladders,
    left_out,
    measured_on,
    medians,
    panels,
    percentile_legend,
    rounds,
    series,
    series_legend,
)
from zcrpc.lab.results import Machine

_THREADS = "Does throughput grow with threads?"
_WRITES = "What do writes cost?"
_LATENCY = "How long do readers wait while others write?"
_WRITERS = "How long do writers wait?"
_COMPARED = (0.0, 1.0)  # percent of writes for which scaling is drawn, where they were measured


def sections(found: Collection, look: Look) -> Iterator[Section | Missing]:
    """The sections on the lock benchmark."""
    rows = found.of("bench", Row)
    closed = [(machine, row) for machine, row in rows if row.loop == "closed"]
    opened = [(machine, row) for machine, row in rows if row.loop == "open"]
    written = [(machine, row) for machine, row in opened if row.write_percent > 0]
    if closed:
        yield _scaling(closed, look)
        yield _writes(closed, look)
    else:
        yield Missing(_THREADS, KINDS["bench"].command)
        yield Missing(_WRITES, KINDS["bench"].command)
    if written:
        yield _latency(written, look, "read", "readers", _LATENCY)
        yield _latency(written, look, "write", "writers", _WRITERS)
    else:
        yield Missing(_LATENCY, KINDS["bench"].command)


def _layout(row: Row) -> str:
    return "regions of their own" if row.layout == "disjoint" else "one hot region"


def _writing(row: Row) -> str:
    return f"{row.write_percent:g} % writes" if row.write_percent else "no writes"


def _hold(row: Row) -> str:
    return f"{row.hold_ns:,} ns inside" if row.hold_ns else "nothing done inside"


def _regions(row: Row) -> str:
    return f"{row.regions} regions" if row.layout == "disjoint" else ""


def _threads(row: Row) -> str:
    return f"{row.threads} threads" if row.threads > 1 else "1 thread"


def _scaling(rows: Sequence[tuple[Machine, Row]], look: Look) -> Section:
    percents = {row.write_percent for _, row in rows}
    compared = percents.intersection(_COMPARED) or {min(percents)}
    chosen = _with_one_thread([(machine, row) for machine, row in rows if row.write_percent in compared])
    found = cases(chosen, _layout, _writing, _hold, _regions)
    return Section(
        "threads",
        _THREADS,
        findings([case for case in found if case.rows[0].write_percent == min(compared)], _say_scaling),
        f"Native threads that find a region, lock and unlock it, as fast as they can. {_how(rows)}; error bars are the "
        "range over them." + left_out(found, _most_series(found)) + measured_on(found),
        panels(found, lambda case: _over(case.rows, "threads", "threads", look)),
        series_legend((row.strategy for _, row in chosen), look),
    )


def _with_one_thread(rows: Sequence[tuple[Machine, Row]]) -> list[tuple[Machine, Row]]:
    """One thread alone is measured in its own regions only, and stands for one in a hot region too."""
    hot = {(machine, row.hold_ns, row.write_percent): row for machine, row in rows if row.layout == "hot"}
    alone = [(machine, row) for machine, row in rows if row.threads == 1 and row.layout == "disjoint"]
    if any(row.threads == 1 for row in hot.values()):
        return list(rows)
    added = [
        (machine, dataclasses.replace(row, layout="hot", regions=like.regions))
        for machine, row in alone
        if (like := hot.get((machine, row.hold_ns, row.write_percent)))
    ]
    return [*rows, *added]


def _writes(rows: Sequence[tuple[Machine, Row]], look: Look) -> Section:
    most = max(row.threads for _, row in rows)
    found = cases([(machine, row) for machine, row in rows if row.threads == most], _layout, _hold, _regions)
    return Section(
        "writes",
        _WRITES,
        findings(found, _say_writes),
        f"{most} native threads, each of whose operations is a write with the same probability; a write takes the map "
        f"lock and the lock of a region of the thread's. {_how(rows)}; error bars are the range over them."
        + left_out(found, _most_series(found))
        + measured_on(found),
        panels(found, lambda case: _over(case.rows, "write_percent", "% of operations that write", look)),
        series_legend((row.strategy for case in found for row in case.rows), look),
    )


def _over(rows: Sequence[Row], field: str, x: str, look: Look) -> Markup:
    drawn = [
        Line(
            name,
            look(name),
            [(at, Spread.of(r.operations_per_second for r in same)) for at, same in by(g, field).items()],
        )
        for name, g in series(rows, "strategy", look)
    ]
    return plots.lines(drawn, x=x, y="operations/s", alt=f"operations per second by {x}", even=field != "threads")


def _say_scaling(rows: list[Row]) -> str:
    most = max(row.threads for row in rows)
    alone = medians([row for row in rows if row.threads == 1], "strategy", _speed)
    together = medians([row for row in rows if row.threads == most], "strategy", _speed)
    gains = {name: speed / alone[name] for name, speed in together.items() if alone.get(name)}
    return f"{most} threads do {extremes(gains, ' ×')} what one does." if gains and most > 1 else ""


def _speed(row: Row) -> float:
    return row.operations_per_second


def _say_writes(rows: list[Row]) -> str:
    few, many = min(row.write_percent for row in rows), max(row.write_percent for row in rows)
    if few == many:
        return ""
    before = medians([row for row in rows if row.write_percent == few], "strategy", _speed)
    after = medians([row for row in rows if row.write_percent == many], "strategy", _speed)
    kept = {name: 100 * speed / before[name] for name, speed in after.items() if before.get(name)}
    return f"{many:g} % writes leave of the throughput {extremes(kept, ' %')}." if kept else ""


def _latency(rows: Sequence[tuple[Machine, Row]], look: Look, what: str, who: str, question: str) -> Section:
    most = max(row.threads for _, row in rows)
    percent = min((row.write_percent for _, row in rows), key=lambda value: abs(value - 1))
    chosen = [
        (m, row)
        for m, row in rows
        if row.threads == most and row.write_percent == percent and getattr(row, f"{what}_samples")
    ]
    found = cases(chosen, _layout, _hold, _regions)
    prefix = f"{what}_latency"
    return Section(
        f"{what}-latency",
        question,
        findings(found, lambda group: _say_latency(group, f"{prefix}_p999_us", what)),
        f"From when an operation was to begin to having the lock: {most} threads on a fixed schedule, the same for all "
        f"strategies, {percent:g} % of operations write. {_how(rows)}; thin lines are the range over them."
        + left_out(found, _most_series(found))
        + (measured_on(found) if found else ""),
        panels(found, lambda case: ladders(case.rows, "strategy", prefix, look, alt=f"latency of {who} by strategy")),
        percentile_legend(),
    )


def _say_latency(rows: list[Row], field: str, what: str) -> str:
    waits = medians(rows, "strategy", lambda row: float(getattr(row, field)))
    return f"one {what} in a thousand waits {extremes(waits, say=duration)}, or longer."


def _how(rows: Sequence[tuple[Machine, Row]]) -> str:
    return rounds([row for _, row in rows]).partition(";")[0]


def _most_series(found: Sequence[Case[Row]]) -> int:
    return max((len(by(case.rows, "strategy")) for case in found), default=0)
