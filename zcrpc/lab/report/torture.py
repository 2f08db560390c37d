"""What torture did, and what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zcrpc.lab.report.figures import cases, number
from zcrpc.lab.report.kinds import KINDS
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.report.sections import Look, Missing, Section, measured_on
from zcrpc.lab.results import Machine
from zcrpc.lab.torture import Tortured

_QUESTION = "Do the strategies keep their promises under torture?"
_MOST_ROWS = 60


def sections(found: Collection, _look: Look) -> Iterator[Section | Missing]:
    """The section on torture."""
    rows = found.of("torture", Tortured)
    yield _section(rows) if rows else Missing(_QUESTION, KINDS["torture"].command)


def _section(found: Sequence[tuple[Machine, Tortured]]) -> Section:
    rows = [row for _, row in found]
    heading = ["strategy", "verdict", "operations", "per second", "fallbacks", "recycles", "wraps", "longest wait, ms"]
    return Section(
        "torture",
        _QUESTION,
        [_say(rows)],
        "Native threads lock, touch, resize, detach and recycle regions, with sleeps and preemptions put in, and check "
        "all the while that nobody is where somebody else has exclusive access. Wraps: sequence numbers that went "
        "through zero; – where a plugin's are not known." + measured_on(cases(found)),
        table=(heading, [_row(row) for row in rows[:_MOST_ROWS]]),
    )


def _row(row: Tortured) -> list[str]:
    longest = max(row.longest_read_wait_us, row.longest_write_wait_us) / 1000
    return [
        row.strategy,
        _verdict(row),
        number(row.operations),
        number(row.operations_per_second),
        number(row.fallbacks),
        number(row.recycles),
        "–" if row.wraps is None else number(row.wraps),
        number(longest),
    ]


def _verdict(row: Tortured) -> str:
    if row.violation:
        return "violation"
    return "passed" if row.passed else "shows nothing"


def _say(rows: Sequence[Tortured]) -> str:
    passed = [row for row in rows if row.passed]
    text = f"{len(passed)} of {len(rows)} runs found no violation"
    if passed:
        text += f", in {number(min(row.operations for row in passed))} operations or more each"
    for row in [row for row in rows if row.violation][:3]:
        text += f". {row.strategy}: {row.violation.rstrip('.')}"
    idle = [f"{row.strategy} ({', '.join(row.never_happened)})" for row in rows if not row.violation and not row.passed]
    if idle:
        text += f". Never happened, so shows nothing: {'; '.join(idle[:5])}"
    return f"{text}."
