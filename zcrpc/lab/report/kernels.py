"""What the kernel's own lock does to receives, kernel against kernel and beside the strategies; and torture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from zcrpc.lab.kernel import KERNEL, Round
from zcrpc.lab.report import plots
from zcrpc.lab.report.figures import Case, Spread, by, cases, duration, number
from zcrpc.lab.report.kinds import KINDS
from zcrpc.lab.report.plots import Bar, Style
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.report.sections import (
    MOST_SERIES,
    Look,
    Missing,
    Panel,
    Section,
    findings,
    ladders,
    measured_on,
    panels,
    percentile_legend,
    rounds,
)
from zcrpc.lab.results import Machine

_LOCKS = "Does a receive take the kernel's mmap lock?"
_CALLS = "How long does a receive take while the address space changes?"
_ALONE = "none"


def sections(found: Collection, look: Look) -> Iterator[Section | Missing]:
    """The sections on the kernel's lock."""
    rows = [(machine, row) for machine, row in found.of("kernel", Round) if row.receives or row.counted_receives]
    counted = [(machine, row) for machine, row in rows if row.acquisitions_per_receive is not None]
    timed = [(machine, row) for machine, row in rows if row.receives and not row.emulated]
    yield _acquisitions(counted) if counted else Missing(_LOCKS, KINDS["kernel"].command)
    yield _calls(timed, look) if timed else Missing(_CALLS, KINDS["kernel"].command)


def _release(row: Round) -> str:
    """A kernel by the first two numbers of its release."""
    return "Linux " + ".".join(row.kernel.split(".")[:2]) + (", emulated" if row.emulated else "")


def _acquisitions(rows: Sequence[tuple[Machine, Round]]) -> Section:
    kernels = by([row for _, row in rows], "kernel", "emulated")
    styles = {key: Style(place) for place, key in enumerate(kernels)}
    drawn = []
    for writer, group in by([row for _, row in rows], "writer").items():
        counts = [
            Bar(_release(same[0]), styles[key], Spread.of(row.acquisitions_per_receive or 0.0 for row in same))
            for key, same in list(by(group, "kernel", "emulated").items())[:MOST_SERIES]
        ]
        title = "no writer" if writer == _ALONE else f"a writer: {writer}"
        drawn.append(Panel(title, plots.bars(counts, alt=f"mmap locks taken for each receive, {title}")))
    table = [
        [
            _release(same[0]),
            writer,
            str(Spread.of(row.acquisitions_per_receive or 0.0 for row in same)),
            _waited(same),
            f"{sum(row.counted_receives for row in same):,}",
        ]
        for (_, _, writer), same in by([row for _, row in rows], "kernel", "emulated", "writer").items()
    ]
    return Section(
        "mmap-lock",
        _LOCKS,
        [_say_acquisitions([row for _, row in rows])],
        "Acquisitions of the mmap lock by the receiving threads for each receive call, counted by the kernel's own "
        "tracepoints; the writer is a thread of the same process that changes its address space. Counts do not depend "
        "on emulation, times do." + measured_on(cases(rows)),
        drawn,
        table=(["kernel", "writer", "mmap locks per receive", "µs waited per receive", "receives"], table),
    )


def _waited(rows: Sequence[Round]) -> str:
    waits = [row.waited_us_per_receive for row in rows if row.waited_us_per_receive is not None]
    return str(Spread.of(waits)) if waits else "–"


def _say_acquisitions(rows: Sequence[Round]) -> str:
    said = []
    for same in by(rows, "kernel", "emulated").values():
        counts = [row.acquisitions_per_receive or 0.0 for row in same]
        if min(counts) > 0.95:
            verdict = "each receive takes it"
        elif max(counts) < 0.05:
            verdict = "receives do not take it"
        else:
            verdict = f"{number(min(counts))} to {number(max(counts))} acquisitions for each receive"
        said.append(f"{_release(same[0])}: {verdict}.")
    return " ".join(said)


@dataclass(slots=True, frozen=True)
class _Timed:
    """A round under the name that it has in the drawing."""

    name: str
    lock: str
    round: int
    receive_p50_us: float
    receive_p99_us: float
    receive_p999_us: float
    receive_max_us: float


def _calls(rows: Sequence[tuple[Machine, Round]], look: Look) -> Section:
    named = sorted(((machine, _timed(row)) for machine, row in rows), key=lambda pair: pair[1].lock != KERNEL)
    found = cases(named)
    locks = {row.name: row.lock for _, row in named}
    first = rows[0][1]
    threads = "1 receiving thread" if first.receivers == 1 else f"{first.receivers} receiving threads"
    return Section(
        "kernel-calls",
        _CALLS,
        findings(found, _say_calls),
        f"{threads}, {plots.binary(first.payload_bytes)} a receive. Under Linux: the receive "
        f"call, beside a thread that changes {first.area_mib} MiB of the address space. Under a strategy's name: "
        "finding, locking and receiving through zcrpc's region map, whose lock the writer holds for as long. "
        f"{rounds([row for _, row in rows])}." + measured_on(found),
        panels(found, lambda case: _ladders(case, lambda name: look(locks[name]))),
        percentile_legend(),
    )


def _ladders(case: Case[_Timed], look: Look) -> Markup:
    return ladders(case.rows, "name", "receive", look, alt="percentiles of a receive by lock and writer")


def _timed(row: Round) -> _Timed:
    lock = _release(row) if row.strategy == KERNEL else row.strategy
    writer = "writer" if row.writer == "write-lock" else row.writer  # there is one way to write a region map
    return _Timed(
        lock if row.writer == _ALONE else f"{lock} + {writer}",
        row.strategy,
        row.round,
        row.receive_p50_us,
        row.receive_p99_us,
        row.receive_p999_us,
        row.receive_max_us,
    )


def _say_calls(rows: list[_Timed]) -> str:
    longest = {name: Spread.of(row.receive_p999_us for row in same).median for name, same in by(rows, "name").items()}
    low, high = min(longest, key=lambda name: longest[name]), max(longest, key=lambda name: longest[name])
    return (
        f"one receive in a thousand takes {duration(longest[low])} or longer with {low}, "
        f"{duration(longest[high])} with {high}."
    )
