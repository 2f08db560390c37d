"""`zcrpc lab report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from zcrpc.lab.commands.common import FILE, write


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULTS...")
@click.option("--out", default="report.html", show_default=True, type=FILE, help="The page to write.")
def report(results: tuple[Path, ...], out: Path) -> None:
    """Make one page with plots and tables from results files, whatever commands they are of."""
    try:
        from zcrpc.lab.report import page, reading  # matplotlib takes a second to load, and may be absent
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("matplotlib", "jinja2", "markupsafe"):
            raise
        click.echo(f"zcrpc: a report needs {error.name}: pip install 'zcrpc[report]'", err=True)
        sys.exit(1)
    _refuse(out, results)
    found = reading.read(results)
    for problem in found.problems:
        click.echo(f"zcrpc: {problem}", err=True)
    if not found.sources:
        click.echo("zcrpc: there is nothing to report", err=True)
        sys.exit(1)
    write(out, page.render(found).encode())
    click.echo(out)


def _refuse(out: Path, results: tuple[Path, ...]) -> None:
    """Raises `click.UsageError` for a page that cannot be written, or that would overwrite what it is made from."""
    if out.exists() and any(path.exists() and path.samefile(out) for path in results):
        raise click.UsageError(f"{out} is one of the results")
    existed = out.exists()
    try:
        out.open("ab").close()
    except OSError as error:
        raise click.UsageError(f"cannot write {out}: {error.strerror}") from None
    if not existed:
        out.unlink()
