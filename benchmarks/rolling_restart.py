"""Workers are restarted under load: what do callers notice?

python benchmarks/rolling_restart.py [restarts]     four clients call two workers of `zcrpc serve`, which are restarted
                                                    again and again; exits with status 1 if a call failed

Each client has 8 callers of echoes of 1 KiB, which are not idempotent, one of calls that take 50 ms, and one that reads
streams of 100 items. *Longest* is the longest echo of a restart, *usual* the longest of the half second before.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import zcrpc

CLIENTS = 4
CALLERS = 8
WORKERS = 2
CALM_SECONDS = 0.5
PAYLOAD = bytes(1024)


class Work(zcrpc.Service):
    """What the workers serve."""

    @zcrpc.method
    async def echo(self, data: bytes) -> bytes:
        return data

    @zcrpc.method
    async def slow(self) -> int:
        await asyncio.sleep(0.05)
        return os.getpid()

    @zcrpc.method
    async def items(self) -> AsyncIterator[int]:
        for number in range(100):
            await asyncio.sleep(0.001)
            yield number


@dataclass(slots=True)
class Counts:
    """Of one restart, or of the time between two."""

    calls: int = 0
    streams: int = 0
    failed: int = 0
    longest_seconds: float = 0.0


class Load:
    """Callers of one client after the other."""

    def __init__(self, clients: list[zcrpc.Client]) -> None:
        self.counts = Counts()
        self.running = True
        kinds = [self.echo] * CALLERS + [self.slow, self.stream]
        self.tasks = [asyncio.ensure_future(self.repeat(kind, client)) for client in clients for kind in kinds]

    async def repeat(self, kind: Callable[[zcrpc.Client], Awaitable[None]], client: zcrpc.Client) -> None:
        while self.running:
            try:
                await kind(client)
            except zcrpc.ZcrpcError as error:
                print(f"failed: {type(error).__name__}: {error.message}", file=sys.stderr)
                self.counts.failed += 1

    async def echo(self, client: zcrpc.Client) -> None:
        begun = time.perf_counter()
        assert await client.call("Work.echo", PAYLOAD, timeout=10) == PAYLOAD
        self.counts.calls += 1
        self.counts.longest_seconds = max(self.counts.longest_seconds, time.perf_counter() - begun)

    async def slow(self, client: zcrpc.Client) -> None:
        await client.call("Work.slow", timeout=10)
        self.counts.calls += 1

    async def stream(self, client: zcrpc.Client) -> None:
        assert [each async for each in client.stream("Work.items", timeout=10)] == list(range(100))
        self.counts.streams += 1

    def next(self) -> Counts:
        done, self.counts = self.counts, Counts()
        return done


async def restart(server: subprocess.Popen[str], address: str, times: int) -> bool:
    """Whether no call failed."""
    clients = [await zcrpc.connect(address, receive="copy") for _ in range(CLIENTS)]
    load, good = Load(clients), True
    print(f"{'seconds':>8} {'calls':>8} {'streams':>8} {'failed':>7} {'usual ms':>9} {'longest ms':>11}")
    for _ in range(times):
        load.next()
        await asyncio.sleep(CALM_SECONDS)
        calm, begun = load.next(), time.perf_counter()
        server.send_signal(signal.SIGHUP)
        await asyncio.to_thread(_wait_for, server, "all workers have been restarted")
        seconds, found = time.perf_counter() - begun, load.next()
        good = good and not found.failed and not calm.failed
        print(
            f"{seconds:>8.2f} {found.calls:>8,} {found.streams:>8,} {found.failed:>7} "
            f"{calm.longest_seconds * 1e3:>9.1f} {found.longest_seconds * 1e3:>11.1f}"
        )
    load.running = False
    await asyncio.gather(*load.tasks)
    for client in clients:
        await client.close()
    return good


def _wait_for(server: subprocess.Popen[str], text: str) -> None:
    assert server.stderr is not None
    for line in server.stderr:
        if text in line:
            return
    raise SystemExit("the server has ended")


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    name = f"{Path(__file__).stem}:Work"
    command = [sys.executable, "-m", "zcrpc.cli", "serve", name, "--listen", "tcp://127.0.0.1:0", "--receive", "copy"]
    server = subprocess.Popen(
        [*command, "--workers", str(WORKERS)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("listening on ").strip()
        return 0 if address and zcrpc.run(restart(server, address, times)) else 1
    finally:
        server.terminate()
        server.communicate()


if __name__ == "__main__":
    sys.exit(main())
