"""What native receiving threads and worker processes cost, and what they bring: the table of docs/scaling.md.

python benchmarks/cores.py [--rounds 5] [name …]     names: inline, threads-1, threads-2, workers-1, workers-2

Each server has Python handlers that echo, or touch every page of what is uploaded. The load comes from native
generators in processes of their own, which want cores, too: on two cores a server that uses both takes them away from
its clients. CPU time is of all of a server's processes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import psutil
from peers import Peer
from rich.console import Console
from rich.table import Table
from rounds import alternate, medians

from zcrpc.lab import load as lab_load
from zcrpc.lab.load import LoadResult

MIB = 1 << 20
SECONDS = 1.0
CONNECTIONS = 100
UPLOADS = 4
SMALL_CALLERS = 50
WAYS: dict[str, tuple[str, ...]] = {
    "inline": (),
    "threads-1": ("--receive-threads", "1"),
    "threads-2": ("--receive-threads", "2"),
    "workers-1": ("--workers", "1"),
    "workers-2": ("--workers", "2"),
}


@dataclass(slots=True, frozen=True)
class Found:
    """Of one run. `cpu_us`: a call's, all of the server's processes added; `cores`: how many it kept busy."""

    requests_per_second: float
    gigabytes_per_second: float
    cpu_us: float
    cores: float
    p99_ms: float


@dataclass(slots=True, frozen=True)
class Server:
    """One to be measured, and its processes."""

    peer: Peer
    uploads: Peer
    processes: list[psutil.Process]

    def cpu_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.processes)

    def _measure(self, load: Callable[[], LoadResult]) -> Found:
        before = self.cpu_seconds()
        result = _checked(load())
        cpu = self.cpu_seconds() - before
        return Found(
            result.requests_per_second,
            result.gigabytes_per_second,
            1e6 * cpu / result.requests,
            cpu / result.elapsed_seconds,
            result.latency.p99_us / 1e3,
        )

    def echo(self) -> Found:
        """4 KiB on each of a hundred connections."""
        load = self.peer.load("echo", 4096, connections=CONNECTIONS, warm_up_seconds=0.0, seconds=SECONDS)
        return self._measure(partial(lab_load.run, load))

    def upload(self) -> Found:
        """16 MiB on each of a few."""
        load = self.uploads.load("upload", 16 * MIB, connections=UPLOADS, warm_up_seconds=0.0, seconds=SECONDS)
        return self._measure(partial(lab_load.run, load))

    def mixed(self) -> Found:
        """Small calls beside two uploads; of the small calls, but for the bytes, which are those uploaded."""
        large = self.uploads.load("upload", 16 * MIB, connections=2, warm_up_seconds=0.3, seconds=SECONDS + 0.3)
        small = self.peer.load("echo", 64, connections=SMALL_CALLERS, warm_up_seconds=0.5, seconds=SECONDS)
        with lab_load.start(large) as child:
            found = self._measure(partial(lab_load.run, small))
            uploaded = _checked(child.receive(LoadResult))
        return replace(found, gigabytes_per_second=uploaded.gigabytes_per_second)


def _checked(result: LoadResult) -> LoadResult:
    assert result.requests > 0, "nothing was answered"
    assert (result.errors, result.mismatches) == (0, 0), f"{result.errors} errors, {result.mismatches} wrong replies"
    return result


@contextmanager
def serve(name: str) -> Iterator[Server]:
    """`zcrpc serve` with the laboratory's service."""
    command = [sys.executable, "-m", "zcrpc.cli", "serve", "zcrpc.lab.service:Bench"]
    process = subprocess.Popen(
        [*command, "--listen", "tcp://127.0.0.1:0", *WAYS[name]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        port = int(line.rpartition(":")[2])
        hello = lab_load.hello_of(port)
        peer = Peer(name, port, 0, hello.methods["Bench.echo"], hello.map_from)
        parent = psutil.Process(process.pid)
        uploads = replace(peer, method=hello.methods["Bench.put"])
        yield Server(peer, uploads, [parent, *parent.children()])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


COLUMNS: dict[str, tuple[Callable[[Found], float], str]] = {
    "calls/s": (lambda each: each.requests_per_second, ",.0f"),
    "GB/s": (lambda each: each.gigabytes_per_second, ".2f"),
    "CPU µs/call": (lambda each: each.cpu_us, ",.1f"),
    "cores": (lambda each: each.cores, ".2f"),
    "p99 ms": (lambda each: each.p99_ms, ".2f"),
}


def _add_rows(table: Table, work: str, found: dict[str, list[Found]]) -> None:
    columns = [(medians(found, figure), form) for figure, form in COLUMNS.values()]
    for name in found:
        table.add_row(work, name, *(format(column[name], form) for column, form in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(WAYS)}")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(WAYS)
    if unknown or arguments.rounds < 1:
        parser.error(f"no such server: {', '.join(sorted(unknown))}" if unknown else "--rounds must be at least 1")
    table = Table("work", "server", *COLUMNS, box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serve(name)) for name in arguments.names or WAYS}
        for work in (Server.echo, Server.upload, Server.mixed):
            found = alternate({name: partial(work, each) for name, each in servers.items()}, arguments.rounds)
            _add_rows(table, work.__name__, found)
    Console(highlight=False, soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
