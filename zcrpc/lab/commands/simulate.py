"""`zcrpc lab simulate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zcrpc.lab.commands.common import FILE, json_option, names, refuse_unwritable, save, write
from zcrpc.lab.simulate import document, machine, prediction, programs, published, topology
from zcrpc.lab.simulate.prediction import LOAD, Prediction
from zcrpc.lab.simulate.published import Check
from zcrpc.lab.simulate.topology import Topology
from zcrpc.lab.simulate.workload import B_BACK_TO_BACK
from zcrpc.lab.tables import short

MOST_CORES = 256


@click.command()
@click.option("--cores", default=f"1..{MOST_CORES}", show_default=True, help="8, or 2,8,64, or 1..256: by doubling.")
@click.option("--topology", "topology_path", type=FILE, help="A machine, in JSON.  [default: an 8-socket Xeon 8176]")
@click.option("--locks", default=",".join(programs.LOCKS), show_default=True, help="Strategies, separated by commas.")
@click.option("--b", type=click.IntRange(1, 1000), help="RMWs per ownership of a line that others want.  [default: 1]")
@click.option("--validate", is_flag=True, help="Instead: compare the model with published figures and this machine.")
@click.option("--document", "document_path", type=FILE, help="Write all of it, validation included, as Markdown.")
@json_option
def simulate(
    cores: str,
    topology_path: Path | None,
    locks: str,
    b: int | None,
    validate: bool,
    document_path: Path | None,
    json_path: Path | None,
) -> None:
    """What would a lock strategy cost on more cores? The seed workload, by a model of cache lines."""
    try:
        where = topology.builtin() if topology_path is None else topology.read(topology_path)
        counts, chosen = parse_cores(cores, where), parse_locks(locks)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    refuse_unwritable(json_path)
    refuse_unwritable(document_path)
    settings = {"topology": where.name, "cores": counts, "locks": chosen, "b": b}
    if validate:
        checks = [*published.table_checks(sweep=False), *machine.measure()]
        save(json_path, "simulate-validation", checks, settings)
        Console().print(validation_table(checks))
        return
    done: list[Prediction] = []
    status = 0
    try:
        done.extend(prediction.predict(where, chosen, counts, b))
        if document_path is not None:
            write(document_path, _document(where, chosen, counts, done))
    except KeyboardInterrupt:
        status = 130
        click.echo("interrupted; this was predicted", err=True)
    save(json_path, "simulate", [row for each in done for row in flat(where, each)], settings)
    if done:
        for table in tables(where, done):
            Console().print(table)
    sys.exit(status)


def parse_cores(text: str, where: Topology) -> list[int]:
    """Numbers of cores. Raises `ValueError`: not numbers, none, or more than the machine has."""
    first, dots, last = text.partition("..")
    try:
        if dots:
            start, end = int(first), int(last)
            counts = sorted({start, end, *(1 << k for k in range(13) if start < 1 << k < end)})
        else:
            start, end = 1, 1
            counts = sorted({int(each) for each in text.split(",")})
    except ValueError:
        raise ValueError(f"cores must be like 8, 2,8,64 or 1..256, not {text}") from None
    most = min(MOST_CORES, where.cpus)
    if start > end or counts[0] < 1 or counts[-1] > most:
        raise ValueError(f"cores must be 1 to {most} on {where.name}, not {text}")
    return counts


def parse_locks(text: str) -> list[str]:
    """Names of strategies. Raises `ValueError`."""
    chosen = list(names(text))
    if not chosen:
        raise ValueError("no lock strategy was named")
    for name in chosen:
        programs.find(name)
    return chosen


def flat(where: Topology, each: Prediction) -> Iterable[dict[str, Any]]:
    """A row for each scenario: the fields of `Outcome`, and what was simulated."""
    for scenario in ("saturated", "readers-only", "writer-storm"):
        outcome = getattr(each, scenario.replace("-", "_").replace("writer_", ""))
        asked = {"scenario": scenario, "topology": where.name, "b": each.b, "cores": each.cores}
        load = None if scenario == "saturated" else each.offered_per_second
        yield {**asked, "offered_per_second": load, **dataclasses.asdict(outcome)}


def tables(where: Topology, done: Sequence[Prediction]) -> Iterable[Table]:
    """A row for each strategy, a column for each number of cores."""
    load = f"arrivals at {LOAD:.0%} of what cores without locks could do"
    yield _by_cores(
        done,
        f"seed workload on {where.name}, b = {done[0].b}, saturated: million requests/s ≤ bound",
        lambda each: f"{each.saturated.operations_per_second / 1e6:.2f}\n≤{each.saturated.bound_per_second / 1e6:.2f}",
    )
    for title, storm in (("readers only", False), ("a writer holds the map lock 500 µs of every 1,000", True)):
        yield _by_cores(
            done, f"{title}, {load}: lock wait p99 µs, done of what arrived", lambda e, s=storm: _cell(e, s)
        )


def _cell(each: Prediction, storm: bool) -> str:
    outcome = each.storm if storm else each.readers_only
    done = min(outcome.operations_per_second / each.offered_per_second, 1.0)
    return f"{short(outcome.wait_p99_us)}\n{done:.0%}"


def _by_cores(done: Sequence[Prediction], title: str, cell: Any) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for count in sorted({each.cores for each in done}):
        table.add_column(str(count), justify="right", no_wrap=True)
    for name in dict.fromkeys(each.locks for each in done):
        table.add_row(name, *(cell(each) for each in done if each.locks == name))
    return table


def validation_table(checks: Sequence[Check]) -> Table:
    """Passes and failures, in the order of the series."""
    table = Table(title="the model against what was measured, ns per operation", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("series", "threads", "measured", "predicted", "off by", ""):
        table.add_column(heading, justify="left" if heading in ("series", "") else "right")
    for each in checks:
        cost = (f"{each.published:,.1f}", f"{each.predicted:,.1f}", f"{each.error_percent:+.0f} %")
        table.add_row(each.series, str(each.threads), *cost, each.verdict)
    return table


def _document(where: Topology, chosen: Sequence[str], counts: Sequence[int], done: Sequence[Prediction]) -> bytes:
    def say(what: str) -> None:
        click.echo(what, err=True)

    say("predicting with more RMWs per ownership")
    optimistic = list(prediction.predict(where, chosen, counts, B_BACK_TO_BACK))
    return document.write(where, done, optimistic, say).encode()
