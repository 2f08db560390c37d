"""Many connections on one server: what an idle one takes, how fast they come in, and what the busy ones notice.

The idle ones are held by this process, from several addresses of 127.0.0.0/8, so that there are ports enough; the busy
ones by native load generators. Servers are processes of their own, with a Python handler that echoes 64 bytes.
"""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import psutil
from peers import Peer, zcrpc_server
from rounds import alternate, medians
from targets import Figure, Settings

from zcrpc import wire
from zcrpc.lab import load as lab_load
from zcrpc.lab.load import LoadResult
from zcrpc.wire import Hello, Limits

IDLE: Final = 10_000
BUSY: Final = 1_000
ACTIVE: Final = 100
LOUD: Final = 10
LOUD_IN_FLIGHT: Final = 64
PAYLOAD: Final = 64  # bytes
LIMIT_BYTES: Final = 4096  # of user memory for an idle connection
# What the listener's backlog takes before the server has accepted any.
AT_ONCE: Final = 500
# Source ports that one address certainly has.
PER_ADDRESS: Final = 10_000
# Files that a process has open besides.
OTHER_FILES: Final = 200


@dataclass(slots=True, frozen=True)
class Arrival:
    """Connections that came in one after the other and are idle since. All figures are of one connection."""

    connections: int
    resident_bytes: float  # of the server
    seconds: float  # until the server's hello has come
    server_cpu_seconds: float


def allow_files(files: int) -> None:
    """Lets this process and its children open so many. SystemExit says what has to be done if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= files:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(files, hard)))
    except (ValueError, OSError):
        print(
            f"{files:,} open files are needed, and the limit is {hard:,}: raise it with `ulimit -n {files}` as root, "
            "LimitNOFILE= of systemd, or nofile in /etc/security/limits.conf",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


class Crowd:
    """Connections that have said hello and do nothing. A context manager: leaving it closes them."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._sockets: list[socket.socket] = []
        hello = wire.encode_hello(Hello(limits=Limits(header=4096, payload=1 << 20, in_flight=1), chunk=1 << 20))
        self._greeting = wire.PREFACE + wire.encode_frame(wire.HELLO, hello)

    def join(self, connections: int) -> None:
        """That many more; returns when the server has greeted them all."""
        while connections > 0:
            fresh = [self._connect() for _ in range(min(connections, AT_ONCE))]
            for sock in fresh:
                _read_hello(sock)
            connections -= len(fresh)

    def _connect(self) -> socket.socket:
        source = f"127.0.0.{2 + len(self._sockets) // PER_ADDRESS}"
        sock = socket.create_connection(("127.0.0.1", self._peer.port), timeout=30, source_address=(source, 0))
        self._sockets.append(sock)
        sock.sendall(self._greeting)
        return sock

    def all_answer(self) -> int:
        """Pings every one; how many answered."""
        for sock in self._sockets:
            sock.sendall(wire.encode_frame(wire.PING, b"still"))
        return sum(_read_frame(sock) == (wire.PONG, b"still") for sock in self._sockets)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


