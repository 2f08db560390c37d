"""Map or copy? What `receive=` means on this host (D4).

A payload can be mapped only if its sender sent it in whole pages, which costs that sender something, and the hello must
say from which size on that is wanted. So "auto" decides before it listens or connects: it measures both ways over
loopback, once per process, and asks for whole pages from the size on from which mapping is the cheaper one. What then
comes in is judged payload by payload by the native core, which keeps learning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from zcrpc import forking
from zcrpc._native import check, ffi, lib

Receive: TypeAlias = Literal["auto", "zerocopy", "copy"]

_log = logging.getLogger("zcrpc.calibration")

SIZES: Final = tuple(4096 << 2 * step for step in range(6))  # bytes of payload: 4 KiB … 4 MiB
_ROUNDS: Final = 5
# Mapping has to win by this much: what it costs others, such as the other core's TLB, is not in the measurement.
_MARGIN: Final = 0.95
_MAPPED: Final = 0.99  # share of payloads that have to be mapped for it to count


MODES: Final[dict[str, int]] = {
    "auto": lib.ZC_RECEIVE_AUTO,
    "zerocopy": lib.ZC_RECEIVE_ZEROCOPY,
    "copy": lib.ZC_RECEIVE_COPY,
}  # enum zc_receive


@dataclass(slots=True, frozen=True)
class WayCost:
    """Nanoseconds of CPU per byte of payload, at both ends."""

    sender: float
    receiver: float

    @property
    def total(self) -> float:
        return self.sender + self.receiver


@dataclass(slots=True, frozen=True)
class Cost:
    """What a payload of `length` bytes costs over loopback. `map` is None where mapping cannot be had, for the reason
    of `map_errno`; `mapped` is the share of payloads that could be mapped."""

    length: int
    copy: WayCost
    map: WayCost | None
    mapped: float = 1.0
    map_errno: int = 0

    @property
    def mapping_pays(self) -> bool:
        """Whether mapping is clearly the cheaper one."""
        return self.map is not None and self.mapped >= _MAPPED and self.map.total <= self.copy.total * _MARGIN


_lock = threading.Lock()
_costs: list[Cost] | None = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # some thread may have held it


forking.in_child(_renew_lock)


def measure() -> list[Cost]:
    """What copying and mapping cost here, by payload size: of the largest sizes, down to the first one at which mapping
    does not pay. Takes ten milliseconds or some tens the first time; empty where mapping cannot be had."""
    global _costs
    with _lock:
        if _costs is None:
            _costs = _measure()
        return _costs


def assume(costs: list[Cost]) -> None:
    """Takes this for what `measure` found: for experiments."""
    global _costs
    with _lock:
        _costs = costs


def _measure() -> list[Cost]:
    if lib.zc_mapping_supported() < 0:
        return []
    costs: list[Cost] = []
    for length in reversed(SIZES):
        try:
            cost = compare(length, _ROUNDS)
        except OSError as error:
            _log.info("payloads will be copied: calibration failed: %s", error)
            return []
        costs.insert(0, cost)
        if not cost.mapping_pays:
            break
    _log.debug("costs: %s", costs)
    return costs


def compare(length: int, rounds: int) -> Cost:
    """Measures payloads of `length` bytes, whole pages up to 64 MiB, in as many rounds, up to 1,000. OSError if not
    even copying can be measured."""
    found = ffi.new("struct zc_calibration *")
    code = lib.zc_calibrate(length, rounds, found)
    if code < 0:
        raise OSError(-code, os.strerror(-code))
    copy, mapped = (WayCost(each.sender, each.receiver) for each in (found.copy, found.map))
    return Cost(length, copy, None if found.map_failed else mapped, found.mapped, -found.map_failed)


def cheaper_from(costs: list[Cost]) -> int:
    """The smallest measured size from which on mapping is cheaper for every larger one too; 0 if there is none."""
    found = 0
    for cost in reversed(costs):
        if not cost.mapping_pays:
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
        # Not the loop's own executor, which would keep the thread as long as the process lives.
        executor = ThreadPoolExecutor(1)
        try:
            costs = await asyncio.get_running_loop().run_in_executor(executor, measure)
        finally:
            executor.shutdown(wait=costs is not None)  # its work is done: nothing is waited for but the thread's end
    cheaper = cheaper_from(costs)
    return max(minimum, cheaper) if cheaper else 0


def validate(receive: str) -> None:
    """ValueError if it is no way to receive."""
    if receive not in MODES:
        raise ValueError(f"receive={receive!r}: expected one of {', '.join(MODES)}")
