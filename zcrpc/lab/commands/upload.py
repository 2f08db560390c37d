"""`zcrpc lab upload`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast, get_args

import click
from rich.console import Console

from zcrpc.calibration import Receive
from zcrpc.lab import tables
from zcrpc.lab import upload as uploads
from zcrpc.lab.commands.common import collect, json_option, names


@click.command()
@click.option("--payload", default=str(16 << 20), show_default=True, help="Bytes in each upload; sizes with commas.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured for each way and size, over all rounds.")
@click.option("--rounds", default=1, show_default=True, help="Rounds in which ways and sizes alternate.")
@click.option(
    "--receive", default="zerocopy,copy,auto", show_default=True, help="Ways of receiving, separated by commas."
)
@json_option
def upload(payload: str, seconds: float, rounds: int, receive: str, json_path: Path | None) -> None:
    """Upload to a real server from a real client, both in Python: how fast, and how much of it was mapped?"""
    ways, sizes = _ways(receive), _sizes(payload)
    if not 0 < seconds <= 3600 or not 1 <= rounds <= 1000:
        raise click.UsageError("seconds must be more than 0 and at most 3600, rounds 1 to 1000")
    done, status = collect(
        uploads.run_all(ways, sizes, seconds, rounds),
        total=len(ways) * len(sizes) * rounds,
        describe=lambda each: f"{each.receive}, {each.payload_bytes:,} bytes: {each.gigabytes_per_second:.2f} GB/s",
        kind="upload",
        json_path=json_path,
        settings={"payload": sizes, "seconds": seconds, "rounds": rounds, "receive": ways},
    )
    if done:
        Console().print(tables.upload_table(done))
    sys.exit(status)


def _sizes(payload: str) -> list[int]:
    try:
        sizes = [int(size) for size in names(payload)]
    except ValueError:
        sizes = []
    if not sizes or not all(1 <= size <= 256 << 20 for size in sizes):
        raise click.UsageError(f"payload must be 1 byte to 256 MiB, or several sizes with commas, not {payload}")
    return sizes


def _ways(receive: str) -> list[Receive]:
    ways = names(receive)
    unknown = [name for name in ways if name not in get_args(Receive)]
    if unknown or not ways:
        raise click.UsageError(
            f"no such way of receiving: {', '.join(unknown) or 'none'}; there are {', '.join(get_args(Receive))}"
        )
    return cast("list[Receive]", list(ways))
