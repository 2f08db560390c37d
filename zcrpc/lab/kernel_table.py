"""The kernel experiment's results for people: the kernel's lock and the region map's in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zcrpc.lab.kernel import KERNEL, Round
from zcrpc.lab.tables import short

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("mmap\nlocks", "acquisitions_per_receive", lambda value: f"{value:.3f}"),
    ("wait\nµs", "waited_us_per_receive", short),
    ("call\np50 µs", "receive_p50_us", short),
    ("\np99", "receive_p99_us", short),
    ("\np99.9", "receive_p999_us", short),
    ("\nmax", "receive_max_us", short),
    ("mapped\n%", "mapped_percent", lambda value: f"{value:.1f}"),
    ("writes\n/s", "writer_changes_per_second", short),
)


def table(rounds: Sequence[Round]) -> Table:
    """Medians over the rounds, a row for each lock and writer; a section for each kernel and strategy."""
    first = rounds[0]
    result = Table(
        title=f"{first.receivers} receiver{'s' if first.receivers > 1 else ''} of {first.payload_bytes:,} bytes, "
        f"a writer that changes {first.area_mib} MiB",
        caption="mmap locks: taken for each receive; wait: for the kernel's or the map's lock, for each receive; "
        "medians over the rounds; –: not measured",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    result.add_column("lock\n+ writer", no_wrap=True)
    for heading, _, _ in _COLUMNS:
        result.add_column(heading, justify="right", no_wrap=True)
    named = ""
    for (lock, writer), each in sorted(_groups(rounds).items(), key=_order(rounds)):
        label = lock if lock != named else ""
        if label:
            result.add_section()
        label += f" + {writer}" if writer != "none" else ""
        result.add_row(label, *(_cell(each, name, say) for _, name, say in _COLUMNS))
        named = lock
    return result


def notes(rounds: Sequence[Round]) -> list[str]:
    """What is missing and why, each once."""
    return list(dict.fromkeys(f"{lock_name(each)}: {each.note}" for each in rounds if each.note))


def conclusion(rounds: Sequence[Round]) -> str:
    """What the figures say, in sentences: did receives take each kernel's mmap lock, and how long for the map's?"""
    said = []
    for lock in dict.fromkeys(lock_name(each) for each in rounds if each.strategy == KERNEL):
        mine = [each for each in rounds if lock_name(each) == lock]
        counts = [each.acquisitions_per_receive for each in mine if each.acquisitions_per_receive is not None]
        if counts:
            said.append(f"{lock}: {_verdict(max(counts))}{_slower(mine)}.")
    waits = _waits(rounds)
    if waits:
        said.append(f"Beside a writer of the region map, a receive waits {', '.join(waits)}, on average.")
    return " ".join(said)


def _waits(rounds: Sequence[Round]) -> list[str]:
    return [
        f"{short(median(each.waited_us_per_receive or 0 for each in found))} µs with {lock}"
        for (lock, writer), found in _groups(rounds).items()
        if writer == "write-lock"
    ]


def _verdict(most: float) -> str:
    if most < 0.05:
        return "receives take no mmap lock, only that of their mapping"
    if most < 0.95:
        return f"up to {100 * most:.0f} % of the receives take the mmap lock"
    return "every receive takes the mmap lock"


def _slower(rounds: Sequence[Round]) -> str:
    """How much longer a receive takes beside the writer that disturbs most."""
    by_writer = {
        writer: median(each.receive_p50_us for each in rounds if each.writer == writer)
        for writer in dict.fromkeys(each.writer for each in rounds if each.receives)
    }
    alone = by_writer.pop("none", 0)
    if not alone or not by_writer:
        return ""
    worst = max(by_writer, key=lambda writer: by_writer[writer])
    return f"; the call takes {short(alone)} µs alone and {short(by_writer[worst])} µs beside {worst}"


def lock_name(found: Round) -> str:
    """What a row is called: a strategy of the region map, or a kernel by the first two numbers of its release."""
    return found.strategy if found.strategy != KERNEL else "Linux " + ".".join(found.kernel.split(".")[:2])


def _groups(rounds: Sequence[Round]) -> dict[tuple[str, str], list[Round]]:
    groups: dict[tuple[str, str], list[Round]] = {}
    for each in rounds:
        groups.setdefault((lock_name(each), each.writer), []).append(each)
    return groups


def _order(rounds: Sequence[Round]) -> Callable[[tuple[tuple[str, str], list[Round]]], tuple[int, int]]:
    """Locks as they were first measured, of each the row without a writer first."""
    locks = list(dict.fromkeys(lock_name(each) for each in rounds))
    writers = ["none", *dict.fromkeys(each.writer for each in rounds if each.writer != "none")]
    return lambda item: (locks.index(item[0][0]), writers.index(item[0][1]))


def _cell(rounds: Sequence[Round], name: str, say: Callable[[float], str]) -> str:
    values = [value for each in rounds if (value := getattr(each, name)) is not None and each.receives]
    return say(median(values)) if values else "–"
