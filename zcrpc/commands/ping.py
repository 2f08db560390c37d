"""`zcrpc ping`."""

from __future__ import annotations

import asyncio
from typing import Any

import click

import zcrpc
from zcrpc.commands.common import Target, main, targeted, to_json


@click.command()
@targeted
@click.option("-c", "--count", type=click.IntRange(1), default=4, show_default=True, help="How many pings.")
@click.option(
    "-i", "--interval", type=click.FloatRange(0), default=0.2, show_default=True, help="Seconds between two of them."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def ping(target: Target, count: int, interval: float, as_json: bool) -> None:
    """How long a frame takes to a server and back. Exit status 1 if one did not come back within --timeout."""
    main(_ping(target, count, interval, as_json))


async def _ping(target: Target, count: int, interval: float, as_json: bool) -> int:
    seconds: list[float] = []
    async with target.connect() as client:
        for number in range(count):
            if number:
                await asyncio.sleep(interval)
            try:
                seconds.append(await client.ping(target.timeout))
            except zcrpc.DeadlineExceeded:
                click.echo(f"no pong from {target.address} within {target.timeout:g} s", err=True)
            else:
                if not as_json:
                    click.echo(f"pong from {target.address}: {seconds[-1] * 1000:.3f} ms")
    found = summary(count, seconds)
    if as_json:
        click.echo(to_json(found))
    elif seconds:
        click.echo(
            f"{count} sent, {len(seconds)} received; min/avg/max = "
            f"{found['min_ms']:.3f}/{found['avg_ms']:.3f}/{found['max_ms']:.3f} ms"
        )
    return 0 if len(seconds) == count else 1


def summary(count: int, seconds: list[float]) -> dict[str, Any]:
    """Of the pings that came back."""
    found: dict[str, Any] = {"sent": count, "received": len(seconds), "min_ms": None, "avg_ms": None, "max_ms": None}
    if seconds:
        found |= {
            "min_ms": min(seconds) * 1000,
            "avg_ms": sum(seconds) / len(seconds) * 1000,
            "max_ms": max(seconds) * 1000,
        }
    return found
