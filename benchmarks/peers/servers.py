"""Servers to be measured, each in a process of its own, and the native load that suits some: zcrpc, the C floor, the
uvloop floor, and whatever has an adapter.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peers.children import Ready, Serve
from peers.workloads import MIB, Work
from zcrpc.lab import load as lab_load
from zcrpc.lab.load import Load, LoadResult, Verify
from zcrpc.lab.processes import Child
from zcrpc.lab.service import ServiceOptions, ServiceProcess

BENCHMARKS = Path(__file__).parents[1]
FLOOR = BENCHMARKS / "floor"

_VERIFY: dict[Work, Verify] = {"echo": "echo", "upload": "sum", "download": "own-sum"}
_METHODS: dict[Work, str] = {
    "echo": "Bench.echo",
    "upload": "Bench.put",
    "download": "Bench.get",
    "stream": "Bench.items",
}


@dataclass(slots=True, frozen=True)
class Peer:
    """A running server. `whole_pages_from`: payloads of at least so many bytes are sent so that they can be mapped;
    0: none.
    """

    name: str
    port: int
    pid: int
    method: int = 0  # 0: the floors' protocol
    whole_pages_from: int = 0
    service: ServiceProcess | None = None

    def for_work(self, work: Work) -> Peer:
        """The same server, for other work than it was started for; floors do one kind only."""
        return self if self.service is None else replace(self, method=self.service.ready.methods[_METHODS[work]])

    def load(self, work: Work, payload: int, **options: Any) -> Load:
        """A native load that verifies every reply: an echo byte by byte, uploads and downloads by their page sums.

        Downloads are for the floors only, and as large as these were told; `payload` is what asks for them.
        """
        return Load(
            port=self.port,
            payload=payload,
            protocol="zcrpc" if self.method else "raw",
            method=self.method,
            header=lab_load.reference(payload) if self.method else b"",
            verify=_VERIFY[work],
            padded=0 < self.whole_pages_from <= payload,
            server_pid=self.pid,
            **options,
        )

    def run(self, work: Work, payload: int, **options: Any) -> LoadResult:
        """Runs that load from a process of its own."""
        result = lab_load.run(self.load(work, payload, **options))
        assert result.requests > 0, f"{self.name} answered nothing"
        assert result.errors == 0, f"{self.name}: {result.errors} errors"
        assert result.mismatches == 0, f"{self.name}: {result.mismatches} wrong replies"
        return result


@contextmanager
def zcrpc_server(work: Work, name: str = "zcrpc", **options: Any) -> Iterator[Peer]:
    """A server with a Python handler; options as of `ServiceOptions`, those of `zcrpc.Server` under `more`."""
    with ServiceProcess(ServiceOptions(**options)) as service:
        map_from = lab_load.hello_of(service.ready.port).map_from
        yield Peer(name, service.ready.port, service.pid, 0, map_from, service).for_work(work)


@contextmanager
def c_floor(work: Work, download_bytes: int = MIB) -> Iterator[Peer]:
    """The C epoll server."""
    with floor("C floor", str(compiled("c_echo")), work, str(download_bytes)) as peer:
        yield peer


@contextmanager
def uvloop_floor(work: Work | Literal["mixed"], download_bytes: int = MIB) -> Iterator[Peer]:
    """The hand-written uvloop protocol. "mixed": what is less than 1 MiB is echoed, the rest are uploads."""
    with floor("uvloop floor", sys.executable, str(FLOOR / "uvloop_echo.py"), work, str(download_bytes)) as peer:
        yield peer


@contextmanager
def adapter_server(name: str, adapter: str, download_bytes: int = MIB) -> Iterator[Peer]:
    """The server of `peers.adapters.<adapter>`."""
    with Child("peers.server", Serve(adapter, download_bytes), found_in=BENCHMARKS) as child:
        yield Peer(name, child.receive(Ready).port, child.pid)


@contextmanager
def floor(name: str, *command: str) -> Iterator[Peer]:
    """A server of `FLOOR`, which prints its port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield Peer(name, int(process.stdout.readline()), process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@functools.cache
def compiled(name: str) -> Path:
    """The program of a C file in `FLOOR`."""
    target = Path(tempfile.mkdtemp(prefix="zcrpc-floor-")) / name
    subprocess.run(
        ["cc", "-O2", "-std=c11", "-Wall", "-Wextra", "-o", str(target), str(FLOOR / f"{name}.c")], check=True
    )
    return target
