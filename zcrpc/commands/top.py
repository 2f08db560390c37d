"""`zcrpc top`."""

from __future__ import annotations

import math
from typing import Any, Final

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zcrpc.commands.common import Target, main, targeted, to_json
from zcrpc.counting import counters, gauges
from zcrpc.metering import quantile
from zcrpc.regions import LockCounters
from zcrpc.statistics import MethodStats, Snapshot
from zcrpc.stats import Stats

_NOTHING: Final = MethodStats(active=0, statuses={}, seconds=0.0, buckets=[])


@click.command()
@targeted
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print each interval as JSON, in lines.")
def top(target: Target, interval: float, once: bool, as_json: bool) -> None:
    """Watch a running server: connections, calls, latency by method, memory, mapped share, its locks. Figures are of
    the last interval; methods are measured while somebody watches."""
    main(_top(target, interval, once, as_json))


async def _top(target: Target, interval: float, once: bool, as_json: bool) -> None:
    console = Console()
    live = console.is_terminal and not once and not as_json
    async with target.connect() as client:
        # Without a deadline: it goes on until somebody has seen enough.
        snapshots: Any = client.stream("zcrpc.Stats.watch", interval, returns=Snapshot)
        before: Snapshot | None = None
        with Live(console=console, auto_refresh=False, screen=live, transient=live) if live else _Plain() as screen:
            async for after in snapshots:
                if before is not None:
                    if as_json:
                        click.echo(to_json(rates(before, after)))
                    elif live:
                        screen.update(view(target.address, rates(before, after)), refresh=True)
                    else:
                        console.print(view(target.address, rates(before, after)))
                    if once:
                        return
                before = after


class _Plain:
    """No screen."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...


class MethodRates(msgspec.Struct, frozen=True, kw_only=True):
    """A method's calls in an interval. Latencies in seconds, None if there were no calls."""

    active: int
    calls_per_second: float
    errors_per_second: float
    mean: float | None
    p50: float | None
    p99: float | None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """A server in an interval, in seconds: gauges at its end, and what happened per second."""

    pid: int
    uptime: float
    interval: float
    now: dict[str, float]
    per_second: dict[str, float]
    mapped_percent: float | None
    lock: str
    lock_per_second: dict[str, float]
    exhausted: dict[str, int]
    methods: dict[str, MethodRates]


def rates(before: Snapshot, after: Snapshot) -> Rates:
    """What happened between two looks at a server."""
    seconds = max(after.when - before.when, 1e-9)

    def per_second(name: str) -> float:
        return (after.counters.get(name, 0) - before.counters.get(name, 0)) / seconds

    counted = {name: per_second(name) for name in counters(Stats)}
    received = counted["payload_bytes_mapped"] + counted["payload_bytes_copied"]
    return Rates(
        pid=after.pid,
        uptime=after.uptime,
        interval=seconds,
        now={name: after.counters.get(name, 0) for name in gauges(Stats)},
        per_second=counted,
        mapped_percent=100 * counted["payload_bytes_mapped"] / received if received else None,
        lock=after.lock.strategy,
        lock_per_second={
            name: (getattr(after.lock, name) - getattr(before.lock, name)) / seconds for name in counters(LockCounters)
        },
        exhausted=after.exhausted,
        methods={
            name: _method(before.methods.get(name, _NOTHING), each, seconds) for name, each in after.methods.items()
        },
    )


def _method(before: MethodStats, after: MethodStats, seconds: float) -> MethodRates:
    buckets = [now - then for now, then in zip(after.buckets, before.buckets or [0] * len(after.buckets), strict=True)]
    calls = sum(buckets)
    fine = after.statuses.get("OK", 0) - before.statuses.get("OK", 0)
    return MethodRates(
        active=after.active,
        calls_per_second=calls / seconds,
        errors_per_second=(calls - fine) / seconds,
        mean=(after.seconds - before.seconds) / calls if calls else None,
        p50=quantile(buckets, 0.5) if calls else None,
        p99=quantile(buckets, 0.99) if calls else None,
    )


# ---- for people


def view(address: str, now: Rates) -> Group:
    """A screen."""
    each, lock = now.per_second, now.lock_per_second
    lines = [
        f"{address}   pid {now.pid}   up {_duration(now.uptime)}",
        f"connections {now.now['connections']:,.0f}   calls in flight {now.now['calls']:,.0f}"
        f"   queued {now.now['queued']:,.0f}   streams {now.now['streams']:,.0f}"
        f"   requests/s {each['requests']:,.0f}   errors/s {each['errors']:,.0f}",
        f"in {_bytes(each['bytes_in'])}/s   out {_bytes(each['bytes_out'])}/s   mapped "
        + ("–" if now.mapped_percent is None else f"{now.mapped_percent:.1f} %")
        + f"   leases {now.now['leases']:,.0f}, {_bytes(now.now['leased_bytes'])}"
        f"   arena {_bytes(now.now['arena_bytes'])}   paused {now.now['paused']:,.0f}",
        f"lock {now.lock}:   reads/s {lock['read_locks']:,.0f}   fallbacks/s {lock['fallbacks']:,.0f}"
        f"   retries/s {lock['retries']:,.0f}   writes/s {lock['write_locks']:,.0f}   waits/s {lock['waits']:,.0f}",
    ]
    exhausted = {name: count for name, count in now.exhausted.items() if count}
    if exhausted:
        lines.append("refused so far:   " + "   ".join(f"{name} {count:,}" for name, count in exhausted.items()))
    return Group(*map(Text, lines), _methods(now))


def _methods(now: Rates) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    for heading in ("active", "calls/s", "errors/s", "mean", "p50", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in sorted(now.methods.items(), key=lambda item: -item[1].calls_per_second):
        times = (_time(each.mean), _time(each.p50), _time(each.p99))
        counts = (f"{each.active:,}", f"{each.calls_per_second:,.1f}", f"{each.errors_per_second:,.1f}")
        table.add_row(name, *counts, *times)
    return table


def _time(seconds: float | None) -> str:
    if seconds is None or math.isnan(seconds):
        return "–"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock
