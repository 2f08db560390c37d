"""Which calls are made again, how often, and when no more.

A call that failed is made again if that is *safe*: if it is certain that no handler has seen it (the error's
`unprocessed`), or if its method is marked idempotent. The former costs the servers nothing. The latter does: it is
limited per call, by `attempts`, and for the whole client by a budget, so that retries do not finish off servers that
are overloaded already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from zcrpc.backoff import Backoff
from zcrpc.errors import Status


@dataclass(slots=True, frozen=True, kw_only=True)
class Retries:
    """How a client retries.

    attempts: how often an idempotent call is made in all.
    statuses: what an idempotent call has to fail with to be made again.
    backoff: what is waited before that, unless the connection was lost and there is another.
    tokens, ratio: the budget, which is that of gRPC's retryThrottling
        (https://github.com/grpc/proposal/blob/master/A6-client-retries.md). It holds `tokens` at most; a call that
        fails takes one out, a call that succeeds puts `ratio` back, and nothing is retried unless it is more than half
        full.
    patience: seconds that a call without a deadline waits for a connection before it is made again.
    """

    attempts: int = 4
    statuses: frozenset[Status] = frozenset({Status.UNAVAILABLE})
    backoff: Backoff = field(default_factory=lambda: Backoff(initial=0.05, limit=2.0))
    tokens: float = 1000.0
    ratio: float = 0.1
    patience: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"retries: attempts={self.attempts}: must be at least 1")
        if self.tokens <= 0 or self.ratio < 0 or self.patience < 0:
            raise ValueError("retries: tokens must be more than 0, ratio and patience not less")


class Budget:
    """What is left for retries. Successes are not reported one by one, lest every call pay for it: `successes` is asked
    for how many there have been when it matters."""

    __slots__ = ("_counted", "_retries", "_successes", "tokens")

    def __init__(self, retries: Retries, successes: Callable[[], int]) -> None:
        self._retries = retries
        self._successes = successes
        self._counted = 0
        self.tokens = retries.tokens

    def take(self) -> bool:
        """A call has failed. Whether one may be made again."""
        retries, successes = self._retries, self._successes()
        earned = max(0, successes - self._counted) * retries.ratio
        self._counted = successes
        self.tokens = max(0.0, min(self.tokens + earned, retries.tokens) - 1)
        return self.tokens > retries.tokens / 2
