"""Map or copy? What `receive=` means on this host (D4).

A payload can be mapped only if its sender sent it in whole pages, which costs that sender something, and the hello must
say from which size on that is wanted. So "auto" decides before it listens or connects: it measures both ways over
loopback, once per process, and asks for whole pages from the size on from which mapping is the cheaper one. What then
comes in is judged payload by payload by the native core, which keeps learning.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from zcrpc import forking
from zcrpc._native import check, ffi, lib

Receive: TypeAlias = Literal["auto", "zerocopy", "copy"]

_log = logging.getLogger("zcrpc.calibration")

SIZES: Final = (65536, 262144, 1 << 20, 4 << 20)  # bytes of payload
_ROUNDS: Final = 8
# Mapping has to win by this much: what it costs others, such as the other core's TLB, is not in the measurement.
_MARGIN: Final = 0.95


MODES: Final[dict[str, int]] = {
    "auto": lib.ZC_RECEIVE_AUTO,
    "zerocopy": lib.ZC_RECEIVE_ZEROCOPY,
    "copy": lib.ZC_RECEIVE_COPY,
}  # enum zc_receive


@dataclass(slots=True, frozen=True)
class Cost:
    """Nanoseconds of CPU per byte, sender and receiver together."""

    length: int
    copy: float
    map: float


_lock = threading.Lock()
_costs: list[Cost] | None = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # some thread may have held it


forking.in_child(_renew_lock)


def measure() -> list[Cost]:
    """What copying and mapping cost here, by payload size. Takes some tens of milliseconds the first time; empty where
    mapping cannot be had."""
    global _costs
    with _lock:
        if _costs is None:
            _costs = _measure()
        return _costs


def _measure() -> list[Cost]:
    if lib.zc_mapping_supported() < 0:
        return []
    copy, mapped = ffi.new("double *"), ffi.new("double *")
    costs = []
    for length in SIZES:
        code = lib.zc_calibrate(length, _ROUNDS, copy, mapped)
        if code < 0:
            _log.info("payloads will be copied: calibration failed with errno %d", -code)
            return []
        costs.append(Cost(length, copy[0], mapped[0]))
    _log.debug("costs: %s", costs)
    return costs


def cheaper_from(costs: list[Cost]) -> int:
    """The smallest measured size from which on mapping is cheaper for every larger one too; 0 if there is none."""
    found = 0
    for cost in reversed(costs):
        if cost.map > cost.copy * _MARGIN:
            break
        found = cost.length
    return found


async def mapped_from(receive: Receive, minimum: int) -> int:
    """Bytes from which on a TCP socket is to ask for payloads in whole pages, at least `minimum`; 0: never. The
    measurement runs in a thread, not in the loop. OSError if mapping is demanded and cannot be had."""
    if receive == "copy":
        return 0
    if receive == "zerocopy":
        check(lib.zc_mapping_supported(), "receive='zerocopy'")
        return minimum
    costs = _costs
    if costs is None:
        costs = await asyncio.get_running_loop().run_in_executor(None, measure)
    cheaper = cheaper_from(costs)
    return max(minimum, cheaper) if cheaper else 0


def validate(receive: str) -> None:
    """ValueError if it is no way to receive."""
    if receive not in MODES:
        raise ValueError(f"receive={receive!r}: expected one of {', '.join(MODES)}")
