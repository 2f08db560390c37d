"""Who is compared, and how each is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from peers.servers import Peer, adapter_server, c_floor, uvloop_floor, zcrpc_server
from peers.workloads import MIB, Work, Workload

Kind = Literal["zcrpc", "floor", "rpc", "messages"]


@dataclass(slots=True, frozen=True)
class Stack:
    """One row.

    Args:
        adapter: the module of `peers.adapters` with its client; "": the native load generator.
        packages: distributions that must be installed.
        setup: how it is configured, and what its client is.
        lacks: workload → why it has no figure.
        kind: "rpc": calls with ids and errors; "messages": something less; "floor": nothing at all.
    """

    name: str
    adapter: str
    kind: Kind
    setup: str
    packages: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> str:
        """Packages of it that are not installed."""
        return ", ".join(name for name in self.packages if _version(name) is None)

    @property
    def versions(self) -> dict[str, str]:
        """Of its packages, as far as they are installed."""
        return {name: found for name in self.packages if (found := _version(name)) is not None}

    def server(self, workload: Workload) -> AbstractContextManager[Peer]:
        """A new one, in a process of its own."""
        return _SERVERS.get(self.name.partition(" (")[0], self._adapter_server)(workload)

    def _adapter_server(self, workload: Workload) -> AbstractContextManager[Peer]:
        return adapter_server(self.name, self.adapter, _download_bytes(workload))


def _download_bytes(workload: Workload) -> int:
    return workload.payload if workload.work == "download" else MIB


def _floor_mode(workload: Workload) -> Work | Literal["mixed"]:
    return "mixed" if workload.uploads else workload.work


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_SERVERS: Final[dict[str, Callable[[Workload], AbstractContextManager[Peer]]]] = {
    "zcrpc": lambda workload: zcrpc_server(workload.work),
    "uvloop floor": lambda workload: uvloop_floor(_floor_mode(workload), _download_bytes(workload)),
    "C floor": lambda workload: c_floor(workload.work, _download_bytes(workload)),
}

_ONE_AT_A_TIME: Final = {"in-flight": "one request at a time on a connection"}
_NO_STREAMS: Final = {"stream": "no streams"}
_NO_MIXED: Final = {"beside-uploads": "the floor's client does one kind of work"}

STACKS: Final = {
    each.name: each
    for each in (
        Stack("zcrpc", "zcrpc", "zcrpc", "default options, typed client on uvloop"),
        Stack(
            "zcrpc (C client)",
            "",
            "zcrpc",
            "the same server under the C load generator",
            lacks={"download-1": "uploads only", "download-16": "uploads only", **_NO_STREAMS},
        ),
        Stack(
            "C floor",
            "",
            "floor",
            "epoll server in C with one reused 1 MiB buffer, so that no upload is ever whole; C load generator",
            lacks={**_NO_MIXED, **_NO_STREAMS},
        ),
        Stack(
            "uvloop floor",
            "uvloop_floor",
            "floor",
            "hand-written asyncio protocols at both ends, replies in order, no ids, futures, errors or flow control",
            lacks=_NO_STREAMS,
        ),
        Stack(
            "uvloop floor (C client)",
            "",
            "floor",
            "the same server under the C load generator",
            lacks={**_NO_MIXED, **_NO_STREAMS},
        ),
        Stack(
            "grpc.aio",
            "grpc_aio",
            "rpc",
            "on uvloop; generic handlers without serializers, message limits lifted, a TCP connection for each channel",
            ("grpcio",),
        ),
        Stack(
            "Arrow Flight",
            "flight",
            "rpc",
            "actions for echoes; do_put with an acknowledgement and do_get of one uint8 RecordBatch; a batch for each "
            "item of a stream; a client for each thread",
            ("pyarrow",),
        ),
        Stack(
            "pycapnp",
            "pycapnp",
            "rpc",
            "two-party RPC on asyncio (its server crashes on uvloop), traversal limit lifted; Data arrives as bytes",
            ("pycapnp",),
            _NO_STREAMS,
        ),
        Stack(
            "thriftpy2",
            "thriftpy2",
            "rpc",
            "asyncio client and server on uvloop, pure Python, binary protocol, buffered transport",
            ("thriftpy2",),
            {**_ONE_AT_A_TIME, **_NO_STREAMS},
        ),
        Stack(
            "RPyC",
            "rpyc",
            "rpc",
            "ThreadedServer; no compression (default: above 3000 B), I/O chunks of 64 MiB (default: 64,000 B); "
            "rpyc.async_ where several are in flight; a stream is a remote iterator",
            ("rpyc",),
        ),
        Stack(
            "zerorpc",
            "zerorpc",
            "rpc",
            "gevent, default heartbeat",
            ("zerorpc",),
        ),
        Stack(
            "Dask comm",
            "dask_comm",
            "messages",
            "on uvloop; bulk as to_serialize(array), out of band; no compression (default)",
            ("distributed", "numpy"),
            _ONE_AT_A_TIME,
        ),
        Stack(
            "pyzmq",
            "pyzmq",
            "messages",
            "asyncio on uvloop; ROUTER, a DEALER for each connection, msgpack header and body in frames, copy=False "
            "both ways, 1 I/O thread",
            ("pyzmq",),
            _NO_STREAMS,
        ),
        Stack(
            "aiohttp",
            "aiohttp",
            "messages",
            "on uvloop; HTTP/1.1 kept alive, no access log, body by request.read(); a session for each connection",
            ("aiohttp",),
            {**_ONE_AT_A_TIME, **_NO_STREAMS},
        ),
    )
}
