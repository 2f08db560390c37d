"""`zcrpc lab torture`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zcrpc.lab.commands.common import collect, json_option, lock_names
from zcrpc.lab.torture import Experiment, Tortured, run


@click.command()
@click.option("--locks", default="all", show_default=True, help="Lock strategies, separated by commas, or all.")
@click.option("--threads", default=2, show_default=True, help="Threads that read.")
@click.option("--writers", default=1, show_default=True, help="Threads that change the maps.")
@click.option("--seconds", default=5.0, show_default=True, help="For each strategy.")
@click.option("--seed", type=int, help="Of all draws, 64 bits.  [default: a new one]")
@click.option(
    "--stalled",
    "stalled_seconds",
    default=30.0,
    show_default=True,
    help="A thread that does not get on for so many seconds is a violation.",
)
@json_option
def torture(json_path: Path | None, locks: str, seed: int | None, **settings: Any) -> None:
    """Does a lock hold? Native threads lock, receive, change, swap, detach, attach and recycle regions, all at once;
    what must hold is checked throughout."""
    if seed is not None:
        settings["seed"] = seed
    try:
        experiment = Experiment(locks=lock_names(locks), **settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    done, status = collect(
        run(experiment),
        total=len(experiment.locks),
        describe=lambda each: f"{each.strategy}: {_verdict(each)}",
        kind="torture",
        json_path=json_path,
        settings=dataclasses.asdict(experiment),
    )
    if done:
        console = Console()
        console.print(_table(done))
        for line in _conclusion(done):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    sys.exit(status if all(each.passed for each in done) else status or 1)


def _verdict(row: Tortured) -> str:
    return "FAILED" if row.violation else "idle" if row.never_happened else "held"


def _table(rows: Sequence[Tortured]) -> Table:
    first = rows[0]
    result = Table(
        title=f"readers {first.readers}, writers {first.writers}, and leases; seed {first.seed}",
        caption="ops: read locks, misses and looks · wait: the longest for a lock",
        box=SIMPLE_HEAD,
        padding=0,  # for 80 columns
    )
    result.add_column("", no_wrap=True)
    for heading in ("\nops", "\nops/s", "fall-\nbacks", "\nwraps", "recy-\ncled", "\nslept", "pre-\nempt.", "wait\nms"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for row in rows:
        result.add_row(row.strategy, *_figures(row), _verdict(row))
    return result


def _figures(row: Tortured) -> list[str]:
    if row.violation:
        return ["–"] * 8
    counts = (row.operations, row.operations_per_second, row.fallbacks, row.wraps, row.recycles)
    wait_ms = max(row.longest_read_wait_us, row.longest_write_wait_us) / 1e3
    return [_short(count) for count in (*counts, row.sleeps, row.preemptions)] + [f"{wait_ms:.1f}"]


def _short(count: float | None) -> str:
    if count is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 9.95 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def _conclusion(rows: Sequence[Tortured]) -> list[str]:
    """What to know of each strategy that did not pass; or that all did."""
    lines = []
    for row in rows:
        if row.violation:
            lines.append(f"{row.strategy}: {row.violation}")
        elif row.never_happened:
            lines.append(f"{row.strategy}: shows nothing, as there were no {', '.join(row.never_happened)}")
    least = min(rows, key=lambda row: row.operations)
    return lines or [f"No violation in {least.operations:,} operations or more of each ({least.strategy} had fewest)."]
