"""Servers are killed under load: what do callers notice?

python benchmarks/failover.py [rounds]     three servers, one of which is killed with SIGKILL in each round; exits with
                                           status 1 if an idempotent call failed or recovery took more than a second

Calls are idempotent echoes of 1 KiB, by 32 callers of one client. *Longest* is the longest call of a round; *recovery*
the time from the kill until calls end again at nine tenths of the rate before, over 20 ms.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import zcrpc
from zcrpc.balancing import PICKERS, Balance
from zcrpc.lab.service import ServiceOptions, ServiceProcess

SERVERS = 3
CALLERS = 32
WARM_UP_SECONDS = 0.5
AFTER_SECONDS = 1.5
WINDOW_SECONDS = 0.02
LIMIT_SECONDS = 1.0
PAYLOAD = bytes(1024)


@dataclass(slots=True, frozen=True)
class Failover:
    """One server killed. `rate`: calls per second before."""

    calls: int
    failed: int
    rate: float
    longest_seconds: float
    recovery_seconds: float


class Load:
    """Callers, and when each of their calls ended."""

    def __init__(self, client: zcrpc.Client) -> None:
        self.client = client
        self.ends: list[float] = []
        self.failures: list[BaseException] = []
        self.longest = 0.0
        self.running = True

    async def caller(self) -> None:
        while self.running:
            begun = time.perf_counter()
            try:
                await self.client.call("Bench.echo", PAYLOAD, timeout=10, idempotent=True)
            except zcrpc.ZcrpcError as error:
                self.failures.append(error)
            end = time.perf_counter()
            self.ends.append(end)
            self.longest = max(self.longest, end - begun)


async def kill_one(addresses: list[str], balance: Balance, pid: int) -> Failover:
    """Kills the server `pid` under load."""
    async with zcrpc.connect(addresses, balance=balance, receive="copy") as client:
        load = Load(client)
        callers = [asyncio.ensure_future(load.caller()) for _ in range(CALLERS)]
        await asyncio.sleep(WARM_UP_SECONDS)
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(AFTER_SECONDS)
        load.running = False
        await asyncio.gather(*callers)
    before = [end for end in load.ends if killed - WARM_UP_SECONDS / 2 <= end < killed]
    rate = len(before) / (WARM_UP_SECONDS / 2)
    return Failover(len(load.ends), len(load.failures), rate, load.longest, _recovery(load.ends, killed, 0.9 * rate))


def _recovery(ends: list[float], killed: float, rate: float) -> float:
    """Seconds from the kill until the first window in which calls end at that rate again."""
    for number in range(round(AFTER_SECONDS / WINDOW_SECONDS)):
        begin = killed + number * WINDOW_SECONDS
        count = sum(begin <= end < begin + WINDOW_SECONDS for end in ends)
        if count >= rate * WINDOW_SECONDS:
            return number * WINDOW_SECONDS
    return AFTER_SECONDS


def rounds(count: int, balance: Balance) -> Iterator[Failover]:
    """Fresh servers in every round. The one that is killed is the first, which all calls go to with "first"."""
    for _ in range(count):
        with ExitStack() as stack:
            servers = [stack.enter_context(ServiceProcess(ServiceOptions(receive="copy"))) for _ in range(SERVERS)]
            yield zcrpc.run(kill_one([server.ready.address for server in servers], balance, servers[0].pid))


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    good = True
    print(f"{'balance':<14} {'calls':>8} {'failed':>7} {'calls/s before':>15} {'longest ms':>11} {'recovery ms':>12}")
    for balance in PICKERS:
        for found in rounds(count, balance):
            good = good and not found.failed and found.recovery_seconds <= LIMIT_SECONDS
            print(
                f"{balance:<14} {found.calls:>8,} {found.failed:>7} {found.rate:>15,.0f} "
                f"{found.longest_seconds * 1e3:>11.1f} {found.recovery_seconds * 1e3:>12.0f}"
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
