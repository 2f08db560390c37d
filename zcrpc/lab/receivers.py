"""The seed experiment's server: native receiving threads on one region map, and the writer that disturbs them.

python -m zcrpc.lab.receivers     takes `Receivers` as JSON, gives its port, then `ReceiversResult`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zcrpc import locks
from zcrpc._native import check, ffi, lib
from zcrpc.lab.processes import say, serve
from zcrpc.lab.results import Latency, from_struct
from zcrpc.regions import LockCounters

Receive = Literal["zerocopy", "copy-pages", "copy"]
_RECEIVE = {"zerocopy": lib.ZC_SEED_ZEROCOPY, "copy-pages": lib.ZC_SEED_COPY_PAGES, "copy": lib.ZC_SEED_COPY}


@dataclass(slots=True, frozen=True, kw_only=True)
class Receivers:
    """What the server does.

    Args:
        receive: "zerocopy": every payload is mapped; "copy-pages": the same bytes in the same segments, received with
            recv; "copy": recv, and sent as suits it.
        connections_per_region: 0: those of a thread share.
        writer_interval_us: 0: no writer.
        writer_busy: it computes while it holds the lock, rather than sleep.
    """

    strategy: str
    receive: Receive
    connections: int
    threads: int
    payload: int
    connections_per_region: int = 1
    writer_interval_us: int = 0
    writer_hold_us: int = 0
    writer_busy: bool = False
    probe: bool = True
    warm_up_seconds: float = 0.3
    seconds: float = 1.0


@dataclass(slots=True, frozen=True)
class ReceiversResult(LockCounters):
    """The measured window; native/lab/lab.h (struct zc_seed_result) says what each figure means."""

    requests: int
    elapsed_seconds: float
    receiver_cpu_seconds: float
    writer_cpu_seconds: float
    lock_path_share_percent: float
    lock_path_ns: float
    samples: int
    waited_samples: int
    preempted_samples: int
    preempted_ms: float
    lock_wait: Latency
    receive: Latency
    payload_bytes_mapped: int
    payload_bytes_copied: int
    regions: int
    arena_bytes: int
    recycles: int
    writer_locks: int
    writer_late: int
    writer_wait: Latency
    writer_hold: Latency


def receive(receivers: Receivers) -> ReceiversResult:
    """Listens, tells the port, and serves one experiment. Raises `zcrpc.NotFound` for an unknown strategy."""
    strategy = ffi.new("char[]", receivers.strategy.encode())
    options = ffi.new(
        "struct zc_seed_options *",
        {
            "strategy": strategy,
            "receive": _RECEIVE[receivers.receive],
            "connections": receivers.connections,
            "threads": receivers.threads,
            "connections_per_region": receivers.connections_per_region,
            "payload_limit": receivers.payload,
            "writer_interval_us": receivers.writer_interval_us,
            "writer_hold_us": receivers.writer_hold_us,
            "writer_busy": receivers.writer_busy,
            "probe": receivers.probe,
            "warm_up_seconds": receivers.warm_up_seconds,
            "seconds": receivers.seconds,
        },
    )
    locks.find(receivers.strategy)  # which may be a plugin that the environment names
    out = ffi.new("struct zc_seed **")
    check(lib.zc_seed_open(options, out), f"opening the seed experiment with strategy {receivers.strategy!r}")
    try:
        say(lib.zc_seed_port(out[0]))
        result = ffi.new("struct zc_seed_result *")
        check(lib.zc_seed_run(out[0], result), "running the seed experiment")
    finally:
        lib.zc_seed_close(out[0])
    return from_struct(ReceiversResult, result)


if __name__ == "__main__":
    serve(Receivers, receive)
