"""Servers to be measured, each in a process of its own, and the load that suits each: zcrpc, the C floor, the uvloop
floor.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zcrpc.lab import load as lab_load
from zcrpc.lab.load import Load, LoadResult
from zcrpc.lab.service import ServiceOptions, ServiceProcess

FLOOR = Path(__file__).parent / "floor"
Work = Literal["echo", "upload"]


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

    def load(self, work: Work, payload: int, **options: Any) -> Load:
        """A load that verifies every reply: an echo byte by byte, an upload by its page sum."""
        return Load(
            port=self.port,
            payload=payload,
            protocol="zcrpc" if self.method else "raw",
            method=self.method,
            header=lab_load.reference(payload) if self.method else b"",
            verify="echo" if work == "echo" else "sum",
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
        hello = lab_load.hello_of(service.ready.port)
        method = hello.methods["Bench.echo" if work == "echo" else "Bench.put"]
        yield Peer(name, service.ready.port, service.pid, method, hello.map_from, service)


@contextmanager
def c_floor(work: Work) -> Iterator[Peer]:
    """The C epoll server."""
    with _floor("C floor", str(_compiled()), work) as peer:
        yield peer


@contextmanager
def uvloop_floor(work: Work) -> Iterator[Peer]:
    """The hand-written uvloop protocol."""
    with _floor("uvloop floor", sys.executable, str(FLOOR / "uvloop_echo.py"), work) as peer:
        yield peer


@contextmanager
def _floor(name: str, *command: str) -> Iterator[Peer]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield Peer(name, int(process.stdout.readline()), process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@functools.cache
def _compiled() -> Path:
    target = Path(tempfile.mkdtemp(prefix="zcrpc-floor-")) / "c_echo"
    subprocess.run(
        ["cc", "-O2", "-std=c11", "-Wall", "-Wextra", "-o", str(target), str(FLOOR / "c_echo.c")], check=True
    )
    return target
