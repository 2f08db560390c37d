"""`zcrpc lab seed`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from zcrpc.lab import tables
from zcrpc.lab.commands.common import collect, json_option, lock_names
from zcrpc.lab.seed import Experiment, run

_STORM = (1000, 500)  # µs: interval and hold where none are given, as in the seed
_ROUNDS = 5
_SHORTEST_ROUND = 0.25  # seconds; fewer rounds rather than shorter ones, where their number is not given


@click.command()
@click.option("--connections", default=100, show_default=True, help="TCP connections, one request in flight on each.")
@click.option("--payload", default=4096, show_default=True, help="Bytes in each request.")
@click.option("--receive-threads", default=2, show_default=True, help="Native receiving threads.")
@click.option(
    "--seconds", default=5.0, show_default=True, help="Measured for each strategy and scenario, over all rounds."
)
@click.option("--rounds", type=int, help=f"Rounds in which strategies alternate.  [default: {_ROUNDS}]")
@click.option(
    "--locks", default="global,per-region", show_default=True, help="Lock strategies, separated by commas, or all."
)
@click.option(
    "--connections-per-region",
    default=1,
    show_default=True,
    help="Connections that share a region; 0: all of a thread.",
)
@click.option("--writer-interval-us", type=int, help="The storm's period; 0: no storm.  [default: 1000]")
@click.option("--writer-hold-us", type=int, help="How long of it the writer holds the map lock.  [default: 500]")
@click.option("--writer-busy", is_flag=True, help="The writer computes while it holds the lock, rather than sleep.")
@json_option
def seed(json_path: Path | None, locks: str, rounds: int | None, **settings: Any) -> None:
    """What does the lock around "find the region, receive into it" cost, with readers only and under a writer storm?"""
    experiment = _experiment(lock_names(locks), rounds, **settings)
    done, status = collect(
        run(experiment),
        total=experiment.rounds * len(experiment.scenarios) * len(experiment.locks),
        describe=lambda each: f"{each.scenario}, {each.strategy}: {each.requests_per_second:,.0f} requests/s",
        kind="seed",
        json_path=json_path,
        settings=dataclasses.asdict(experiment),
    )
    if done:
        console = Console()
        console.print(tables.table(done))
        console.print(tables.conclusion(done))
    sys.exit(status)


def _experiment(locks: tuple[str, ...], rounds: int | None, **settings: Any) -> Experiment:
    interval, hold = settings.pop("writer_interval_us"), settings.pop("writer_hold_us")
    if (interval is None) != (hold is None) and interval != 0:
        raise click.UsageError("--writer-interval-us and --writer-hold-us go together")
    if rounds is None:
        rounds = max(1, min(_ROUNDS, int(settings["seconds"] / _SHORTEST_ROUND)))
    try:
        return Experiment(
            locks=locks,
            rounds=rounds,
            writer_interval_us=_STORM[0] if interval is None else interval,
            writer_hold_us=_STORM[1] if interval is None else hold or 0,
            **settings,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
