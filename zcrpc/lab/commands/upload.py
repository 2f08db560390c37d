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
@click.option("--payload", default=16 << 20, show_default=True, help="Bytes in each upload.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured for each way of receiving.")
@click.option(
    "--receive", default="zerocopy,copy,auto", show_default=True, help="Ways of receiving, separated by commas."
)
@json_option
def upload(payload: int, seconds: float, receive: str, json_path: Path | None) -> None:
    """Upload to a real server from a real client, both in Python: how fast, and how much of it was mapped?"""
    ways = _ways(receive)
    if not 1 <= payload <= 256 << 20 or not 0 < seconds <= 3600:
        raise click.UsageError("payload must be 1 byte to 256 MiB, seconds more than 0 and at most 3600")
    done, status = collect(
        (uploads.run(way, payload, seconds) for way in ways),
        total=len(ways),
        describe=lambda each: f"{each.receive}: {each.gigabytes_per_second:.2f} GB/s",
        kind="upload",
        json_path=json_path,
        settings={"payload": payload, "seconds": seconds, "receive": ways},
    )
    if done:
        Console().print(tables.upload_table(done))
    sys.exit(status)


def _ways(receive: str) -> list[Receive]:
    ways = names(receive)
    unknown = [name for name in ways if name not in get_args(Receive)]
    if unknown or not ways:
        raise click.UsageError(
            f"no such way of receiving: {', '.join(unknown) or 'none'}; there are {', '.join(get_args(Receive))}"
        )
    return cast("list[Receive]", list(ways))
