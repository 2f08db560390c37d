"""Results for people: tables of medians with their spread, and a last line that says what they show."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zcrpc.lab.seed import Round
from zcrpc.lab.upload import Upload

Figures = Callable[[str], float]  # a field's median

# (what the row says, field); None draws a line
_ROWS: tuple[tuple[str, str] | None, ...] = (
    ("requests/s", "requests_per_second"),
    ("CPU µs/request", "server_cpu_us_per_request"),
    ("lock-path share %", "lock_path_share_percent"),
    ("fallbacks %", "fallback_percent"),
    ("mapped %", "mapped_percent"),
    None,
    ("lock wait p50 µs", "lock_wait_p50_us"),
    ("          p99", "lock_wait_p99_us"),
    ("          p99.9", "lock_wait_p999_us"),
    ("          max", "lock_wait_max_us"),
    None,
    ("receive p50 µs", "receive_p50_us"),
    ("        p99", "receive_p99_us"),
    ("        p99.9", "receive_p999_us"),
    ("        max", "receive_max_us"),
    None,
    ("writer locks/s", "writer_locks_per_second"),
    ("writer wait p50 µs", "writer_wait_p50_us"),
    ("            p99.9", "writer_wait_p999_us"),
    ("preempted samples", "preempted_samples"),
)


def table(rounds: Sequence[Round]) -> Table:
    """Medians over the rounds, ± half of the range; the scenarios side by side. Two strategies fit 80 columns."""
    columns = list(dict.fromkeys((each.scenario, each.strategy) for each in rounds))
    columns.sort(key=lambda column: column[0])  # readers-only before writer-storm; strategies stay in their order
    first = rounds[0]
    result = Table(
        title=f"{first.connections} connections × {first.payload_bytes:,} bytes, {first.receive_threads} receive "
        f"threads, {len(rounds) // len(columns)} rounds of {first.seconds:.2g} s",
        caption="median ± half of the range",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    result.add_column("", no_wrap=True)
    for scenario, strategy in columns:
        result.add_column(f"{scenario}\n{strategy}", justify="right", no_wrap=True)
    for row in _ROWS:
        if row is None:
            result.add_section()
            continue
        label, name = row
        result.add_row(label, *(_cell(_values(rounds, *column, name)) for column in columns))
    return result


def _values(rounds: Sequence[Round], scenario: str, strategy: str, name: str) -> list[float]:
    return [getattr(each, name) for each in rounds if each.scenario == scenario and each.strategy == strategy]


def _cell(values: Sequence[float]) -> str:
    spread = (max(values) - min(values)) / 2
    return short(median(values)) + (f" ±{short(spread)}" if len(values) > 1 else "")


def short(value: float) -> str:
    """Three digits, or two decimals: 96,512 is 96.5k, 1,616 is 1.62k, 0.3712 is 0.37."""
    for limit, divisor, decimals, suffix in (
        (10, 1, 2, ""),
        (100, 1, 1, ""),
        (1_000, 1, 0, ""),
        (10_000, 1_000, 2, "k"),
        (100_000, 1_000, 1, "k"),
        (1_000_000, 1_000, 0, "k"),
    ):
        if round(value, decimals) < limit:
            return f"{value / divisor:.{decimals}f}{suffix}" if value else "0"
    return f"{value / 1e6:.2f}M"


def conclusion(rounds: Sequence[Round]) -> str:
    """What the figures say of the first strategy against each other one, in sentences."""
    strategies = list(dict.fromkeys(each.strategy for each in rounds))
    said = []
    for scenario, say in (("readers-only", _readers_only), ("writer-storm", _storm)):
        present = [name for name in strategies if _values(rounds, scenario, name, "requests")]
        if present:
            said.append(say({name: partial(_median, rounds, scenario, name) for name in present}))
    return " ".join(said)


def _median(rounds: Sequence[Round], scenario: str, strategy: str, name: str) -> float:
    return median(_values(rounds, scenario, strategy, name))


def _readers_only(figures: dict[str, Figures]) -> str:
    shares = ", ".join(f"{of('lock_path_share_percent'):.2f} % with {name}" for name, of in figures.items())
    speeds = [of("requests_per_second") for of in figures.values()]
    verdict = (
        f"Readers only, on {os.cpu_count()} cores: finding, locking and unlocking takes {shares} of the receivers' CPU"
    )
    if len(speeds) > 1:
        verdict += f", and requests/s are within {100 * (max(speeds) / min(speeds) - 1):.0f} %"
    return verdict + "."


def _storm(figures: dict[str, Figures]) -> str:
    (base, baseline), *others = figures.items()
    waits = baseline("lock_wait_p999_us")
    text = f"Writer storm: with {base}, one receive in a thousand waits {_us(waits)} or more for the lock"
    for name, of in others:
        wait, speed = of("lock_wait_p999_us"), of("requests_per_second") / baseline("requests_per_second")
        text += f"; with {name} {_us(wait)}, which is 1/{waits / max(wait, 1e-3):,.0f}, at {speed:.2f} × the requests/s"
    return text + "."


def _us(value: float) -> str:
    return f"{value:,.0f} µs" if value >= 10 else f"{value:.2g} µs"


def upload_table(uploads: Sequence[Upload]) -> Table:
    """Ways of receiving side by side, for each size; medians over the rounds."""
    sizes = list(dict.fromkeys(each.payload_bytes for each in uploads))
    what = f"{sizes[0]:,} bytes" if len(sizes) == 1 else f"{len(sizes)} sizes"
    result = Table(title=f"uploads of {what}, Python client and server", box=SIMPLE_HEAD)
    headings = ("bytes", "receive", "GB/s", "mapped %", "server CPU s/GB", "client CPU s/GB", "not mapped, because")
    for heading in headings[len(sizes) == 1 :]:
        result.add_column(heading, justify="left" if heading in ("receive", "not mapped, because") else "right")
    for size in sizes:
        for way in dict.fromkeys(each.receive for each in uploads):
            same = [each for each in uploads if (each.payload_bytes, each.receive) == (size, way)]
            if same:
                result.add_row(*([f"{size:,}", *_upload_cells(same)][len(sizes) == 1 :]))
        result.add_section()
    return result


def _upload_cells(rounds: Sequence[Upload]) -> list[str]:
    reasons: dict[str, int] = {}
    for each in rounds:
        for reason, count in each.fallbacks.items():
            reasons[reason] = reasons.get(reason, 0) + count
    wrong = sum(each.wrong for each in rounds)
    why = ", ".join(f"{reason} × {count:,}" for reason, count in reasons.items() if count)
    return [
        rounds[0].receive,
        f"{median(each.gigabytes_per_second for each in rounds):.2f}",
        f"{median(each.mapped_percent for each in rounds):.2f}",
        f"{median(each.server_cpu_seconds_per_gigabyte for each in rounds):.3f}",
        f"{median(each.client_cpu_seconds_per_gigabyte for each in rounds):.3f}",
        why + (f" · {wrong} wrong answers" if wrong else ""),
    ]
