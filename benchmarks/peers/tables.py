"""Rows for people: medians over the rounds, in a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from peers.stacks import STACKS
from peers.suite import Row, by_stack
from peers.workloads import WORKLOADS, Workload
from zcrpc.lab.results import Results

MIB = 1 << 20


@dataclass(slots=True, frozen=True)
class Column:
    """A figure: what stands above it and how it is written. `less`: less of it is better."""

    heading: str
    field: str
    write: Callable[[float], str]
    less: bool = True


def _digits(value: float) -> str:
    """Three digits that count: 0.103, 71.0, 4,710."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


RATE: Final = Column("requests/s", "requests_per_second", _digits, less=False)
ITEMS: Final = Column("items/s", "requests_per_second", _digits, less=False)
BULK: Final = Column("GB/s", "gigabytes_per_second", _digits, less=False)
P50: Final = Column("p50 µs", "p50_us", _digits)
P99: Final = Column("p99 µs", "p99_us", _digits)
P99_MS: Final = Column("p99 ms", "p99_us", lambda us: _digits(us / 1e3))
SERVER: Final = Column("server µs", "server_cpu_us_per_request", _digits)
CLIENT: Final = Column("client µs", "client_cpu_us_per_request", _digits)
SERVER_BULK: Final = Column("server s/GB", "server_cpu_seconds_per_gigabyte", _digits)
CLIENT_BULK: Final = Column("client s/GB", "client_cpu_seconds_per_gigabyte", _digits)
MEMORY: Final = Column("server MiB more", "server_grown_bytes", lambda size: _digits(max(size, 0) / MIB))
BESIDE: Final = Column("uploads GB/s", "uploads_gigabytes_per_second", _digits, less=False)

GIST: Final = {"rate": RATE, "bulk": BULK, "p50": P50, "p99": P99_MS}

# Of the short table: workload, what stands above it, figure
SHORT: Final[tuple[tuple[str, str, Column], ...]] = (
    ("echo", "100 × 4 KiB echo, requests/s", RATE),
    ("echo", "… server µs each", SERVER),
    ("sequential", "64 B echo, p50 µs", P50),
    ("in-flight", "64 in flight, requests/s", RATE),
    ("upload-16", "upload 16 MiB, GB/s", BULK),
    ("upload-16", "… server s/GB", SERVER_BULK),
    ("upload-16", "… server MiB more", MEMORY),
    ("download-16", "download 16 MiB, GB/s", BULK),
    ("beside-uploads", "50 beside 2 uploads, p99 ms", P99_MS),
    ("mostly-idle", "1,000 connections, requests/s", RATE),
    ("stream", "stream of 64 B, items/s", RATE),
)


def columns(workload: Workload) -> tuple[Column, ...]:
    """The figures of a workload that say something."""
    if workload.gist == "bulk":
        return BULK, P50, P99, SERVER_BULK, CLIENT_BULK, MEMORY
    if workload.work == "stream":
        return ITEMS, SERVER, CLIENT, MEMORY
    if workload.uploads:  # the server's CPU time is that of both
        return RATE, P50, P99, BESIDE, MEMORY
    return RATE, P50, P99, SERVER, CLIENT, MEMORY


def middle(rows: Sequence[Row], column: Column) -> float:
    """The median of a figure."""
    return median(getattr(row, column.field) for row in rows)


def tables(rows: Sequence[Row]) -> list[Table]:
    """For a terminal: one for each workload that was measured, the stacks below each other."""
    return [_table(WORKLOADS[name], rows) for name in dict.fromkeys(row.workload for row in rows)]


def _table(workload: Workload, rows: Sequence[Row]) -> Table:
    shown = columns(workload)
    result = Table(title=f"{workload.name}: {workload.title}", title_justify="left", box=SIMPLE_HEAD)
    result.add_column("", no_wrap=True)
    for column in shown:
        result.add_column(column.heading, justify="right")
    for name, found in by_stack(rows, workload.name).items():
        result.add_row(name, *(column.write(middle(found, column)) for column in shown))
    return result


def remarks(rows: Sequence[Row], skipped: Mapping[str, str]) -> list[str]:
    """What is not in the tables, and why; and what was wrong."""
    said = [f"{name}: skipped, {packages} is not installed" for name, packages in skipped.items()]
    lacking: dict[tuple[str, str], list[str]] = {}
    for name, stack in STACKS.items():
        for workload, why in stack.lacks.items():
            if name not in skipped and any(row.stack == name for row in rows):
                lacking.setdefault((workload, why), []).append(name)
    measured = {row.workload for row in rows}
    said += [f"{at}: without {', '.join(names)}: {why}" for (at, why), names in lacking.items() if at in measured]
    failed = {(row.workload, row.stack): row.failed for row in rows if row.failed}
    said += [f"{workload}: {stack} failed: {why}" for (workload, stack), why in failed.items()]
    wrong = {(row.workload, row.stack) for row in rows if row.wrong}
    return said + [f"{workload}: {stack} gave WRONG answers" for workload, stack in sorted(wrong)]


# ---- Markdown ----


def short(results: Results, rows: Sequence[Row]) -> str:
    """A row for each stack with the figures that matter most, and where they were measured."""
    measured = {row.workload for row in rows}
    shown = [each for each in SHORT if each[0] in measured]
    lines = [
        f"Measured {where(results)}",
        "",
        _line("", *(heading for _, heading, _ in shown)),
        _line("---", *("---:" for _ in shown)),
    ]
    by_workload = {name: by_stack(rows, name) for name in measured}
    for stack in dict.fromkeys(row.stack for row in rows):
        cells = []
        for workload, _, column in shown:
            found = by_workload[workload].get(stack)
            cells.append(column.write(middle(found, column)) if found else "–")
        lines.append(_line(f"**{stack}**" if STACKS[stack].kind == "zcrpc" else stack, *cells))
    return "\n".join(lines)


def full(results: Results, rows: Sequence[Row], drawing: str) -> str:
    """Everything: a drawing, if there is one, a table for each workload, what is missing, how each was set up."""
    parts = [f"Measured {where(results)}", *([f"![Bars for each workload and stack]({drawing})"] if drawing else [])]
    for name in dict.fromkeys(row.workload for row in rows):
        workload = WORKLOADS[name]
        shown = columns(workload)
        lines = [_line("", *(each.heading for each in shown)), _line("---", *("---:" for _ in shown))]
        for stack, found in by_stack(rows, name).items():
            lines.append(_line(stack, *(each.write(middle(found, each)) for each in shown)))
        parts.append(f"### {workload.title[0].upper()}{workload.title[1:]}\n\n" + "\n".join(lines))
    if said := remarks(rows, results.settings.get("skipped", {})):
        parts.append("Not in the tables:\n\n" + "\n".join(f"- {remark}" for remark in said))
    setups = [f"- **{stack}** ({STACKS[stack].kind}): {setup}" for stack, setup in results.settings["stacks"].items()]
    return "\n\n".join([*parts, "## How each was set up", "\n".join(setups)])


def where(results: Results) -> str:
    """When, where, and with what."""
    machine, asked = results.machine, results.settings
    versions = ", ".join(f"{name} {version}" for name, version in sorted(asked["versions"].items()))
    processor = "" if machine.processor == "unknown" else f" ({machine.processor})"
    system = f"{machine.cpus} cores{processor}, Linux {machine.kernel}, Python {machine.python}"
    how = f"medians of {asked['rounds']} alternating rounds of {asked['seconds']:g} s"
    return f"on {results.when:%Y-%m-%d}, {system}, loopback; {how}. Versions: {versions}."


def _line(*cells: Any) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
