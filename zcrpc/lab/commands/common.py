"""What the laboratory's commands have in common: options, progress, and results that an interrupt does not lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from zcrpc import locks
from zcrpc.lab import results
from zcrpc.lab.processes import ChildFailed

T = TypeVar("T")

FILE: Final = click.Path(dir_okay=False, path_type=Path)
json_option = click.option("--json", "json_path", type=FILE, help="Write every measurement to this file.")


def names(text: str) -> tuple[str, ...]:
    """The parts of a list with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def lock_names(text: str) -> tuple[str, ...]:
    """Strategies by name; "all" is every one of them, plugins included. Raises `click.UsageError`."""
    known = locks.names()
    if text.strip() == "all":
        return tuple(known)
    chosen = names(text)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise click.UsageError(f"no such lock strategy: {', '.join(unknown)}; there are {', '.join(known)}")
    if not chosen:
        raise click.UsageError("no lock strategy was named")
    return chosen


def refuse_unwritable(path: Path | None) -> None:
    """Raises `click.UsageError` for a file that cannot be written: to be known before, not after. Leaves it empty."""
    if path is not None:
        write(path, b"")


def write(path: Path, content: bytes) -> None:
    """Writes a file. Raises `click.UsageError`."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _unwritable(path, error) from None


def save(path: Path | None, kind: str, rows: list[T], settings: Mapping[str, object]) -> None:
    """Writes a results file, if one was asked for. Raises `click.UsageError`."""
    if path is None:
        return
    try:
        results.write(path, kind, rows, settings)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> click.UsageError:
    return click.UsageError(f"cannot write {path}: {error.strerror}")


def collect(
    rows: Iterator[T],
    *,
    total: int,
    describe: Callable[[T], str],
    kind: str,
    json_path: Path | None,
    settings: Mapping[str, object],
) -> tuple[list[T], int]:
    """Runs an experiment under a progress bar, and keeps what it has got when it is interrupted or fails.

    Args:
        rows: the experiment; each row is one of `total`, and `describe` says of it what the bar shows.
        kind, json_path, settings: the results file, see `zcrpc.lab.results`.

    Returns:
        The rows, and the status to exit with: 0, 130 after an interrupt, 1 if the experiment failed.
    """
    refuse_unwritable(json_path)
    done: list[T] = []
    status = 0
    try:
        _advance(rows, done, total, describe)
    except KeyboardInterrupt:
        status = 130
        click.echo("interrupted; this was measured", err=True)
    except ChildFailed as error:
        status = 1
        click.echo(f"zcrpc: {error}", err=True)
    save(json_path, kind, done, settings)
    return done, status


def _advance(rows: Iterator[T], done: list[T], total: int, describe: Callable[[T], str]) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=total)
        for row in rows:
            done.append(row)
            progress.update(task, advance=1, description=describe(row))
