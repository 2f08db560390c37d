"""What copying and mapping cost at each size: the calibration of `receive="auto"`, longer and at more sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from zcrpc.calibration import Cost, WayCost, compare
from zcrpc.doctor.finding import Finding, reason

NAME: Final = "mapping over loopback"
SIZES: Final = tuple(4096 << 2 * step for step in range(7))  # 4 KiB … 16 MiB
_SLICE_BYTES: Final = 4 << 20  # measured at a time, so that sizes take turns
_ROUNDS: Final = range(2, 201)


def measure(seconds: float) -> Iterator[Cost]:
    """Every size, the smallest first, for its share of the time; medians. OSError if nothing can be measured."""
    for length in SIZES:
        rounds = min(max(_SLICE_BYTES // length, _ROUNDS[0]), _ROUNDS[-1])
        deadline = time.perf_counter() + seconds / len(SIZES)
        slices = [compare(length, rounds)]
        while time.perf_counter() < deadline:
            slices.append(compare(length, rounds))
        yield _middle(slices)


def _middle(slices: list[Cost]) -> Cost:
    mapped = [each for each in slices if each.map is not None]
    copy = _median([each.copy for each in slices])
    if not mapped:
        return Cost(slices[0].length, copy, None, 0.0, slices[0].map_errno)
    ways = [each.map for each in mapped if each.map is not None]
    return Cost(slices[0].length, copy, _median(ways), sum(each.mapped for each in mapped) / len(mapped))


def _median(costs: list[WayCost]) -> WayCost:
    return WayCost(median(each.sender for each in costs), median(each.receiver for each in costs))


def finding(measured: list[Cost]) -> Finding:
    """Whether payloads were mapped when it was tried."""
    failed = next((each for each in measured if each.map is None), None)
    if failed is not None:
        why = reason(OSError(failed.map_errno, os.strerror(failed.map_errno)))
        return Finding(NAME, "bad", why, "payloads are copied")
    least = min(each.mapped for each in measured)
    found = f"{100 * least:.0f} % of the payloads" + (" or more, at each size" if least < 1 else "")
    if least < 0.99:
        return Finding(NAME, "note", found, "the others are copied, once that has been tried")
    return Finding(NAME, "good", found, "it was tried, and works")
