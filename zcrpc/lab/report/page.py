"""The page: sections, tables and machines in one HTML file, with its drawings, its style and nothing else in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from zcrpc import locks
from zcrpc.lab.report import benches, figures, kernels, live, model, plots, torture
from zcrpc.lab.report.kinds import KINDS
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.report.sections import Look, Missing, Section

_PARTS: Sequence[Callable[[Collection, Look], Iterator[Section | Missing]]] = (
    live.sections,
    benches.sections,
    kernels.sections,
    torture.sections,
    model.sections,
)


def render(found: Collection) -> str:
    """The page of everything that was read."""
    look = plots.styles(_strategies(found), ["global", "per-region", "speculative", *locks.names()])
    answers = [answer for part in _PARTS for answer in part(found, look)]
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        style=Markup(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")),
        sections=[answer for answer in answers if isinstance(answer, Section)],
        missing=list(_by_command(answers).items()),
        machines=[figures.machine_line(machine) for machine in found.machines()],
        sources=found.sources,
        problems=found.problems,
        tables=figures.tables(found.rows, KINDS),
        machine_line=figures.machine_line,
        number=figures.number,
        kinds=KINDS,
        version=version("zcrpc"),
        today=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def _strategies(found: Collection) -> list[str]:
    """The names in the files, which may be others than those of the strategies that are loaded here."""
    names: dict[Any, None] = {}
    for rows in found.rows.values():
        for each in rows:
            for field in ("strategy", "locks", "receive"):
                names.setdefault(getattr(each.row, field, None))
    return [name for name in names if isinstance(name, str)]


def _by_command(answers: Sequence[Section | Missing]) -> dict[str, list[str]]:
    """The questions that have no answer, by the command that would answer them."""
    found: dict[str, list[str]] = {}
    for answer in answers:
        if isinstance(answer, Missing):
            found.setdefault(answer.command, []).append(answer.question)
    return found
