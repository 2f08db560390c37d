"""`zcrpc lab kernel`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console

from zcrpc.lab import kernel_table
from zcrpc.lab.commands.common import collect, json_option, lock_names, names
from zcrpc.lab.kernel import WRITERS, Experiment, run
from zcrpc.lab.kernel_receivers import Writer


@click.command()
@click.option("--payload", default=4096, show_default=True, help="Bytes that each receiver asks for; whole pages.")
@click.option("--receivers", default=1, show_default=True, help="Receiving threads, each with a connection.")
@click.option("--seconds", default=3.0, show_default=True, help="Measured for each lock and writer, over all rounds.")
@click.option("--rounds", default=3, show_default=True, help="Rounds in which locks and writers alternate.")
@click.option("--area-mib", default=64, show_default=True, help="Address space that the writer changes.")
@click.option(
    "--writer",
    default=",".join(WRITERS),
    show_default=True,
    help="What the writer does, separated by commas; none: nothing.",
)
@click.option(
    "--locks",
    default="global,per-region",
    show_default=True,
    help="Strategies of the region map to put beside it, or all; empty: none.",
)
@json_option
def kernel(json_path: Path | None, locks: str, writer: str, **settings: Any) -> None:
    """What does a thread that changes the address space do to receives: under the kernel's own lock, and the map's?"""
    experiment = _experiment(lock_names(locks) if locks.strip() else (), names(writer), settings)
    done, status = collect(
        run(experiment),
        total=experiment.rows,
        describe=lambda each: f"{kernel_table.lock_name(each)}, {each.writer}: {each.receive_p50_us:.1f} µs",
        kind="kernel",
        json_path=json_path,
        settings=dataclasses.asdict(experiment),
    )
    if done:
        console = Console()
        console.print(kernel_table.table(done))
        for note in kernel_table.notes(done):
            console.print(note)
        console.print(kernel_table.conclusion(done))
    sys.exit(status)


def _experiment(locks: tuple[str, ...], writers: tuple[str, ...], settings: dict[str, Any]) -> Experiment:
    if not writers:
        raise click.UsageError(f"no writer was named; there are {', '.join(WRITERS)} and none")
    try:
        return Experiment(
            locks=locks, writers=cast("tuple[Writer, ...]", () if writers == ("none",) else writers), **settings
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
