"""The kernel's own lock: what does a thread that changes the address space do to receives of the same process?

Receivers do real TCP_ZEROCOPY_RECEIVE. Until Linux 6.3 each took the mmap lock, which a change of the address space
holds in write mode; since 6.4 it takes the lock of the mapping that it receives into. The kernel's `mmap_lock`
tracepoints count it, where tracefs allows that. Beside it, in the same scenario: receives through zcrpc's region map
with each lock strategy, where the writer holds the *map's* lock, for as long as the kernel's writer holds the kernel's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zcrpc import locks
from zcrpc.lab import load as lab_load
from zcrpc.lab.kernel_receivers import KernelReceivers, KernelResult, Writer
from zcrpc.lab.load import LoadResult
from zcrpc.lab.processes import Child
from zcrpc.lab.receivers import Receivers, ReceiversResult
from zcrpc.lab.results import Latency
from zcrpc.lab.seed import load_for

KERNEL: Final = "kernel"
"""What stands for a strategy where no region map is involved."""

WRITERS: Final[tuple[Writer, ...]] = ("mprotect", "mmap")
MOST_RECEIVERS: Final = 64  # ZC_KERNEL_RECEIVERS
_COUNTED = 2000  # receives; the tracepoints slow them down, so they are apart from those that are timed
_WARM_UP_SECONDS = 0.3
_HOLD_US = 500  # of the map's writer, where the kernel's could not be measured
_PAUSE = 50  # the map's writer is outside for one part in so many
_INSTANCES = ("/sys/kernel/tracing/instances", "/sys/kernel/debug/tracing/instances")


@dataclass(slots=True, frozen=True, kw_only=True)
class Experiment:
    """What is to be run. Raises `ValueError`, saying what is impossible, when created.

    Args:
        payload: bytes that each receiver asks for, again and again; whole pages.
        receivers: threads, each with a connection of its own.
        seconds: measured for each lock and writer, spread over the rounds.
        area_mib: of address space that the kernel's writers change.
        writers: the kernel's; without any, there are receives alone.
        locks: strategies of the region map to put beside; may be empty.
    """

    payload: int = 4096
    receivers: int = 1
    seconds: float = 3.0
    rounds: int = 3
    area_mib: int = 64
    writers: tuple[Writer, ...] = WRITERS
    locks: tuple[str, ...] = ("global", "per-region")

    def __post_init__(self) -> None:
        _check(self)

    @property
    def rows(self) -> int:
        """How many rounds `run` yields."""
        storms = bool(self.writers)
        return self.rounds * (1 + len(self.writers) + len(self.locks) * (1 + storms))


@dataclass(slots=True, frozen=True, kw_only=True)
class Round:
    """One lock with one writer, for one round. A receive is a call, timed from where it begins, for a region map with
    finding and locking the region, to where it ends.

    `strategy`: "kernel" or one of the region map's; with those the call takes the kernel's lock as well.
    `writer`: "none", "mprotect", "mmap"; "write-lock" for the region map. A change is one mprotect, one mmap and
    munmap, or one hold of the map's lock.
    `waited_us_per_receive`: for the lock: the kernel's as traced, the map's from its own clock.
    `note`: what is missing, and why; "" where nothing is. Figures that are missing are None, or 0.
    """

    strategy: str
    kernel: str  # its release
    emulated: bool
    writer: str
    round: int
    receivers: int
    payload_bytes: int
    area_mib: int
    seconds: float = 0.0

    receives: int = 0
    receives_per_second: float = 0.0
    receiver_cpu_us_per_receive: float = 0.0
    receive_p50_us: float = 0.0
    receive_p99_us: float = 0.0
    receive_p999_us: float = 0.0
    receive_max_us: float = 0.0
    mapped_percent: float = 0.0
    wrong: int = 0

    counted_receives: int = 0
    acquisitions: int = 0
    acquisitions_per_receive: float | None = None
    waited_us_per_receive: float | None = None
    longest_wait_us: float | None = None

    writer_changes_per_second: float = 0.0
    writer_change_p50_us: float = 0.0
    writer_change_p99_us: float = 0.0
    writer_change_p999_us: float = 0.0
    writer_change_max_us: float = 0.0
    note: str = ""


def run(experiment: Experiment) -> Iterator[Round]:
    """Runs the experiment and yields each round as it ends. Stop iterating to stop it.

    Raises:
        zcrpc.lab.processes.ChildFailed: a process could not do its part.
    """
    hold_us = 0
    mapping = True
    for number in range(experiment.rounds):
        writers: tuple[Writer, ...] = ("none", *experiment.writers)
        for writer in writers if number % 2 == 0 else writers[::-1]:
            found = run_kernel(experiment, writer, number)
            mapping = mapping and not _failed(found)
            hold_us = hold_us or (round(found.writer_change_p50_us) if writer == "mprotect" else 0)
            yield found
        for strategy in experiment.locks if number % 2 == 0 else experiment.locks[::-1]:
            for storm in (False, True) if experiment.writers else (False,):
                yield run_map(experiment, strategy, (hold_us or _HOLD_US) if storm else 0, number, mapping=mapping)


def run_kernel(experiment: Experiment, writer: Writer, number: int = 0) -> Round:
    """Runs the kernel by itself for one round. Raises as `run`."""
    options = KernelReceivers(
        receivers=experiment.receivers,
        payload=experiment.payload,
        writer=writer,
        area_mib=experiment.area_mib,
        counted=_COUNTED,
        warm_up_seconds=_WARM_UP_SECONDS,
        seconds=experiment.seconds / experiment.rounds,
    )
    child = Child("zcrpc.lab.kernel_receivers", options)
    try:
        with child:
            result = child.receive(KernelResult | str)  # type: ignore[arg-type]
    finally:
        _remove_trace(child.pid)
    return kernel_round(options, result, number, kernel=os.uname().release)


def kernel_round(
    options: KernelReceivers, result: KernelResult | str, number: int, *, kernel: str, emulated: bool = False
) -> Round:
    """What the receivers reported, on this machine's kernel or in a virtual machine, as a row."""
    settings: dict[str, Any] = {
        "strategy": KERNEL,
        "kernel": kernel,
        "emulated": emulated,
        "writer": options.writer,
        "round": number,
        "receivers": options.receivers,
        "payload_bytes": options.payload,
        "area_mib": options.area_mib,
    }
    if isinstance(result, str):
        return Round(**settings, note=result)
    counted = result.counted_receives
    return Round(
        **settings,
        seconds=result.elapsed_seconds,
        receives=result.receives,
        receives_per_second=_per(result.receives, result.elapsed_seconds),
        receiver_cpu_us_per_receive=1e6 * _per(result.receiver_cpu_seconds, result.receives),
        mapped_percent=100 * _per(result.bytes_mapped, result.bytes_mapped + result.bytes_copied),
        wrong=result.wrong,
        counted_receives=counted,
        acquisitions=result.acquisitions,
        acquisitions_per_receive=result.acquisitions / counted if counted else None,
        waited_us_per_receive=result.waited_us / counted if counted else None,
        longest_wait_us=result.longest_wait_us if counted else None,
        writer_changes_per_second=_per(result.changes, result.elapsed_seconds),
        note=f"the mmap lock was not counted: {result.not_counted}" if result.not_counted else "",
        **_distribution("receive", result.receive),
        **_distribution("writer_change", result.change),
    )


