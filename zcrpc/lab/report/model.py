"""What the model of cache lines predicts, beside what was measured; and how many cache lines are really shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup

from zcrpc.lab.bench import Row
from zcrpc.lab.conflicts import Conflict
from zcrpc.lab.report import plots
from zcrpc.lab.report.figures import Case, Spread, by, cases, duration, number
from zcrpc.lab.report.kinds import KINDS, Predicted
from zcrpc.lab.report.plots import Bar, Line, Pair
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.report.sections import (
    MOST_PANELS,
    MOST_SERIES,
    Entry,
    Look,
    Missing,
    Panel,
    Section,
    extremes,
    findings,
    left_out,
    medians,
    panels,
    series,
    series_legend,
)
from zcrpc.lab.results import Machine
from zcrpc.lab.seed import Round
from zcrpc.lab.simulate.published import TOLERANCE, Check

_CONFLICTS = "How many cache lines do two threads fight over?"
_SCALING = "How would throughput grow with cores?"
_STORM = "How would waits grow with cores, under a writer?"
_VALIDATION = "How well does the model predict what was measured?"
_MISSED = "Which figures does the model miss?"
CURVE = 4  # numbers of threads that make a curve
_PREDICTED, _MEASURED = plots.Style(0), plots.Style(1)


def sections(found: Collection, look: Look) -> Iterator[Section | Missing]:
    """The sections on the model."""
    counted = [row for _, row in found.of("conflicts", Conflict)]
    yield _conflicts(counted, look) if counted else Missing(_CONFLICTS, KINDS["conflicts"].command)
    predicted = found.of("simulate", Predicted)
    saturated, storm = (_of_scenario(predicted, name) for name in ("saturated", "writer-storm"))
    seeds = [row for _, row in found.of("seed", Round)]
    benches = [row for _, row in found.of("bench", Row)]
    yield _scaling(saturated, seeds, benches, look) if saturated else Missing(_SCALING, KINDS["simulate"].command)
    yield _storm(storm, look) if storm else Missing(_STORM, KINDS["simulate"].command)
    checks = [row for _, row in found.of("simulate-validation", Check)]
    if checks:
        yield _curves(checks)
        yield _all_points(checks)
    else:
        yield Missing(_VALIDATION, KINDS["simulate-validation"].command)
        yield Missing(_MISSED, KINDS["simulate-validation"].command)


# ---- conflicts ----


def _conflicts(rows: Sequence[Conflict], look: Look) -> Section:
    def draw(title: str, lines: str) -> Panel:
        drawn = [
            Bar(name if way == "holding" else f"{name}, {way}", look(name), Spread.of(getattr(r, lines) for r in group))
            for (name, way), group in list(by(rows, "strategy", "way").items())[:MOST_SERIES]
        ]
        return Panel(title, plots.bars(drawn, alt=f"shared cache lines: {title}"))

    return Section(
        "conflicts",
        _CONFLICTS,
        [_say_conflicts(rows)],
        "Cache lines for each find + lock + unlock that one of two threads writes and the other touches: what cannot "
        "scale. Counted by instrumenting the locks' code, not measured; the same on any machine.",
        [draw("each thread in a region of its own", "disjoint_lines"), draw("both in one region", "hot_lines")],
    )


def _say_conflicts(rows: Sequence[Conflict]) -> str:
    apart = medians([row for row in rows if row.way == "holding"], "strategy", lambda row: row.disjoint_lines)
    none = [name for name, lines in apart.items() if lines == 0]
    some = {name: lines for name, lines in apart.items() if lines}
    text = f"Threads in regions of their own share nothing with {', '.join(none)}." if none else ""
    return f"{text} Lines are shared by the others: {extremes(some)}.".strip() if some else text


# ---- predictions ----


def _of_scenario(rows: Sequence[tuple[Machine, Predicted]], scenario: str) -> list[Case[Predicted]]:
    """The cases of a scenario. On which machine the model ran makes no difference."""
    chosen = [row for _, row in rows if row.scenario == scenario]
    return cases(((rows[0][0], row) for row in chosen), lambda row: row.topology, lambda row: f"b = {row.b}")


def _scaling(found: Sequence[Case[Predicted]], seeds: Sequence[Round], benches: Sequence[Row], look: Look) -> Section:
    names = [row.locks for case in found for row in case.rows]
    where = ", ".join(sorted({row.topology for case in found for row in case.rows}))
    capacities, gains = _capacities(seeds), _measured_gains(benches)
    caption = (
        "Lines: predicted by zcrpc lab simulate for the seed workload (1.65 µs in the lock path, 8.75 µs outside), "
        f"every core busy, readers only, on {where}. Lines that coincide hide each other."
    )
    if capacities:
        caption += " Large marks over requests/s: zcrpc lab seed, from the receivers' CPU time per request."
    if gains:
        caption += (
            " Large marks over what one core does: zcrpc lab bench, threads in regions of their own that do nothing "
            "outside the lock, so they are in each other's way more than the seed's."
        )
    drawn = panels(found, lambda case: _lines(_by_cores(case.rows, _speed, look), capacities, "requests/s", look))
    drawn += panels(found, lambda case: _lines(_gains(case.rows, look), gains, "times what one core does", look))
    return Section(
        "scaling",
        _SCALING,
        findings(found, _say_scaling),
        caption + left_out(found, len(set(names))),
        drawn,
        series_legend(names, look),
    )


def _speed(row: Predicted) -> float:
    return row.operations_per_second


def _capacities(rows: Sequence[Round]) -> dict[str, list[tuple[float, Spread]]]:
    """What receivers would do with their CPUs to themselves, as the model has them: threads over CPU per request."""
    alike = [
        row
        for row in rows
        if (row.scenario, row.payload_bytes, row.connections_per_region, row.receive)
        == ("readers-only", 4096, 1, "zerocopy")
        and row.server_cpu_us_per_request > 0
    ]
    return {
        name: [
            (threads, Spread.of(1e6 * threads / row.server_cpu_us_per_request for row in same))
            for threads, same in by(group, "receive_threads").items()
        ]
        for name, group in by(alike, "strategy").items()
    }


def _measured_gains(rows: Sequence[Row]) -> dict[str, list[tuple[float, Spread]]]:
    """How many times what one thread does so many do, by strategy; where sections take longest, as the seed's do."""
    alike = [row for row in rows if (row.loop, row.layout, row.write_percent) == ("closed", "disjoint", 0)]
    longest = max((row.hold_ns for row in alike), default=0)
    gains: dict[str, list[tuple[float, Spread]]] = {}
    for name, group in by([row for row in alike if row.hold_ns == longest], "strategy").items():
        speeds = {n: Spread.of(row.operations_per_second for row in at) for n, at in by(group, "threads").items()}
        alone = speeds[1].median if 1 in speeds else 0.0
        if alone > 0:
            gains[name] = [(float(n), _over(speed, alone)) for n, speed in speeds.items()]
    return gains


