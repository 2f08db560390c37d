"""The kernel experiment's process: receivers without a region map, a thread that changes their address space, and the
sending process, which it forks.

python -m zcrpc.lab.kernel_receivers     takes `KernelReceivers` as JSON, gives `KernelResult`
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Literal

from zcrpc._native import check, ffi, lib
from zcrpc.lab.processes import serve
from zcrpc.lab.results import Latency, from_struct

Writer = Literal["none", "mprotect", "mmap"]
_WRITERS = {"none": lib.ZC_KERNEL_NO_WRITER, "mprotect": lib.ZC_KERNEL_MPROTECT, "mmap": lib.ZC_KERNEL_MMAP}


@dataclass(slots=True, frozen=True, kw_only=True)
class KernelReceivers:
    """What the process does.

    Args:
        receivers: threads, each with a connection of its own.
        payload: bytes in each; whole pages, at most 1 MiB.
        writer: "mprotect": flips the protection of `area_mib` of populated memory, over and over; "mmap": maps as much,
            touches a page of each of its 2 MiB, unmaps it.
        counted: receives, of all threads, during which acquisitions of the mmap lock are counted; 0: none.
    """

    receivers: int = 1
    payload: int = 4096
    writer: Writer = "none"
    area_mib: int = 64
    counted: int = 2000
    warm_up_seconds: float = 0.3
    seconds: float = 1.0


@dataclass(slots=True, frozen=True)
class KernelResult:
    """What was measured after the warm-up; native/lab/kernel.h (struct zc_kernel_result) says what each figure is."""

    elapsed_seconds: float
    receiver_cpu_seconds: float
    payloads: int
    receives: int
    bytes_mapped: int
    bytes_copied: int
    wrong: int
    receive: Latency
    counted_receives: int
    acquisitions: int
    waited_us: float
    longest_wait_us: float
    not_counted: str
    changes: int
    change: Latency


def receive(receivers: KernelReceivers) -> KernelResult | str:
    """Runs the experiment; forks, so call it while this process has one thread. Where nothing can be mapped, says so.

    Raises `OSError`, or `zcrpc.InvalidArgument` for what the driver does not take.
    """
    options = ffi.new(
        "struct zc_kernel_options *",
        {
            "receivers": receivers.receivers,
            "payload": receivers.payload,
            "writer": _WRITERS[receivers.writer],
            "area_bytes": receivers.area_mib << 20,
            "counted": receivers.counted,
            "warm_up_seconds": receivers.warm_up_seconds,
            "seconds": receivers.seconds,
        },
    )
    result = ffi.new("struct zc_kernel_result *")
    ran = lib.zc_kernel_run(options, result)
    if ran == -errno.EOPNOTSUPP:
        return f"pages of a socket cannot be mapped here: {os.strerror(-ran)}"
    check(ran, "receiving from the kernel")
    return from_struct(KernelResult, result)


if __name__ == "__main__":
    serve(KernelReceivers, receive)
