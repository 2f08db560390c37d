"""Parts of documents that a command writes: between two marks, nothing is typed by hand."""

from __future__ import annotations

from pathlib import Path

import click


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the part of that name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def check(path: Path, name: str) -> None:
    """Raises `click.UsageError` if the file is not there or has no such marks: to be known before, not after."""
    _parts(path, name)


def write(path: Path, name: str, content: str) -> None:
    """Puts Markdown between the marks. Raises as `check`."""
    before, after = _parts(path, name)
    begin, end = marks(name)
    path.write_text(f"{before}{begin}\n\n{content}\n{end}{after}")


def _parts(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after the marks."""
    try:
        text = path.read_text()
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    begin, end = marks(name)
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise click.UsageError(f"{path} has no marks for the figures: {begin} … {end}")
    return before, after