def _gains(rows: Sequence[Predicted], look: Look) -> list[Line]:
    lines = []
    for line in _by_cores(rows, _speed, look):
        alone = next((speed.median for cores, speed in line.points if cores == 1), 0.0)
        if alone > 0:
            lines.append(Line(line.name, line.style, [(at, _over(speed, alone)) for at, speed in line.points]))
    return lines


def _over(speed: Spread, alone: float) -> Spread:
    return Spread(speed.median / alone, speed.low / alone, speed.high / alone, speed.count)


def _lines(predicted: list[Line], measured: dict[str, list[tuple[float, Spread]]], y: str, look: Look) -> Markup:
    names = {line.name for line in predicted}
    marks = [Line(name, look(name), points, loose=True) for name, points in measured.items() if name in names]
    return plots.lines([*predicted, *marks], x="cores", y=y, alt=f"predicted {y} by cores")


def _by_cores(rows: Sequence[Predicted], figure: Callable[[Predicted], float], look: Look) -> list[Line]:
    return [
        Line(name, look(name), [(n, Spread.of(map(figure, at))) for n, at in by(group, "cores").items()])
        for name, group in series(rows, "locks", look)
    ]


def _say_scaling(rows: Sequence[Predicted]) -> str:
    most = max(row.cores for row in rows)
    speeds = medians([row for row in rows if row.cores == most], "locks", lambda row: row.operations_per_second)
    return f"on {most} cores the model expects {extremes(speeds, ' requests/s')}."


