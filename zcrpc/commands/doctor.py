"""`zcrpc doctor`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

from zcrpc.calibration import Cost
from zcrpc.commands.common import FILE, to_json
from zcrpc.doctor import Diagnosis, diagnose, interfaces
from zcrpc.doctor.advice import size
from zcrpc.doctor.finding import Finding, Verdict
from zcrpc.doctor.interfaces import Interface

_STYLES: Final[dict[Verdict, str]] = {"good": "green", "note": "yellow", "bad": "red", "unknown": "dim"}
_MARKS: Final[dict[Verdict, str]] = {"good": "✓", "note": "!", "bad": "✗", "unknown": "?"}
_BAR: Final = 12  # columns to either side
_FULL: Final = 4.0  # the ratio at which a bar is full


@click.command()
@click.option("--interface", "name", help="A network interface to look at, instead of all that are up.")
@click.option("--address", help="A host: the interface by which it is reached.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=2.0,
    show_default=True,
    help="Spent on measuring what copying and mapping cost.",
)
@click.option("--json", "json_path", type=FILE, help="Write everything to this file, too; -: print that alone.")
def doctor(name: str | None, address: str | None, seconds: float, json_path: Path | None) -> None:
    """Look at this host: what receiving costs, and what to set.

    Whether received payloads can be mapped, what mapping and copying cost at each size, what is in the way, and which
    options suit this host. Exit status 0 if payloads can be mapped, whether that pays or not; 1 if not.
    """
    chosen = _interfaces(name, address)
    alone = str(json_path) == "-"
    if json_path is not None and not alone:
        _write(json_path, "")  # whether that can be done is to be known before
    found = diagnose(chosen, seconds, _progress)
    text = to_json(found, indent=2)
    if json_path is not None and not alone:
        _write(json_path, text + "\n")
    if alone:
        click.echo(text)
    else:
        Console().print(page(found))
    sys.exit(0 if found.can_map else 1)


def _interfaces(name: str | None, address: str | None) -> list[Interface]:
    if name is not None and address is not None:
        raise click.UsageError("--interface and --address exclude each other")
    try:
        if name is not None:
            return [interfaces.look(name)]
        return interfaces.all_up() if address is None else [interfaces.towards(address)]
    except (OSError, ValueError) as error:
        if name is None and address is None:
            return []
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise click.UsageError(f"{name or address}: {why}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}") from None


def _progress(costs: Iterator[Cost], total: int) -> Iterator[Cost]:
    console = Console(stderr=True)
    yield from track(costs, "measuring", total, console=console, transient=True, disable=not console.is_terminal)


# ---- for people


def page(found: Diagnosis) -> Group:
    """A screen or two."""
    parts: list[Text | Table] = [Text(_verdict(found), "bold"), _findings(found.findings)]
    if found.costs:
        parts += [Text("Seconds of CPU for a gigabyte over loopback, both ends", "bold"), _costs(found)]
    return Group(*parts, Text(_calibration(found)), Text("\nWhat to set", "bold"), _settings(found))


def _verdict(found: Diagnosis) -> str:
    if not found.can_map:
        return "Payloads cannot be mapped here. They are copied, and all else works."
    if found.calibration.map_from:
        return "Payloads can be mapped here, and that pays."
    return "Payloads can be mapped here, but copying them is cheaper."


def _findings(findings: list[Finding]) -> Table:
    table = _table("", "", "found", "which means")
    for each in findings:
        means = Text(each.means)
        if each.to_do:
            means.append(f"\n→ {each.to_do}", "bold")
        table.add_row(Text(_MARKS[each.verdict], _STYLES[each.verdict]), each.name, Text(each.found), means)
    return table


def _table(*headings: str, right: int = 0) -> Table:
    """`right`: so many of the last columns are numbers."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        numeric = number >= len(headings) - right
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    return table


def _costs(found: Diagnosis) -> Table:
    table = _table("payload", "copied", "mapped", "", right=4)
    chart = Text.assemble(("mapping cheaper".rjust(_BAR + 3) + " │ ", ""), ("copying cheaper", ""))
    table.add_column(chart, no_wrap=True)
    for each in found.costs:
        row = [size(each.length), f"{each.copy.total:.3f}"]
        if each.map is None:
            table.add_row(*row, "–", "", "")
            continue
        ratio = each.map.total / each.copy.total
        table.add_row(*row, f"{each.map.total:.3f}", f"{ratio:.2f} ×", _bar(ratio))
    return table


def _bar(ratio: float) -> Text:
    """To the left of the line where mapping is cheaper, to the right where copying is; logarithmic."""
    length = round(min(abs(math.log(ratio)) / math.log(_FULL), 1) * _BAR)
    left, right = ("█" * length, "") if ratio < 1 else ("", "█" * length)
    return Text.assemble((left.rjust(_BAR + 3), "green"), " │ ", (right, "yellow"))


def _calibration(found: Diagnosis) -> str:
    asks = found.calibration.map_from
    lines = []
    if found.costs:
        where = f"from {size(found.cheaper_from)} on" if found.cheaper_from else "nowhere"
        lines.append(f"Mapping is the cheaper way by 5 % or more: {where}.")
    lines.append(
        f'receive="auto" measures for itself when it first listens or connects, which took '
        f"{1e3 * found.calibration.seconds:.0f} ms, in a thread; the event loop goes on meanwhile. "
        + (f"It maps from {size(asks)} on." if asks else "It copies.")
    )
    return "\n".join(lines)


def _settings(found: Diagnosis) -> Table:
    table = _table("option", "value", "because")
    for each in found.settings:
        table.add_row(each.option, each.value, each.why)
    return table
