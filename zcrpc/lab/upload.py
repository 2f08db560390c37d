"""Uploads between a real client and a real server: how fast they are, and how much of them was mapped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import zcrpc
from zcrpc.calibration import Receive
from zcrpc.lab.service import PAGE, Bench, ServiceOptions, ServiceProcess, Snapshot, page_sum

_CONTENTS = 8  # different payloads that are sent in turn


@dataclass(slots=True, frozen=True)
class Upload:
    """Uploads one after the other on one connection; the handler touches every page. GB = 10⁹ bytes."""

    receive: Receive
    payload_bytes: int
    uploads: int
    seconds: float
    gigabytes_per_second: float
    server_cpu_seconds_per_gigabyte: float
    client_cpu_seconds_per_gigabyte: float
    mapped_percent: float
    fallbacks: dict[str, int]  # reason → payloads
    wrong: int  # answers that do not fit what was sent
    round: int = 0


def run_all(
    ways: Sequence[Receive], sizes: Sequence[int], seconds: float, rounds: int, *, warm_up: float = 0.3
) -> Iterator[Upload]:
    """Every way with every size, `seconds` each over all rounds; every second round goes backwards. Raises as `run`."""
    matrix = [(way, size) for size in sizes for way in ways]
    for number in range(rounds):
        for way, size in matrix if number % 2 == 0 else matrix[::-1]:
            yield replace(run(way, size, seconds / rounds, warm_up=warm_up), round=number)


def run(receive: Receive, payload_bytes: int = 16 << 20, seconds: float = 2.0, *, warm_up: float = 0.3) -> Upload:
    """Starts a server, uploads to it for `seconds`, ends it. Raises `zcrpc.ZcrpcError` if a call fails."""
    with ServiceProcess(ServiceOptions(receive=receive)) as server:
        return zcrpc.run(_upload(server, receive, payload_bytes, seconds, warm_up))


async def _upload(
    server: ServiceProcess, receive: Receive, payload_bytes: int, seconds: float, warm_up: float
) -> Upload:
    contents = list(_contents(payload_bytes))
    async with zcrpc.connect(server.ready.address, Bench) as client:
        await _send_for(warm_up, client, contents)
        before = _Mark.take(server)
        uploads, wrong = await _send_for(seconds, client, contents)
        after = _Mark.take(server)
    gigabytes = uploads * payload_bytes / 1e9
    elapsed = after.clock - before.clock
    mapped = after.server.payload_bytes_mapped - before.server.payload_bytes_mapped
    copied = after.server.payload_bytes_copied - before.server.payload_bytes_copied
    return Upload(
        receive=receive,
        payload_bytes=payload_bytes,
        uploads=uploads,
        seconds=elapsed,
        gigabytes_per_second=gigabytes / elapsed,
        server_cpu_seconds_per_gigabyte=(after.server_cpu - before.server_cpu) / gigabytes,
        client_cpu_seconds_per_gigabyte=(after.own_cpu - before.own_cpu) / gigabytes,
        mapped_percent=100 * mapped / max(mapped + copied, 1),
        fallbacks={reason: count - before.server.fallbacks[reason] for reason, count in after.server.fallbacks.items()},
        wrong=wrong,
    )


@dataclass(slots=True, frozen=True)
class _Mark:
    """One end of the measured window; clocks in seconds."""

    server: Snapshot
    clock: float
    own_cpu: float
    server_cpu: float

    @classmethod
    def take(cls, server: ServiceProcess) -> _Mark:
        return cls(server.snapshot(), time.perf_counter(), time.process_time(), process_cpu_seconds(server.pid))


def _contents(payload_bytes: int) -> Iterator[tuple[memoryview, int]]:
    """Random payloads, each with its page sum; they overlap, so that they take little more memory than one."""
    pool = memoryview(os.urandom(payload_bytes + _CONTENTS * PAGE))
    for number in range(_CONTENTS):
        payload = pool[number * PAGE :][:payload_bytes]
        yield payload, page_sum(payload)


async def _send_for(seconds: float, client: Bench, contents: list[tuple[memoryview, int]]) -> tuple[int, int]:
    """Uploads and wrong answers."""
    uploads = wrong = 0
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        payload, expected = contents[uploads % len(contents)]
        answer = await client.put(payload)
        wrong += int.from_bytes(answer[8:], "little") != expected
        uploads += 1
    return uploads, wrong


def process_cpu_seconds(pid: int) -> float:
    """User and system time of a process of ours, from its CPU clock (clock_getcpuclockid)."""
    return time.clock_gettime(~pid << 3 | 2)