def _storm(found: Sequence[Case[Predicted]], look: Look) -> Section:
    names = [row.locks for case in found for row in case.rows]
    return Section(
        "predicted-storm",
        _STORM,
        findings(found, _say_storm),
        "Predicted by zcrpc lab simulate: p99 from asking for the lock to having it, while requests arrive at 70 % of "
        "what the cores could do and a writer holds the map lock 500 µs of every 1,000."
        + left_out(found, len(set(names))),
        panels(found, lambda case: _waits(case.rows, look)),
        series_legend(names, look),
    )


def _waits(rows: Sequence[Predicted], look: Look) -> Markup:
    waits = _by_cores(rows, lambda row: row.wait_p99_us, look)
    return plots.lines(waits, x="cores", y="µs waited, p99", alt="predicted waits by cores")


def _say_storm(rows: Sequence[Predicted]) -> str:
    most = max(row.cores for row in rows)
    waits = medians([row for row in rows if row.cores == most], "locks", lambda row: row.wait_p99_us)
    return f"on {most} cores one receive in a hundred is expected to wait {extremes(waits, say=duration)}, or longer."


# ---- validation ----


def _curves(checks: Sequence[Check]) -> Section:
    drawn = [
        Panel(name, _published(rows))
        for name, rows in by(checks, "series").items()
        if len({row.threads for row in rows}) >= CURVE
    ]
    return Section(
        "validation",
        _VALIDATION,
        [_say_validation(checks)],
        "The line is predicted; marks are what was measured or published, with its range. Points that the model was "
        "calibrated on count as neither passed nor failed.",
        drawn[:MOST_PANELS],
        [
            Entry("predicted", plots.swatch(_PREDICTED)),
            Entry("measured or published", plots.swatch(_MEASURED, line=False)),
        ],
    )


def _all_points(checks: Sequence[Check]) -> Section:
    usable = [row for row in checks if row.published > 0 and row.predicted > 0]
    marks = {name: plots.Style(place) for place, name in enumerate(by(usable, "series"))}
    pairs = [Pair(marks[row.series], Spread(row.published, row.low, row.high, 1), row.predicted) for row in usable]
    far = {name: max(abs(row.error_percent) for row in rows) for name, rows in by(usable, "series").items()}
    missed = sorted((name for name in far if far[name] > 100 * TOLERANCE), key=lambda name: -far[name])
    worst = "; ".join(f"{name} ({number(far[name])} %)" for name in missed[:5])
    said = f"{len(missed)} of {len(far)} series are off by more than {100 * TOLERANCE:.0f} % somewhere"
    said += f"; the most: {worst}." if missed else "."
    return Section(
        "every-point",
        _MISSED,
        [said],
        f"Predicted over measured, each in its series' unit, on logarithmic axes. Band: ±{100 * TOLERANCE:.0f} %.",
        [Panel("", _parity(pairs))] if pairs else [],
        [Entry(name, plots.swatch(marks[name], line=False)) for name in list(marks)[:MOST_SERIES]],
    )


def _parity(pairs: Sequence[Pair]) -> Markup:
    return plots.parity(pairs, tolerance=TOLERANCE, x="measured", y="predicted", alt="predicted over measured figures")


def _published(rows: Sequence[Check]) -> Markup:
    predicted = Line(
        "predicted", _PREDICTED, [(n, Spread.of(r.predicted for r in at)) for n, at in by(rows, "threads").items()]
    )
    points = [(float(row.threads), Spread(row.published, row.low, row.high, 1)) for row in rows]
    measured = Line("measured", _MEASURED, points, loose=True)
    return plots.lines([predicted, measured], x="threads", y=rows[0].unit, alt=f"{rows[0].series} by threads")


def _say_validation(checks: Sequence[Check]) -> str:
    judged = [row for row in checks if row.verdict != "calibrated"]
    passed = sum(row.verdict == "pass" for row in judged)
    text = f"{passed} of {len(judged)} points are within {100 * TOLERANCE:.0f} % of what was measured."
    worst = max((row for row in judged if row.published > 0), key=lambda row: abs(row.error_percent), default=None)
    if worst is not None and worst.verdict == "fail":
        text += f" The farthest off is {worst.series} on {worst.threads} threads: {number(worst.error_percent)} %."
    return text
