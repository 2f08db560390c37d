"""The native load generator: many connections, one thread, no Python between requests.

python -m zcrpc.lab.load     takes `Load` as JSON on standard input, gives `LoadResult`
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import IO, Literal

from zcrpc import wire
from zcrpc._native import check, ffi, lib
from zcrpc.lab.processes import Child, serve
from zcrpc.lab.results import Latency, from_struct
from zcrpc.wire import Hello, Limits

Verify = Literal["none", "echo", "sum", "own-sum"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Load:
    """A closed loop of requests to 127.0.0.1: each connection keeps `in_flight` of them going. Contents are random.

    Args:
        port: of the server.
        payload: bytes in each request.
        protocol: "zcrpc", or "raw" for the floors: 8 bytes of little-endian length, then the body, both ways.
        verify: "echo": the reply's payload is the request's; "sum": the reply's header (raw: its body) ends in the
            sum of the first byte of each of the payload's pages, 8 bytes, little-endian; "own-sum" (raw): the reply's
            body ends in the sum of its own pages' first bytes.
        method, header: of the requests ("zcrpc"): the method's number, the msgpack header.
        padded: send the payload in whole pages with MSG_ZEROCOPY, so that the receiver can map it.
        chunk: bytes of payload in a chunk, both ways; whole pages.
        requests: stop after as many; 0: go by time alone.
        until_closed: the server ends the run by closing its connections.
        server_pid: the process whose CPU time is read at both ends of the window; 0: none.
    """

    port: int
    payload: int
    connections: int = 1
    in_flight: int = 1
    protocol: Literal["zcrpc", "raw"] = "zcrpc"
    verify: Verify = "none"
    method: int = 1
    header: bytes = b"\x90"  # no arguments
    padded: bool = False
    chunk: int = 1 << 20
    requests: int = 0
    warm_up_seconds: float = 0.3
    seconds: float = 1.0
    until_closed: bool = False
    server_pid: int = 0


@dataclass(slots=True, frozen=True)
class LoadResult:
    """What was measured after the warm-up.

    `errors`: calls refused, or lost with their connection. `mismatches`: wrong replies. `fewest`, `most`: requests of
    one connection. `fairness`: Jain's index of them, 1 if all connections have the same, 1/n if one of n has all.
    """

    requests: int
    errors: int
    mismatches: int
    bytes_sent: int
    elapsed_seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    fewest: int
    most: int
    fairness: float
    latency: Latency

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.elapsed_seconds

    @property
    def server_cpu_us_per_request(self) -> float:
        return 1e6 * self.server_cpu_seconds / max(self.requests, 1)

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes_sent / 1e9 / self.elapsed_seconds

    @property
    def server_cpu_seconds_per_gigabyte(self) -> float:
        return self.server_cpu_seconds / max(self.bytes_sent / 1e9, 1e-9)


_PROTOCOLS = {"zcrpc": lib.ZC_LOAD_ZCRPC, "raw": lib.ZC_LOAD_RAW}
_VERIFY = {
    "none": lib.ZC_LOAD_VERIFY_NONE,
    "echo": lib.ZC_LOAD_VERIFY_ECHO,
    "sum": lib.ZC_LOAD_VERIFY_SUM,
    "own-sum": lib.ZC_LOAD_VERIFY_OWN_SUM,
}


def generate(load: Load) -> LoadResult:
    """Runs the load in this thread.

    Raises `OSError` where it cannot connect, `zcrpc.ZcrpcError` where the server breaks the protocol.
    """
    header = ffi.from_buffer(load.header)
    options = ffi.new(
        "struct zc_load_options *",
        {
            "protocol": _PROTOCOLS[load.protocol],
            "verify": _VERIFY[load.verify],
            "port": load.port,
            "connections": load.connections,
            "in_flight": load.in_flight,
            "method": load.method,
            "padded": load.padded,
            "chunk": load.chunk,
            "header": header,
            "header_length": len(header),
            "payload": load.payload,
            "requests": load.requests,
            "warm_up_seconds": load.warm_up_seconds,
            "seconds": load.seconds,
            "until_closed": load.until_closed,
            "server_pid": load.server_pid,
        },
    )
    result = ffi.new("struct zc_load_result *")
    check(lib.zc_load_run(options, result), "generating load")
    return from_struct(LoadResult, result)


def reference(payload: int) -> bytes:
    """The header of a request whose one argument is its payload, as `zcrpc.codec` writes it."""
    return b"\x91\x91\xd8\x02" + struct.pack("<QQ", 0, payload)


def greet(port: int) -> tuple[socket.socket, Hello]:
    """A connection that has said hello and does nothing, and what the server says of itself.

    Raises `OSError`, or `ValueError` if it does not speak zcrpc.
    """
    frame = wire.encode_frame(
        wire.HELLO, wire.encode_hello(Hello(limits=Limits(header=4096, payload=0, in_flight=1), chunk=1 << 20))
    )
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        sock.sendall(wire.PREFACE + frame)
        with sock.makefile("rb") as stream:
            return sock, _read_hello(stream)
    except BaseException:
        sock.close()
        raise


def _read_hello(stream: IO[bytes]) -> Hello:
    if stream.read(len(wire.PREFACE)) != wire.PREFACE:
        raise ValueError("the server does not speak zcrpc, or another version of it")
    kind, _, _, _, length, _, _ = wire.FRAME.unpack(stream.read(wire.FRAME.size))
    if kind != wire.HELLO:
        raise ValueError(f"the server began with a frame of kind {kind}")
    return wire.decode_hello(stream.read(length))


def hello_of(port: int) -> Hello:
    """What a server says of itself. Raises as `greet`."""
    sock, hello = greet(port)
    sock.close()
    return hello


def start(load: Load) -> Child:
    """Starts the load in a process of its own; ``receive(LoadResult)`` waits for its end."""
    return Child("zcrpc.lab.load", load)


def run(load: Load) -> LoadResult:
    """Runs the load in a process of its own."""
    with start(load) as child:
        return child.receive(LoadResult)


if __name__ == "__main__":
    serve(Load, generate)
