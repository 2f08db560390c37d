"""The command: PYTHONPATH=benchmarks python -m peers, or `make peers`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import click
import marked
import msgspec
from rich.console import Console

from peers import suite, tables
from peers.stacks import STACKS, Stack
from peers.suite import Row
from peers.workloads import WORKLOADS, Workload
from zcrpc.commands.group import main_of
from zcrpc.lab import results
from zcrpc.lab.commands.common import FILE, collect, json_option, names, refuse_unwritable
from zcrpc.lab.results import Results

KIND: Final = "peers"
SHORT_MARK: Final = "peers"
FULL_MARK: Final = "peers in full"
T = TypeVar("T")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--stacks", default="all", show_default=True, help=f"Of: {', '.join(STACKS)}.")
@click.option("--workloads", default="all", show_default=True, help=f"Of: {', '.join(WORKLOADS)}.")
@click.option("--rounds", default=5, show_default=True, help="Alternating rounds, of which the median is taken.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured in each, after half as long of warming up.")
@json_option
@click.option("--plot", "plot_path", type=FILE, help="Draw a bar for each stack and workload: SVG, PNG or PDF.")
@click.option("--short", "short_path", type=FILE, help="Write the short table into this file, between its marks.")
@click.option("--full", "full_path", type=FILE, help="Write all tables into this file, between its marks.")
@click.option("--read", "read_path", type=FILE, help="Measure nothing: show the results in this file.")
def peers(
    stacks: str,
    workloads: str,
    rounds: int,
    seconds: float,
    json_path: Path | None,
    plot_path: Path | None,
    short_path: Path | None,
    full_path: Path | None,
    read_path: Path | None,
) -> None:
    """zcrpc, the floors and other stacks side by side, each with its own server and client processes."""
    chosen = _among(stacks, STACKS, "stack")
    wanted = _among(workloads, WORKLOADS, "workload")
    if not 0 < seconds <= 600 or not 1 <= rounds <= 1000:
        raise click.UsageError("seconds must be more than 0 and at most 600, rounds 1 to 1000")
    if plot_path is not None:
        if plot_path.suffix not in (".svg", ".png", ".pdf"):
            raise click.UsageError(f"a plot is a file of type .svg, .png or .pdf, not {plot_path}")
        refuse_unwritable(plot_path)
    for path, mark in ((short_path, SHORT_MARK), (full_path, FULL_MARK)):
        if path is not None:
            marked.check(path, mark)
    if read_path is not None:
        found, status = _read(read_path), 0
    else:
        found, status = _measure(chosen, wanted, rounds, seconds, json_path)
    rows = [msgspec.convert(row, Row) for row in found.rows]
    if rows:
        _show(found, rows)
        if plot_path is not None:
            from peers import plot  # matplotlib takes its time, and belongs to an extra

            plot.draw(rows, plot_path)
        if short_path is not None and status == 0:
            marked.write(short_path, SHORT_MARK, tables.short(found, rows))
        if full_path is not None and status == 0:
            drawing = os.path.relpath(plot_path, full_path.parent) if plot_path is not None else ""
            marked.write(full_path, FULL_MARK, tables.full(found, rows, drawing))
    sys.exit(status or int(any(row.failed or row.wrong for row in rows)))


def _measure(
    stacks: Sequence[Stack], workloads: Sequence[Workload], rounds: int, seconds: float, json_path: Path | None
) -> tuple[Results, int]:
    skipped = {stack.name: stack.missing for stack in stacks if stack.missing}
    present = [stack for stack in stacks if stack.name not in skipped]
    settings = {**suite.settings(present, workloads, rounds, seconds), "skipped": skipped}
    done, status = collect(
        suite.measure(present, workloads, rounds, seconds),
        total=rounds * sum(workload.name not in stack.lacks for stack in present for workload in workloads),
        describe=lambda row: f"{row.workload}, {row.stack}",
        kind=KIND,
        json_path=json_path,
        settings=settings,
    )
    found = Results(KIND, datetime.now(UTC), results.this_machine(), settings, msgspec.to_builtins(done))
    return found, status


def _read(path: Path) -> Results:
    try:
        found = results.read(path)
    except results.UnreadableResults as error:
        raise click.UsageError(str(error)) from None
    if found.kind != KIND:
        raise click.UsageError(f"{path} has results of {found.kind}, not of {KIND}")
    return found


def _show(found: Results, rows: Sequence[Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables.tables(rows):
        console.print(table)
    for remark in tables.remarks(rows, found.settings["skipped"]):
        console.print(remark, highlight=False, markup=False)


def _among(text: str, known: Mapping[str, T], what: str) -> list[T]:
    """In the order of all. Raises `click.UsageError`."""
    chosen = tuple(known) if text.strip() == "all" else names(text)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise click.UsageError(f"no such {what}: {', '.join(unknown) or 'none'}; there are {', '.join(known)}")
    return [each for name, each in known.items() if name in chosen]


if __name__ == "__main__":
    main_of(peers, "peers")
