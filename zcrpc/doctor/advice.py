"""What to set on this host, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zcrpc.calibration import Cost
from zcrpc.doctor.finding import Unanswered
from zcrpc.doctor.host import BUDGET, MIB, Host

_MAP_FROM: Final = 64 << 10  # a server's default


@dataclass(slots=True, frozen=True)
class Setting:
    """An option of `Server` and `connect`, or of `zcrpc serve`, what to set it to, and why."""

    option: str
    value: str
    why: str


def settings(host: Host, map_from: int, costs: list[Cost], can_map: bool) -> list[Setting]:
    """Advice for a server on this host. `map_from`: bytes from which on `receive="auto"` asks for whole pages; 0:
    mapping nowhere pays."""
    return [*_receive(map_from, costs, can_map), *_threads(host, map_from), *_memory(host)]


def size(count: int) -> str:
    """Bytes, as people say it."""
    return f"{count >> 20} MiB" if count >= MIB else f"{count >> 10} KiB"


def _receive(map_from: int, costs: list[Cost], can_map: bool) -> Iterator[Setting]:
    if not can_map:
        yield Setting("receive", '"auto"', "it copies, and nothing else can be had here")
        return
    if not map_from:
        yield Setting("receive", '"auto"', f"it copies here, since mapping pays nowhere{_how_much(costs)}")
    elif map_from < _MAP_FROM:
        yield Setting("receive", '"auto"', "it maps here, and goes on comparing")
        yield Setting(
            "map_from", f"{map_from >> 10} << 10", f"mapping may pay from {size(map_from)} on: zcrpc lab upload tells"
        )
    else:
        yield Setting("receive", '"auto"', f"it maps from {size(map_from)} on, and goes on comparing")
        yield Setting("map_from", "the default", "calibration raises it where smaller payloads are better copied")
    yield Setting("place_from", "the default", "it depends on handlers, and is not measured here")


def _how_much(costs: list[Cost]) -> str:
    """By what factor mapping is dearer, at its best size."""
    ratios = [(each.map.total / each.copy.total, each.length) for each in costs if each.map is not None]
    if not ratios:
        return ""
    ratio, length = min(ratios)
    return f": at its best, {size(length)}, it costs {ratio:.1f} times as much"


def _threads(host: Host, map_from: int) -> Iterator[Setting]:
    try:
        cores, _ = host.cores()
    except (OSError, ValueError, Unanswered):
        return
    many = max(1, round(cores))
    if many == 1:
        yield Setting("receive_threads", "0", "there is one core")
        yield Setting("--workers", "1", "there is one core")
        return
    why = "each thread costs small calls a handover, and large ones gain where several connections upload at a time"
    if map_from:
        why = "every thread of the process is interrupted when mapped pages are given back"
    yield Setting("receive_threads", "0", why)
    yield Setting("--workers", f"up to {many}", "processes share nothing, so handlers that compute gain a core each")


def _memory(host: Host) -> Iterator[Setting]:
    try:
        limit, _ = host.memory()
    except (OSError, ValueError, IndexError, Unanswered):
        return
    budget = min(BUDGET, limit // 4)
    if budget == BUDGET:
        yield Setting("budget", "the default", "1 GiB for each worker is at most a quarter of the memory that there is")
        yield Setting("max_message", "the default", "256 MiB, a quarter of the budget")
        return
    why = f"for each worker, a quarter of the {limit // MIB:,} MiB that there are"
    yield Setting("budget", f"{max(budget // MIB, 1)} << 20", why)
    yield Setting("max_message", f"{max(budget // 4 // MIB, 1)} << 20", "a quarter of it: four can arrive at a time")
