"""How long to wait after a failure before the next attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, frozen=True, kw_only=True)
class Backoff:
    """Exponential, with jitter, so that clients that lost the same server do not come back at the same moment.

    The n-th failure in a row is followed by initial · factor^(n-1) seconds, at most `limit`, times a random number
    between 1 - jitter and 1 + jitter. Factor and jitter are those of gRPC
    (https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md); it begins with 1 s and ends with 120 s, which
    is for servers on the other side of the world.
    """

    initial: float = 0.1
    factor: float = 1.6
    jitter: float = 0.2
    limit: float = 20.0

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("initial", self.initial, 0.001, 86_400.0),
            ("factor", self.factor, 1.0, 100.0),
            ("jitter", self.jitter, 0.0, 1.0),
            ("limit", self.limit, self.initial, 86_400.0),
        ):
            if not least <= value <= most:
                raise ValueError(f"backoff {name}={value:g}: must be between {least:g} and {most:g}")

    def delay(self, failures: int, between: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds to wait after so many failures in a row; 0 after none."""
        if failures < 1:
            return 0.0
        try:
            plain = min(self.initial * self.factor ** (failures - 1), self.limit)
        except OverflowError:
            plain = self.limit
        return plain * between(1 - self.jitter, 1 + self.jitter)
