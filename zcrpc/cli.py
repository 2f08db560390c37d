"""The command line: ``zcrpc lab`` and its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from zcrpc import locks as locks_of
from zcrpc.calibration import Receive
from zcrpc.lab import new as example
from zcrpc.lab import tables
from zcrpc.lab import upload as uploads
from zcrpc.lab.processes import ChildFailed
from zcrpc.lab.seed import Experiment, Round, run
from zcrpc.lab.simulate.command import simulate

_STORM = (1000, 500)  # µs: interval and hold where none are given, as in the seed
_ROUNDS = 5
_SHORTEST_ROUND = 0.25  # seconds; fewer rounds rather than shorter ones, where their number is not given


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zcrpc")
def cli() -> None:
    """An RPC library that maps payloads instead of copying them, and a laboratory for the locks behind it."""


@cli.group()
def lab() -> None:
    """Experiments on live servers."""


lab.add_command(simulate)


@lab.command()
@click.option("--connections", default=100, show_default=True, help="TCP connections, one request in flight on each.")
@click.option("--payload", default=4096, show_default=True, help="Bytes in each request.")
@click.option("--receive-threads", default=2, show_default=True, help="Native receiving threads.")
@click.option(
    "--seconds", default=5.0, show_default=True, help="Measured for each strategy and scenario, over all rounds."
)
@click.option("--rounds", type=int, help=f"Rounds in which strategies alternate.  [default: {_ROUNDS}]")
@click.option("--locks", default="global,per-region", show_default=True, help="Lock strategies, separated by commas.")
@click.option(
    "--connections-per-region",
    default=1,
    show_default=True,
    help="Connections that share a region; 0: all of a thread.",
)
@click.option("--writer-interval-us", type=int, help="The storm's period; 0: no storm.  [default: 1000]")
@click.option("--writer-hold-us", type=int, help="How long of it the writer holds the map lock.  [default: 500]")
@click.option("--writer-busy", is_flag=True, help="The writer computes while it holds the lock, rather than sleep.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every round to this file."
)
def seed(json_path: Path | None, locks: str, rounds: int | None, **settings: Any) -> None:
    """What does the lock around "find the region, receive into it" cost, with readers only and under a writer storm?"""
    experiment = _experiment(locks, rounds, **settings)
    if json_path is not None:
        _write(json_path, [])  # a path that cannot be written is to be known before, not after
    done: list[Round] = []
    status = 0
    try:
        _measure(experiment, done)
    except KeyboardInterrupt:
        status = 130
        click.echo("interrupted; this was measured", err=True)
    except ChildFailed as error:
        status = 1
        click.echo(f"zcrpc: {error}", err=True)
    if json_path is not None:
        _write(json_path, done)
    if done:
        console = Console()
        console.print(tables.table(done))
        console.print(tables.conclusion(done))
    sys.exit(status)


@lab.command()
@click.option("--payload", default=16 << 20, show_default=True, help="Bytes in each upload.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured for each way of receiving.")
@click.option(
    "--receive", default="zerocopy,copy,auto", show_default=True, help="Ways of receiving, separated by commas."
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file."
)
def upload(payload: int, seconds: float, receive: str, json_path: Path | None) -> None:
    """Upload to a real server from a real client, both in Python: how fast, and how much of it was mapped?"""
    ways = _ways(receive)
    if not 1 <= payload <= 256 << 20 or not 0 < seconds <= 3600:
        raise click.UsageError("payload must be 1 byte to 256 MiB, seconds more than 0 and at most 3600")
    if json_path is not None:
        _write(json_path, [])
    done = [uploads.run(way, payload, seconds) for way in ways]
    if json_path is not None:
        _write(json_path, done)
    Console().print(tables.upload_table(done))


@lab.command()
@click.argument("name")
@click.option(
    "--in", "parent", default=".", type=click.Path(file_okay=False, path_type=Path), help="Where to put the directory."
)
def new(name: str, parent: Path) -> None:
    """Write a working lock strategy to start from: a C file, the command that builds it, and its tests."""
    try:
        written = example.write(name, parent)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"cannot write {parent / name}: {error.strerror}") from None
    for path in written:
        click.echo(path)
    plugin = written[0].with_suffix(".so")
    click.echo(f"\nBuild and test it:  make -C {plugin.parent} test")
    click.echo(f"Run a server on it: {locks_of.ENVIRONMENT}={plugin} zcrpc lab seed --locks global,{name}")


def _ways(receive: str) -> list[Receive]:
    ways = [name.strip() for name in receive.split(",") if name.strip()]
    unknown = [name for name in ways if name not in get_args(Receive)]
    if unknown or not ways:
        raise click.UsageError(
            f"no such way of receiving: {', '.join(unknown) or 'none'}; there are {', '.join(get_args(Receive))}"
        )
    return cast("list[Receive]", ways)


def _experiment(locks: str, rounds: int | None, **settings: Any) -> Experiment:
    interval, hold = settings.pop("writer_interval_us"), settings.pop("writer_hold_us")
    if (interval is None) != (hold is None) and interval != 0:
        raise click.UsageError("--writer-interval-us and --writer-hold-us go together")
    if rounds is None:
        rounds = max(1, min(_ROUNDS, int(settings["seconds"] / _SHORTEST_ROUND)))
    try:
        return Experiment(
            locks=tuple(name.strip() for name in locks.split(",") if name.strip()),
            rounds=rounds,
            writer_interval_us=_STORM[0] if interval is None else interval,
            writer_hold_us=_STORM[1] if interval is None else hold or 0,
            **settings,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _measure(experiment: Experiment, done: list[Round]) -> None:
    """Adds each round to `done` as it ends, so that an interrupted run keeps what it has."""
    total = experiment.rounds * len(experiment.scenarios) * len(experiment.locks)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=total)
        for each in run(experiment):
            done.append(each)
            progress.update(
                task,
                advance=1,
                description=f"{each.scenario}, {each.strategy}: {each.requests_per_second:,.0f} requests/s",
            )


def _write(path: Path, rows: Sequence[object]) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}") from None


def main() -> None:
    """The entry point: what is wrong with the arguments is one line on standard error, status 2."""
    try:
        cli.main(prog_name="zcrpc", standalone_mode=False)
    except click.UsageError as error:
        click.echo(f"zcrpc: {error.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
