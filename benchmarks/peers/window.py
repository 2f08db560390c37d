"""What a client in Python measures: calls between two marks, and the CPU time of both sides between them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil
from threading import Lock

from zcrpc.lab.upload import process_cpu_seconds


@dataclass(slots=True, frozen=True)
class Measured:
    """Of the window, without the warm-up. `wrong`: replies whose contents were not as they should be, warm-up included.

    `calls` of a workload that streams are streams; times are of calls.
    """

    calls: int
    wrong: int
    seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    p50_us: float
    p99_us: float


@dataclass(slots=True, frozen=True)
class _Mark:
    clock: float
    own_cpu: float
    server_cpu: float
    calls: int


class Window:
    """Begins when the first call after the warm-up is done, ends with the first one `seconds` later: so no timer has to
    be run in time, whether callers are tasks, threads or greenlets.
    """

    def __init__(self, server_pid: int, warm_up: float, seconds: float) -> None:
        self.wrong = 0
        self._server_pid = server_pid
        self._seconds = seconds
        self._samples: list[float] = []
        self._marks: list[_Mark] = []
        self._next = time.perf_counter() + warm_up
        self._lock = Lock()

    def add(self, began: float, now: float) -> bool:
        """A call from `began` to `now`, of `time.perf_counter`. False: make no more."""
        self._samples.append(now - began)
        return now < self._next or self._pass(now)

    def _pass(self, now: float) -> bool:
        with self._lock:
            if now >= self._next and len(self._marks) < 2:
                cpu = time.process_time(), process_cpu_seconds(self._server_pid)
                self._marks.append(_Mark(now, *cpu, len(self._samples)))
                self._next = now + self._seconds if len(self._marks) == 1 else 0.0
            return len(self._marks) < 2

    def result(self) -> Measured:
        """When every caller has ended."""
        begin, end = self._marks
        samples = sorted(self._samples[begin.calls : end.calls])
        return Measured(
            calls=len(samples),
            wrong=self.wrong,
            seconds=end.clock - begin.clock,
            server_cpu_seconds=end.server_cpu - begin.server_cpu,
            client_cpu_seconds=end.own_cpu - begin.own_cpu,
            p50_us=1e6 * percentile(samples, 0.5),
            p99_us=1e6 * percentile(samples, 0.99),
        )


def percentile(samples: list[float], share: float) -> float:
    """Of sorted samples: the least of them that `share` of all do not exceed."""
    return samples[max(ceil(share * len(samples)), 1) - 1]
