"""Which of several connections a call goes to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol, TypeVar

Balance = Literal["first", "round-robin", "least-loaded"]


class Loaded(Protocol):
    """What calls go to."""

    @property
    def load(self) -> int:
        """Calls in flight."""


C = TypeVar("C", bound=Loaded)


class Least:
    """The one with the fewest calls in flight: for the few connections to one server."""

    def __call__(self, connections: Sequence[C]) -> C:
        return min(connections, key=lambda connection: connection.load)


class RoundRobin:
    """Each in turn."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, connections: Sequence[C]) -> C:
        self._next += 1
        return connections[self._next % len(connections)]


class TwoChoices:
    """The less loaded of two that are drawn: nearly as even as the least loaded of all, but clients that know nothing
    of each other do not all run to the same server. M. Mitzenmacher, The power of two choices in randomized load
    balancing, IEEE TPDS 12(10), 2001."""

    def __init__(self, below: Callable[[int], int] = random.randrange) -> None:
        self._below = below

    def __call__(self, connections: Sequence[C]) -> C:
        count = len(connections)
        if count == 1:
            return connections[0]
        one, other = self._below(count), self._below(count - 1)
        other += other >= one
        return min(connections[one], connections[other], key=lambda connection: connection.load)


PICKERS: Final[dict[str, Callable[[], Least | RoundRobin | TwoChoices]]] = {
    "first": Least,
    "round-robin": RoundRobin,
    "least-loaded": TwoChoices,
}
