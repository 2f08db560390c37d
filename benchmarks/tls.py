"""What TLS costs: small calls and uploads, plain and by TLS, server in a process of its own.

python benchmarks/tls.py [rounds]     alternating rounds, medians

The server is a child of this script; certificates are made for the run.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import trustme
from rounds import alternate, medians

import zcrpc
from zcrpc.lab.service import Bench

MIB = 1 << 20
CALLERS, CALLS = 16, 4000
UPLOADS, UPLOAD = 24, 16 * MIB
SIZE_LIMIT = 64 * MIB


def serve(certificate: str) -> None:
    """The child: prints where it listens; ends with its standard input."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    async def main() -> None:
        server = zcrpc.Server(Bench(), receive="copy", max_message=SIZE_LIMIT)
        async with server.listen("tcp://127.0.0.1:0", ssl=context) as address:
            print(address, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    zcrpc.run(main())


class ServerProcess:
    def __init__(self, certificate: str) -> None:
        command = [sys.executable, __file__, "serve", certificate]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> tuple[str, int]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip(), self.process.pid

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(address: str, pid: int, context: ssl.SSLContext | None) -> dict[str, float]:
    async with zcrpc.connect(address, ssl=context, receive="copy", max_message=SIZE_LIMIT) as client:

        async def caller() -> None:
            for _ in range(CALLS // CALLERS):
                await client.call("Bench.echo", b"x" * 100)

        cpu, begun = cpu_seconds(pid), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        seconds = time.perf_counter() - begun
        small = (cpu_seconds(pid) - cpu) / CALLS
        payload = bytearray(UPLOAD)
        await client.call("Bench.put", payload)
        upload_cpu, begun = cpu_seconds(pid), time.perf_counter()
        for _ in range(UPLOADS):
            await client.call("Bench.put", payload)
        elapsed = time.perf_counter() - begun
        volume = UPLOADS * UPLOAD / 1e9
        return {
            "calls/s": CALLS / seconds,
            "server µs/call": small * 1e6,
            "upload GB/s": volume / elapsed,
            "server s/GB": (cpu_seconds(pid) - upload_cpu) / volume,
        }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "server.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
        plain = stack.enter_context(ServerProcess(""))
        secure = stack.enter_context(ServerProcess(str(path)))
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "plain": lambda: zcrpc.run(measure(*plain, None)),
            "TLS": lambda: zcrpc.run(measure(*secure, trusting)),
        }
        results = alternate(ways, rounds)
        for figure in ("calls/s", "server µs/call", "upload GB/s", "server s/GB"):
            found = medians(results, lambda each, figure=figure: each[figure])  # type: ignore[misc]
            print(f"{figure:<16} plain {found['plain']:>10,.2f}   TLS {found['TLS']:>10,.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        main()