def _read(sock: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        part = sock.recv(length - len(found))
        if not part:
            raise ConnectionError("the server has closed a connection")
        found += part
    return found


def _read_frame(sock: socket.socket) -> tuple[int, bytes]:
    kind, _, _, _, header_length, _, _ = wire.FRAME.unpack(_read(sock, wire.FRAME.size))
    return kind, _read(sock, header_length)


def _read_hello(sock: socket.socket) -> None:
    assert _read(sock, len(wire.PREFACE)) == wire.PREFACE
    assert _read_frame(sock)[0] == wire.HELLO


def arrive(peer: Peer, crowd: Crowd, connections: int) -> Arrival:
    """Lets so many more idle connections come to a server."""
    assert peer.service is not None
    process = psutil.Process(peer.pid)
    before, cpu, began = peer.service.snapshot(), _cpu_seconds(process), time.perf_counter()
    crowd.join(connections)
    seconds, cpu = time.perf_counter() - began, _cpu_seconds(process) - cpu
    after = peer.service.snapshot()
    assert after.connections - before.connections == connections
    grown = after.resident_bytes - before.resident_bytes
    return Arrival(connections, grown / connections, seconds / connections, cpu / connections)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def server(connections: int) -> Iterator[Peer]:
    """A server that takes so many connections, and some more."""
    allow_files(connections + OTHER_FILES)
    with zcrpc_server("echo", more={"max_connections": connections + OTHER_FILES}) as peer:
        yield peer


@contextmanager
def crowded(connections: int) -> Iterator[tuple[Peer, Arrival]]:
    """A server with so many idle connections."""
    with server(connections + BUSY) as peer, Crowd(peer) as crowd:
        peer.run("echo", PAYLOAD, connections=ACTIVE, seconds=0.1)  # whatever it allocates once is allocated
        crowd.join(AT_ONCE)
        yield peer, arrive(peer, crowd, connections - AT_ONCE)


def beside_loud_ones(peer: Peer, seconds: float) -> LoadResult:
    """All but a few connections with a call in flight each, beside a few that always have many."""
    lasting = partial(peer.load, "echo", PAYLOAD, seconds=seconds + 1.0)
    with lab_load.start(lasting(connections=LOUD, in_flight=LOUD_IN_FLIGHT)) as child:
        found = peer.run("echo", PAYLOAD, connections=BUSY - LOUD, seconds=seconds)
        assert child.receive(LoadResult).errors == 0
    return found


# ---- figures


def idle(settings: Settings) -> Iterator[Figure]:
    """What idle connections take, and what busy ones notice of them."""
    with ExitStack() as stack:
        full, arrival = stack.enter_context(crowded(IDLE))
        yield Figure(
            f"{arrival.connections:,} idle connections",
            f"≤ {LIMIT_BYTES // 1024} KiB of user memory each",
            f"{arrival.resident_bytes / 1024:.2f} KiB each",
            arrival.resident_bytes <= LIMIT_BYTES,
        )
        yield Figure(
            "connections taken in, hello and all",
            "no target",
            f"{1 / arrival.seconds:,.0f}/s from one Python process, {arrival.server_cpu_seconds * 1e6:.0f} µs of the "
            "server's CPU each",
            True,
        )
        empty = stack.enter_context(server(BUSY))
        for active in (1, ACTIVE):
            yield _noticed(full, empty, active, settings.rounds)


def _noticed(full: Peer, empty: Peer, active: int, rounds: int) -> Figure:
    ways = {
        name: partial(peer.run, "echo", PAYLOAD, connections=active, seconds=1.0)
        for name, peer in (("beside", full), ("alone", empty))
    }
    found = alternate(ways, rounds)
    p99 = medians(found, lambda each: each.latency.p99_us)
    cpu = medians(found, lambda each: each.server_cpu_us_per_request)
    ratio = p99["beside"] / p99["alone"]
    return Figure(
        f"p99 of {active} busy beside {IDLE:,} idle connections",
        "within 20 % of what it is without them",
        f"{ratio:.2f} ×: {p99['beside']:,.0f} against {p99['alone']:,.0f} µs; server CPU per call "
        f"{cpu['beside']:.1f} against {cpu['alone']:.1f} µs",
        ratio <= 1.2,
    )


def busy(settings: Settings) -> Iterator[Figure]:
    """Many busy connections: what they cost, and whether each gets its share."""
    with server(2 * BUSY) as peer:
        ways = {
            "100": partial(peer.run, "echo", PAYLOAD, connections=ACTIVE, seconds=1.0),
            "1,000": partial(peer.run, "echo", PAYLOAD, connections=BUSY, seconds=1.0),
            "beside": partial(beside_loud_ones, peer, 1.0),
        }
        found = alternate(ways, settings.rounds)
    speed = medians(found, lambda each: each.requests_per_second)
    cpu = medians(found, lambda each: each.server_cpu_us_per_request)
    p99 = medians(found, lambda each: each.latency.p99_us / 1e3)
    yield Figure(
        f"{BUSY:,} busy connections against {ACTIVE}",
        "≥ 0.8 × the calls per second",
        f"{speed['1,000'] / speed['100']:.2f} ×: {speed['1,000']:,.0f} against {speed['100']:,.0f}/s; server CPU "
        f"{cpu['1,000']:.1f} against {cpu['100']:.1f} µs; p99 {p99['1,000']:.1f} against {p99['100']:.1f} ms",
        speed["1,000"] >= 0.8 * speed["100"],
    )
    for way, what in (
        ("1,000", f"{BUSY:,} busy connections"),
        ("beside", f"{BUSY - LOUD} of them beside {LOUD} with {LOUD_IN_FLIGHT} calls in flight"),
    ):
        worst = min(found[way], key=lambda each: each.fairness)
        mean = worst.requests / (BUSY if way == "1,000" else BUSY - LOUD)
        yield Figure(
            f"{what}: Jain's index of their calls",
            "≥ 0.95 in every round, none below half of the mean",
            f"{worst.fairness:.4f}; {worst.fewest} to {worst.most} calls each, {mean:.0f} on average; "
            f"{speed[way]:,.0f}/s in all, p99 {p99[way]:.1f} ms",
            worst.fairness >= 0.95 and worst.fewest >= mean / 2,
        )
