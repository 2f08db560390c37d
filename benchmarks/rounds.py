"""Alternating rounds: every way is measured once in each round, in an order that turns round, and compared by medians
of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

T = TypeVar("T")
Way = TypeVar("Way", bound=Hashable)


def alternate(ways: Mapping[Way, Callable[[], T]], rounds: int) -> dict[Way, list[T]]:
    """Results by way. Every second round goes backwards, so that drift hits all alike."""
    results: dict[Way, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(ways[name]())
    return results


def medians(results: Mapping[Way, list[T]], figure: Callable[[T], float]) -> dict[Way, float]:
    """Each way's median of a figure."""
    return {name: median(figure(each) for each in found) for name, found in results.items()}
