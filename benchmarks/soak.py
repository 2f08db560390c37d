"""A long run of mixed calls: memory must stay flat, and no lease may be left, on either side.

python benchmarks/soak.py [calls]     a million by default; exits with status 1 if memory grew or a lease is left
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import zcrpc
from zcrpc.lab.service import PAGE, ServiceOptions, ServiceProcess, page_sum, resident_bytes

KIB, MIB = 1 << 10, 1 << 20
CONNECTIONS = 4
WORKERS = 48  # calls in flight
SAMPLES = 20  # of memory, evenly over the run
SETTLED = 0.25  # share of the run after which memory must not grow any more
FLAT_BYTES = 2 * MIB  # what counts as flat: allocators and page tables breathe


@dataclass(slots=True)
class Soak:
    """What a run showed. Memory in bytes, sampled over the run."""

    calls: int = 0
    seconds: float = 0.0
    wrong: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    server_resident: list[int] = field(default_factory=list)
    client_resident: list[int] = field(default_factory=list)
    leases_left: int = 0

    @property
    def grown_bytes(self) -> int:
        """The larger growth of the two processes after they had settled."""
        return max(_growth(self.server_resident), _growth(self.client_resident))

    @property
    def is_clean(self) -> bool:
        return self.grown_bytes <= FLAT_BYTES and self.leases_left == 0 and self.wrong == 0


def _growth(samples: list[int]) -> int:
    settled = samples[int(len(samples) * SETTLED) :]
    half = len(settled) // 2
    return max(settled[half:]) - max(settled[:half]) if half else 0


def run(calls: int, **options: Any) -> Soak:
    """Runs that many calls; options as of `ServiceOptions`."""
    with ServiceProcess(ServiceOptions(**options)) as server:
        return zcrpc.run(_soak(server, calls))


async def _soak(server: ServiceProcess, calls: int) -> Soak:
    soak = Soak()
    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client) async for client in _clients(server)]
        for sample in range(SAMPLES):
            share = calls * (sample + 1) // SAMPLES - calls * sample // SAMPLES
            await _call(soak, clients, share)
            soak.server_resident.append(server.snapshot().resident_bytes)
            soak.client_resident.append(resident_bytes())
        soak.leases_left = server.snapshot().leases + sum(client.stats().leases for client in clients)
    soak.seconds = time.perf_counter() - started
    return soak


async def _clients(server: ServiceProcess) -> AsyncIterator[Any]:
    for _ in range(CONNECTIONS):
        yield zcrpc.connect(server.ready.address)


async def _call(soak: Soak, clients: list[zcrpc.Client], calls: int) -> None:
    left = iter(range(calls))

    async def work(client: zcrpc.Client) -> None:
        for _ in left:
            outcome = await _one(soak, client)
            soak.outcomes[outcome] = soak.outcomes.get(outcome, 0) + 1
            soak.calls += 1

    await asyncio.gather(*(work(clients[number % len(clients)]) for number in range(WORKERS)))


_CONTENTS = os.urandom(2 * MIB)


async def _one(soak: Soak, client: zcrpc.Client) -> str:
    """One call of a random kind; what it was."""
    kind = random.random()
    if kind < 0.94:
        size = random.randrange(2 * KIB) if kind < 0.88 else random.randrange(2 * KIB, 100 * KIB)
        payload = memoryview(_CONTENTS)[: size + 1]
        soak.wrong += await client.call("Bench.echo", payload) != payload
        return "echo"
    if kind < 0.98:
        size = random.randrange(32 * KIB, 300 * KIB if kind < 0.979 else 2 * MIB - PAGE)
        payload = memoryview(_CONTENTS)[PAGE : PAGE + size]
        answer = await client.call("Bench.put", payload)
        soak.wrong += int.from_bytes(answer[8:], "little") != page_sum(payload)
        return "put"
    if kind < 0.99:
        try:
            await client.call("Bench.fail", "as asked")
        except zcrpc.NotFound:
            return "fail"
    else:
        try:
            await client.call("Bench.wait", 10.0, timeout=0.001)
        except zcrpc.DeadlineExceeded:
            return "deadline"
    soak.wrong += 1
    return "no error where one was due"


def main() -> None:
    """Prints the run."""
    soak = run(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    print(f"{soak.calls:,} calls in {soak.seconds:.0f} s, {soak.calls / soak.seconds:,.0f}/s: {soak.outcomes}")
    for name, samples in (("server", soak.server_resident), ("client", soak.client_resident)):
        print(f"{name} MiB: {' '.join(f'{each / MIB:.1f}' for each in samples)}")
    print(f"{soak.wrong} wrong, {soak.leases_left} leases left, {soak.grown_bytes / MIB:.2f} MiB grown")
    sys.exit(0 if soak.is_clean else 1)


if __name__ == "__main__":
    main()
