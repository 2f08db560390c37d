"""The table of docs/kernel.md: nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import marked

from zcrpc.lab.kernel import Round

_NAME: Final = "figures"
MARKS: Final = marked.marks(_NAME)


def check(path: Path) -> None:
    """Raises `click.UsageError` if the file is not there or has no marks: to be known before, not after."""
    marked.check(path, _NAME)


def write(path: Path, rounds: Sequence[Round], where: str) -> None:
    """Puts the table between the file's marks."""
    marked.write(path, _NAME, table(rounds, where))


def table(rounds: Sequence[Round], where: str) -> str:
    """Markdown: a row for each kernel and writer."""
    lines = [
        f"Measured on {where}.",
        "",
        "| kernel | | writer | mmap-lock acquisitions per receive | waited for it, ms | longest, µs | "
        "call p50 / p99.9 µs |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for each in rounds:
        counted = each.acquisitions_per_receive is not None
        figures = (
            f"**{each.acquisitions_per_receive:.3f}** ({each.acquisitions:,} of {each.counted_receives:,})"
            if counted
            else f"– ({each.note})",
            f"{(each.waited_us_per_receive or 0) * each.counted_receives / 1e3:,.1f}" if counted else "–",
            f"{each.longest_wait_us:,.0f}" if counted else "–",
            f"{each.receive_p50_us:,.1f} / {each.receive_p999_us:,.0f}" if each.receives else "–",
        )
        how = "emulated" if each.emulated else "this machine's"
        lines.append(f"| {each.kernel} | {how} | {each.writer} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"
