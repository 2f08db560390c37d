"""`zcrpc lab bench`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from zcrpc.lab.bench import LOCKS, Matrix, Row, run
from zcrpc.lab.bench_tables import conclusions, report
from zcrpc.lab.commands.common import collect, json_option, lock_names, names
from zcrpc.lab.lock_bench import NOT_LOCKS

T = TypeVar("T")

_DEFAULT = Matrix()


def _listed(name: str, default: tuple[object, ...], text: str) -> Callable[[Any], Any]:
    shown = ",".join(map(str, default))
    return click.option(name, default=shown, show_default=True, help=f"{text}, separated by commas.")


@click.command()
@click.option(
    "--locks",
    default=",".join(LOCKS),
    show_default=True,
    help='Lock strategies, separated by commas, or all; "none" and "pthread-pair" where nothing is written.',
)
@_listed("--threads", _DEFAULT.threads, "Numbers of threads")
@_listed("--regions", _DEFAULT.regions, "Numbers of regions, which threads divide among them")
@_listed("--hold-ns", _DEFAULT.hold_ns, "Nanoseconds that readers and writers stay inside")
@_listed("--write-percent", _DEFAULT.write_percent, "Percentages of writes")
@_listed("--layout", _DEFAULT.layouts, "disjoint (each thread in its own regions) and hot (all in one)")
@click.option("--rounds", default=_DEFAULT.rounds, show_default=True, help="Rounds in which strategies alternate.")
@click.option(
    "--seconds",
    default=_DEFAULT.seconds,
    show_default=True,
    help="Measured for each strategy at each point in each of two loops, over all rounds.",
)
@click.option(
    "--rate", default=0.0, help="Operations per second and thread in open loops.  [default: half of the slowest's]"
)
@click.option("--hold", is_flag=True, help="Lock even where a strategy lets readers look without holding.")
@json_option
def bench(json_path: Path | None, **settings: Any) -> None:
    """What do lock strategies cost by themselves? Throughput, CPU time, latency and fairness, nothing received."""
    matrix = _matrix(**settings)
    done, status = collect(
        run(matrix),
        total=matrix.total,
        describe=_describe,
        kind="bench",
        json_path=json_path,
        settings=dataclasses.asdict(matrix),
    )
    if done:
        console = Console()
        for part in report(done):
            console.print(part)
        for line in conclusions(done):
            console.print(line, highlight=False)
    sys.exit(status)


def _describe(row: Row) -> str:
    return f"{row.strategy}, {row.threads} × {row.layout}, {row.write_percent:g} % writes, round {row.round + 1}"


def _matrix(**settings: Any) -> Matrix:
    lists: dict[str, Callable[[str], Any]] = {"threads": int, "regions": int, "hold_ns": int, "write_percent": float}
    settings["layouts"] = names(settings.pop("layout"))
    settings["locks"] = _locks(settings["locks"])
    for name, kind in lists.items():
        settings[name] = _numbers(f"--{name.replace('_', '-')}", kind, settings[name])
    try:
        return Matrix(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _locks(text: str) -> tuple[str, ...]:
    chosen = names(text)
    strategies = [name for name in chosen if name not in NOT_LOCKS]
    known = lock_names(",".join(strategies)) if strategies or not chosen else ()
    return known if chosen == ("all",) else chosen


def _numbers(option: str, kind: Callable[[str], T], text: str) -> tuple[T, ...]:
    try:
        return tuple(kind(each) for each in names(text))
    except ValueError:
        raise click.UsageError(f"{option} must be numbers, separated by commas, not {text}") from None
