"""The measurement: for each workload all servers are started, and their clients take turns in alternating rounds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from socket import create_connection, socket
from subprocess import CalledProcessError
from threading import Timer
from typing import Any

from rounds import in_turn

from peers.children import Order, allow_many_connections
from peers.servers import BENCHMARKS, Peer
from peers.stacks import Stack
from peers.window import Measured
from peers.workloads import UPLOAD_BESIDE, Workload
from zcrpc.lab import load as lab_load
from zcrpc.lab.load import LoadResult
from zcrpc.lab.processes import Child, ChildFailed

PATIENCE_SECONDS = 60.0  # beyond what is measured; then a client has hung
MARGIN_SECONDS = 0.6  # what is done beside begins so much earlier, and goes on for so much longer


@dataclass(slots=True, frozen=True)
class Row:
    """What one stack did in one round of a workload. GB = 10⁹ bytes; CPU is that of all threads of a process.

    `server_grown_bytes`: the server's peak so far above what it had before the first connection. `failed`: why there
    are no figures.
    """

    stack: str
    workload: str
    round: int
    requests: int = 0
    wrong: int = 0
    seconds: float = 0.0
    requests_per_second: float = 0.0
    gigabytes_per_second: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    server_cpu_us_per_request: float = 0.0
    client_cpu_us_per_request: float = 0.0
    server_cpu_seconds_per_gigabyte: float = 0.0
    client_cpu_seconds_per_gigabyte: float = 0.0
    server_grown_bytes: int = 0
    uploads_gigabytes_per_second: float = 0.0  # of those beside
    failed: str = ""


def measure(stacks: Sequence[Stack], workloads: Sequence[Workload], rounds: int, seconds: float) -> Iterator[Row]:
    """A row for each stack that has the workload, workload by workload; of a stack that fails, one that says why."""
    allow_many_connections()
    for workload in workloads:
        with ExitStack() as running:
            ways = {}
            for stack in stacks:
                if workload.name not in stack.lacks:
                    ways[stack.name] = _Way(running, stack, workload, seconds)
            for number, name in in_turn(ways, rounds):
                yield ways[name].run(number)


class _Way:
    """One stack's server and, for each round, a client."""

    def __init__(self, running: ExitStack, stack: Stack, workload: Workload, seconds: float) -> None:
        self.stack, self.workload, self.seconds = stack, workload, seconds
        self.failed = ""
        try:
            self.peer = running.enter_context(stack.server(workload))
            self.resident = memory(self.peer.pid, "VmRSS")
        except (ChildFailed, OSError, CalledProcessError) as error:
            self.failed = str(error)

    def run(self, number: int) -> Row:
        """Once it has failed it is not tried again."""
        if not self.failed:
            try:
                return self._run(number)
            except (ChildFailed, FileNotFoundError) as error:
                self.failed = str(error)
        return Row(self.stack.name, self.workload.name, number, failed=self.failed)

    def _run(self, number: int) -> Row:
        warm_up = self.seconds / 2  # some stacks take their time to find their stride
        with ExitStack() as clients:
            if self.workload.uploads:
                lasting = self.seconds + 2 * MARGIN_SECONDS
                uploads = self._start(clients, UPLOAD_BESIDE, warm_up, lasting)
                small = self._start(clients, self.workload, warm_up + MARGIN_SECONDS, self.seconds)
                found, beside = self._result(small), self._result(uploads)
                return self._row(number, found, beside.calls * UPLOAD_BESIDE.payload / 1e9 / beside.seconds)
            client = self._start(clients, self.workload, warm_up, self.seconds)
            return self._row(number, self._result(client))

    def _start(self, clients: ExitStack, part: Workload, warm_up: float, seconds: float) -> Child:
        peer = self.peer
        if self.stack.adapter:
            order = Order(
                self.stack.adapter,
                peer.port,
                peer.pid,
                part.work,
                part.payload,
                part.connections,
                part.in_flight,
                part.idle,
                part.items,
                warm_up,
                seconds,
            )
            return clients.enter_context(Child("peers.client", order, found_in=BENCHMARKS))
        for _ in range(part.idle):
            clients.enter_context(idle_connection(peer))
        load = peer.for_work(part.work).load(
            part.work,
            8 if part.work == "download" else part.payload,
            connections=part.connections,
            in_flight=part.in_flight,
            warm_up_seconds=warm_up,
            seconds=seconds,
        )
        return clients.enter_context(lab_load.start(load))

    def _result(self, client: Child) -> Measured:
        patience = Timer(self.seconds + PATIENCE_SECONDS, os.kill, (client.pid, SIGKILL))
        patience.start()
        try:
            return client.receive(Measured) if self.stack.adapter else self._native(client.receive(LoadResult))
        finally:
            patience.cancel()

    @staticmethod
    def _native(found: LoadResult) -> Measured:
        if found.errors or not found.requests:
            raise ChildFailed(f"{found.errors} errors, {found.requests} answers")
        return Measured(
            calls=found.requests,
            wrong=found.mismatches,
            seconds=found.elapsed_seconds,
            server_cpu_seconds=found.server_cpu_seconds,
            client_cpu_seconds=found.cpu_seconds,
            p50_us=found.latency.p50_us,
            p99_us=found.latency.p99_us,
        )

    def _row(self, number: int, found: Measured, beside: float = 0.0) -> Row:
        requests = found.calls * self.workload.items
        gigabytes = requests * self.workload.payload / 1e9
        return Row(
            self.stack.name,
            self.workload.name,
            number,
            requests=requests,
            wrong=found.wrong,
            seconds=found.seconds,
            requests_per_second=requests / found.seconds,
            gigabytes_per_second=gigabytes / found.seconds,
            p50_us=found.p50_us,
            p99_us=found.p99_us,
            server_cpu_us_per_request=1e6 * found.server_cpu_seconds / requests,
            client_cpu_us_per_request=1e6 * found.client_cpu_seconds / requests,
            server_cpu_seconds_per_gigabyte=found.server_cpu_seconds / gigabytes,
            client_cpu_seconds_per_gigabyte=found.client_cpu_seconds / gigabytes,
            server_grown_bytes=memory(self.peer.pid, "VmHWM") - self.resident,
            uploads_gigabytes_per_second=beside,
        )


def idle_connection(peer: Peer) -> socket:
    """One that does nothing; with zcrpc, one that has said hello."""
    return lab_load.greet(peer.port)[0] if peer.service else create_connection(("127.0.0.1", peer.port), timeout=10)


def memory(pid: int, which: str) -> int:
    """A process's memory in bytes, now ("VmRSS") or at its peak ("VmHWM"). Raises FileNotFoundError if it is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


def by_stack(rows: Sequence[Row], workload: str) -> Mapping[str, list[Row]]:
    """The rows of a workload that have figures."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.workload == workload and not row.failed:
            found.setdefault(row.stack, []).append(row)
    return found


def settings(stacks: Sequence[Stack], workloads: Sequence[Workload], rounds: int, seconds: float) -> dict[str, Any]:
    """For the file of results: what was asked for, and every stack's versions."""
    return {
        "rounds": rounds,
        "seconds": seconds,
        "workloads": {each.name: each.title for each in workloads},
        "stacks": {each.name: each.setup for each in stacks},
        "versions": {name: found for each in stacks for name, found in each.versions.items()},
    }
