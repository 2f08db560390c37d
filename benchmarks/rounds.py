"""Alternating rounds: every way is measured once in each round, in an order that turns round, and compared by medians
of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from statistics import median
from typing import TypeVar

T = TypeVar("T")
Way = TypeVar("Way", bound=Hashable)


def in_turn(names: Iterable[Way], rounds: int) -> Iterator[tuple[int, Way]]:
    """Each round's number with each name. Every second round goes backwards, so that drift hits all alike."""
    forwards = list(names)
    for number in range(rounds):
        for name in forwards if number % 2 == 0 else reversed(forwards):
            yield number, name


def alternate(ways: Mapping[Way, Callable[[], T]], rounds: int) -> dict[Way, list[T]]:
    """Results by way."""
    results: dict[Way, list[T]] = {name: [] for name in ways}
    for _, name in in_turn(ways, rounds):
        results[name].append(ways[name]())
    return results


def medians(results: Mapping[Way, list[T]], figure: Callable[[T], float]) -> dict[Way, float]:
    """Each way's median of a figure."""
    return {name: median(figure(each) for each in found) for name, found in results.items()}
