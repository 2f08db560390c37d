"""Small calls beside large uploads: how long do the small ones wait?

python benchmarks/beside_uploads.py [rounds]     in three surroundings, in alternating rounds

50 connections, each with one echo of 64 bytes in flight, while two others upload 16 MiB back to back. Handlers are
Python, and that of the uploads touches every page. Server, small calls and uploads are a process each, so on two cores
a call waits for its processes to be run, too: hence the same small calls beside uploads to *another* server.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from statistics import median
from typing import Literal, TypeAlias

from peers import Peer, zcrpc_server
from rounds import alternate

from zcrpc.lab import load as lab_load
from zcrpc.lab.load import LoadResult

SMALL, LARGE = 64, 16 << 20
CONNECTIONS, UPLOADS = 50, 2
WARM_UP_SECONDS = 0.2
MARGIN_SECONDS = 0.5  # uploads go on for at least so much longer than the small calls
LIMIT_MS = 5.0

Beside: TypeAlias = Literal["nothing", "uploads", "uploads elsewhere"]
BESIDE: tuple[Beside, ...] = ("nothing", "uploads", "uploads elsewhere")


@dataclass(slots=True, frozen=True)
class Found:
    """Of the small calls; and how fast the uploads beside them were."""

    calls_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    upload_gigabytes_per_second: float


@dataclass(slots=True, frozen=True)
class Servers:
    """Whom the small calls go to, the same server for uploads, and another one."""

    echo: Peer
    upload: Peer
    elsewhere: Peer

    def measure(self, beside: Beside, seconds: float = 1.0) -> Found:
        """The small calls beside something, for so long. AssertionError if an answer is wrong or is missing."""
        if beside == "nothing":
            return _found(self._small(seconds), 0)
        to = self.upload if beside == "uploads" else self.elsewhere
        lasting = WARM_UP_SECONDS + seconds + MARGIN_SECONDS
        uploads = to.load("upload", LARGE, connections=UPLOADS, warm_up_seconds=WARM_UP_SECONDS, seconds=lasting)
        received = _received(to)
        with lab_load.start(uploads) as child:
            while _received(to) - received < LARGE:
                time.sleep(0.01)
            small = self._small(seconds)
            large = child.receive(LoadResult)
        _check(large)
        return _found(small, large.gigabytes_per_second)

    def _small(self, seconds: float) -> LoadResult:
        load = self.echo.load("echo", SMALL, connections=CONNECTIONS, warm_up_seconds=WARM_UP_SECONDS, seconds=seconds)
        result = lab_load.generate(load)  # here: a process takes its time to start
        _check(result)
        return result


def _check(result: LoadResult) -> None:
    assert result.requests > 0, "nothing was answered"
    assert result.errors == 0, f"{result.errors} errors"
    assert result.mismatches == 0, f"{result.mismatches} wrong replies"


def _received(peer: Peer) -> int:
    assert peer.service is not None
    snapshot = peer.service.snapshot()
    return snapshot.payload_bytes_copied + snapshot.payload_bytes_mapped


def _found(small: LoadResult, upload_gigabytes_per_second: float) -> Found:
    latency = small.latency
    return Found(
        calls_per_second=small.requests_per_second,
        p50_ms=latency.p50_us / 1e3,
        p99_ms=latency.p99_us / 1e3,
        p999_ms=latency.p999_us / 1e3,
        max_ms=latency.max_us / 1e3,
        upload_gigabytes_per_second=upload_gigabytes_per_second,
    )


@contextmanager
def servers() -> Iterator[Servers]:
    """Both servers, each in a process of its own."""
    with zcrpc_server("upload") as one, zcrpc_server("upload") as other:
        yield Servers(one.for_work("echo"), one, other)


def medians(found: list[Found]) -> Found:
    """Of each figure over the rounds."""
    return Found(*(median(getattr(each, field.name) for each in found) for field in fields(Found)))


def run(rounds: int, seconds: float = 1.0) -> dict[Beside, Found]:
    """Medians of alternating rounds."""
    with servers() as running:
        found = alternate({beside: partial(running.measure, beside, seconds) for beside in BESIDE}, rounds)
    return {beside: medians(each) for beside, each in found.items()}


def main() -> int:
    found = run(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    print(
        f"{'beside':<18} {'calls/s':>8} {'p50 ms':>7} {'p99 ms':>7} {'p99.9 ms':>8} {'max ms':>7} {'uploads GB/s':>12}"
    )
    for beside, each in found.items():
        print(
            f"{beside:<18} {each.calls_per_second:>8,.0f} {each.p50_ms:>7.2f} {each.p99_ms:>7.2f} {each.p999_ms:>8.2f} "
            f"{each.max_ms:>7.2f} {each.upload_gigabytes_per_second:>12.2f}"
        )
    return 0 if found["uploads"].p99_ms <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
