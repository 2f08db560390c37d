"""What this host can do with payloads, what that costs, and what to set: the logic of ``zcrpc doctor``.

`finding.py` is what an examination gives; `host.py`, `sockets.py` and `interfaces.py` examine, each question by itself,
so that what cannot be answered (no /proc, a forbidden call) is said and stops nothing; `costs.py` measures, with the
calibration that `receive="auto"` decides by; `advice.py` makes settings of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from zcrpc import calibration
from zcrpc.calibration import Cost
from zcrpc.doctor import advice, costs, host, interfaces, sockets
from zcrpc.doctor.advice import Setting
from zcrpc.doctor.finding import Finding, answered, reason
from zcrpc.doctor.host import Host
from zcrpc.doctor.interfaces import Interface

Progress: TypeAlias = Callable[[Iterator[Cost], int], Iterator[Cost]]
"""Is told of what is measured, the costs as they come and how many there will be, and passes them on."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Calibration:
    """What `receive="auto"` does here when it first listens or connects.

    seconds: how long it took, in a thread; no event loop waits for it.
    map_from: bytes from which on it asks peers for whole pages; 0: never.
    """

    seconds: float
    map_from: int


@dataclass(slots=True, frozen=True, kw_only=True)
class Diagnosis:
    """All of it.

    can_map: whether `receive="zerocopy"` works here.
    costs: by size, the smallest first; empty where nothing could be measured.
    cheaper_from: bytes from which on mapping costs less CPU than copying over loopback; 0: nowhere.
    """

    findings: list[Finding]
    costs: list[Cost]
    calibration: Calibration
    can_map: bool
    cheaper_from: int
    settings: list[Setting]


def examine(chosen: list[Interface], measured: list[Finding]) -> list[Finding]:
    """All questions: whether payloads can be mapped, with what was measured of that; then what else matters."""
    here = Host()
    return [
        *(answered(name, question, here) for name, question in host.KERNEL.items()),
        *(answered(name, question) for name, question in sockets.QUESTIONS.items()),
        *measured,
        *(answered(f"interface {each.name}", interfaces.finding, each) for each in chosen),
        *(answered(name, question, here) for name, question in host.QUESTIONS.items()),
    ]


def diagnose(chosen: list[Interface], seconds: float, progress: Progress) -> Diagnosis:
    """Looks, measures for about so many seconds, and gives advice."""
    begun = time.perf_counter()
    map_from = calibration.cheaper_from(calibration.measure())
    calibrated = Calibration(seconds=time.perf_counter() - begun, map_from=map_from)
    try:
        measured = list(progress(costs.measure(seconds), len(costs.SIZES)))
        found = costs.finding(measured)
    except OSError as error:
        measured = []
        found = Finding(costs.NAME, "bad", reason(error), "nothing can be measured, and servers may not work")
    can_map = bool(measured) and measured[-1].map is not None and sockets.receives_zerocopy()
    return Diagnosis(
        findings=examine(chosen, [found]),
        costs=measured,
        calibration=calibrated,
        can_map=can_map,
        cheaper_from=calibration.cheaper_from(measured),
        settings=advice.settings(Host(), map_from, measured, can_map),
    )
