"""The seed experiment in words: a table of medians with their spread, and a last line that says what it showed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from statistics import median

from rich.table import Table

from zcrpc.lab.seed import Round, Scenario

# (what the row says, field, how a figure is written); None draws a line
_ROWS: tuple[tuple[str, str, str] | None, ...] = (
    ("requests/s", "requests_per_second", ",.0f"),
    ("server CPU, µs/request", "server_cpu_us_per_request", ".2f"),
    ("lock-path share, %", "lock_path_share_percent", ".2f"),
    ("fallbacks, %", "fallback_percent", ".3f"),
    ("mapped, %", "mapped_percent", ".2f"),
    None,
    ("lock wait p50, µs", "lock_wait_p50_us", ",.2f"),
    ("          p99", "lock_wait_p99_us", ",.2f"),
    ("          p99.9", "lock_wait_p999_us", ",.2f"),
    ("          max", "lock_wait_max_us", ",.0f"),
    None,
    ("receive p50, µs", "receive_p50_us", ",.1f"),
    ("        p99", "receive_p99_us", ",.1f"),
    ("        p99.9", "receive_p999_us", ",.1f"),
    ("        max", "receive_max_us", ",.0f"),
    None,
    ("writer's locks/s", "writer_locks_per_second", ",.0f"),
    ("writer's wait p99.9, µs", "writer_wait_p999_us", ",.1f"),
    ("left out: preempted samples", "preempted_samples", ",.0f"),
)


def table(rounds: Sequence[Round]) -> Table:
    """Medians over the rounds, ± half of the range; the scenarios side by side."""
    columns = list(dict.fromkeys((each.scenario, each.strategy) for each in rounds))
    columns.sort(key=lambda column: column[0])  # readers-only before writer-storm; strategies stay in their order
    first = rounds[0]
    result = Table(
        title=f"{first.connections} connections × {first.payload_bytes:,} bytes, {first.receive_threads} receive threads, "
        f"{len(rounds) // len(columns)} rounds of {first.seconds:.2g} s",
        caption="median ± half of the range",
    )
    result.add_column("")
    for scenario, strategy in columns:
        result.add_column(f"{scenario}\n{strategy}", justify="right")
    for row in _ROWS:
        if row is None:
            result.add_section()
            continue
        label, name, form = row
        result.add_row(label, *(_cell(_values(rounds, *column, name), form) for column in columns))
    return result


def _values(rounds: Sequence[Round], scenario: Scenario, strategy: str, name: str) -> list[float]:
    return [getattr(each, name) for each in rounds if each.scenario == scenario and each.strategy == strategy]


def _cell(values: Sequence[float], form: str) -> str:
    if not any(values):
        return "0"
    spread = (max(values) - min(values)) / 2
    return f"{median(values):{form}}" + (f" ±{spread:{form}}" if len(values) > 1 else "")


def conclusion(rounds: Sequence[Round]) -> str:
    """What the figures say of the first strategy against each other one, in sentences."""
    strategies = list(dict.fromkeys(each.strategy for each in rounds))
    said = []
    for scenario, say in (("readers-only", _readers_only), ("writer-storm", _storm)):
        present = [name for name in strategies if any(each.scenario == scenario and each.strategy == name for each in rounds)]
        figures: dict[str, Callable[[str], float]] = {
            name: (lambda of, name=name: median(_values(rounds, scenario, name, of))) for name in present  # type: ignore[misc, arg-type]
        }
        if figures:
            said.append(say(figures))
    return " ".join(said)


def _readers_only(figures: dict[str, Callable[[str], float]]) -> str:
    shares = ", ".join(f"{of('lock_path_share_percent'):.2f} % with {name}" for name, of in figures.items())
    speeds = [of("requests_per_second") for of in figures.values()]
    apart = 100 * (max(speeds) / min(speeds) - 1)
    cores = os.cpu_count()
    verdict = f"requests/s within {apart:.0f} % of each other on {cores} cores" if len(speeds) > 1 else f"on {cores} cores"
    return f"Readers only: the lock path takes {shares} of the receivers' CPU; {verdict}."


def _storm(figures: dict[str, Callable[[str], float]]) -> str:
    (base, baseline), *others = figures.items()
    waits = baseline("lock_wait_p999_us")
    text = f"Writer storm: with {base} one receive in a thousand waits {_us(waits)} or more for the lock"
    for name, of in others:
        wait, speed = of("lock_wait_p999_us"), of("requests_per_second") / baseline("requests_per_second")
        text += f"; with {name} {_us(wait)} (1/{waits / wait:,.0f}) at {speed:.2f} × the requests/s"
    return text + "."


def _us(value: float) -> str:
    return f"{value:,.0f} µs" if value >= 10 else f"{value:.2g} µs"