def run_map(experiment: Experiment, strategy: str, hold_us: int, number: int = 0, *, mapping: bool = True) -> Round:
    """Runs zcrpc's receivers on a region map for one round. Raises as `run`.

    Args:
        hold_us: how long the writer holds the map's lock, over and over; 0: no writer.
        mapping: pages can be mapped here; else they are copied.
    """
    receivers = Receivers(
        strategy=strategy,
        receive="zerocopy" if mapping else "copy",
        connections=experiment.receivers,
        threads=experiment.receivers,
        payload=experiment.payload,
        writer_interval_us=max(1, hold_us // _PAUSE) if hold_us else 0,
        writer_hold_us=hold_us,
        writer_busy=True,  # as the kernel's writer is
        warm_up_seconds=_WARM_UP_SECONDS,
        seconds=experiment.seconds / experiment.rounds,
    )
    with (
        Child("zcrpc.lab.receivers", receivers) as server,
        lab_load.start(load_for(receivers, server.receive(int))) as client,
    ):
        result = server.receive(ReceiversResult)
        load = client.receive(LoadResult)
    return Round(
        strategy=strategy,
        kernel=os.uname().release,
        emulated=False,
        writer="write-lock" if hold_us else "none",
        round=number,
        receivers=experiment.receivers,
        payload_bytes=experiment.payload,
        area_mib=experiment.area_mib,
        seconds=result.elapsed_seconds,
        receives=result.samples,
        receives_per_second=_per(result.samples, result.elapsed_seconds),
        receiver_cpu_us_per_receive=1e6 * _per(result.receiver_cpu_seconds, result.samples),
        mapped_percent=100
        * _per(result.payload_bytes_mapped, result.payload_bytes_mapped + result.payload_bytes_copied),
        wrong=load.mismatches + load.errors,
        waited_us_per_receive=result.lock_wait.mean_us,
        longest_wait_us=result.lock_wait.max_us,
        writer_changes_per_second=_per(result.writer_locks, result.elapsed_seconds),
        note="" if mapping else "received by copying",
        **_distribution("receive", result.receive),
        **_distribution("writer_change", result.writer_hold),
    )


def _failed(found: Round) -> bool:
    return found.receives == 0


def _per(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _distribution(name: str, latency: Latency) -> dict[str, Any]:
    return {f"{name}_{part}": getattr(latency, part) for part in ("p50_us", "p99_us", "p999_us", "max_us")}


def _remove_trace(pid: int) -> None:
    """Removes the tracing instance of a child that was killed; one that ended by itself has done so."""
    for instances in _INSTANCES:
        with suppress(OSError):
            Path(instances, f"zcrpc-{pid}").rmdir()


def _check(experiment: Experiment) -> None:
    known = locks.names()
    unknown = [name for name in experiment.locks if name not in known]
    strange = [name for name in experiment.writers if name not in WRITERS]
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    impossible = {
        f"no such lock strategy: {', '.join(unknown)}; there are {', '.join(known)}": unknown,
        f"no such writer: {', '.join(strange)}; there are {', '.join(WRITERS)}": strange,
        "a lock strategy was named twice": len(set(experiment.locks)) < len(experiment.locks),
        "a writer was named twice": len(set(experiment.writers)) < len(experiment.writers),
        "payload must be whole pages of 4096 bytes, at most 1 MiB": experiment.payload % 4096
        or not 0 < experiment.payload <= 1 << 20,
        f"receivers must be 1 to {MOST_RECEIVERS}": not 1 <= experiment.receivers <= MOST_RECEIVERS,
        "seconds must be more than 0 and at most 3600": not 0 < experiment.seconds <= 3600,
        "rounds must be 1 to 1000": not 1 <= experiment.rounds <= 1000,
        f"the area must be 1 to {memory_mib // 2} MiB, half of this machine's memory": not 1
        <= experiment.area_mib
        <= memory_mib // 2,
    }
    for complaint, holds in impossible.items():
        if holds:
            raise ValueError(complaint)
