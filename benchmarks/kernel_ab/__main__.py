"""The command: PYTHONPATH=benchmarks python -m kernel_ab, or `make kernel-ab`."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import click
from rich.console import Console

from kernel_ab import document, initramfs, machine, packages
from zcrpc.commands.group import main_of
from zcrpc.lab import kernel_table
from zcrpc.lab.commands.common import FILE, collect, json_option, names
from zcrpc.lab.kernel import WRITERS, Experiment, Round, kernel_round, run_kernel
from zcrpc.lab.kernel_receivers import KernelReceivers, Writer

SUITES: Final = {"bookworm": "6.1, before the change", "trixie": "6.12, after it"}
ALL: Final[tuple[Writer, ...]] = ("none", *WRITERS)
_COUNTED = 2000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--suites",
    default=",".join(SUITES),
    show_default=True,
    help="Debian's, whose kernels are booted: " + "; ".join(f"{suite}: {what}" for suite, what in SUITES.items()) + ".",
)
@click.option("--writers", default=",".join(ALL), show_default=True, help="What a thread does beside the receiver.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured with each writer, besides what is counted.")
@click.option("--area-mib", default=64, show_default=True, help="Address space that the writer changes.")
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    help="Seconds, besides what is measured, after which a machine is stopped.",
)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Where kernels are kept.")
@click.option("--document", "document_path", type=FILE, help="Write the figures into this file, between its marks.")
@json_option
def kernel_ab(
    suites: str,
    writers: str,
    seconds: float,
    area_mib: int,
    timeout: float,
    cache: Path | None,
    document_path: Path | None,
    json_path: Path | None,
) -> None:
    """How often does a receive take the mmap lock: on Linux 6.1, on 6.12, and on this machine's kernel?"""
    chosen = _among(names(suites), tuple(SUITES), "suite")
    options = [
        KernelReceivers(writer=cast("Writer", writer), counted=_COUNTED, seconds=seconds, area_mib=area_mib)
        for writer in _among(names(writers), ALL, "writer")
    ]
    if not 0 < seconds <= 600 or not 1 <= area_mib <= machine.MEMORY_MIB // 2 or not timeout > 0:
        raise click.UsageError(
            f"seconds must be more than 0 and at most 600, the area 1 to {machine.MEMORY_MIB // 2} MiB, the timeout "
            "more than 0"
        )
    if document_path is not None:
        document.check(document_path)
    done, status = collect(
        _run(chosen, options, cache or packages.default_cache(), timeout),
        total=(len(chosen) + 1) * len(options),
        describe=lambda each: f"{kernel_table.lock_name(each)}, {each.writer}",
        kind="kernel",
        json_path=json_path,
        settings={"suites": chosen, "writers": writers, "seconds": seconds, "area_mib": area_mib, "counted": _COUNTED},
    )
    if done:
        console = Console()
        console.print(kernel_table.table(done))
        for note in kernel_table.notes(done):
            console.print(note)
        console.print(kernel_table.conclusion(done))
    if document_path is not None and status == 0:
        document.write(document_path, done, f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}")
    sys.exit(status)


def _run(suites: tuple[str, ...], options: list[KernelReceivers], cache: Path, timeout: float) -> Iterator[Round]:
    """Raises `zcrpc.lab.processes.ChildFailed`."""
    if platform.machine() != "x86_64":
        raise machine.MachineFailed(f"Debian's amd64 kernels need programs of x86-64, not of {platform.machine()}")
    machine.require_qemu()
    kernels = [packages.kernel(suite, cache) for suite in suites]  # so that what cannot be had is known first
    with tempfile.TemporaryDirectory() as folder:
        archive = initramfs.build(Path(folder))
        for kernel in kernels:
            yield from _emulated(kernel, archive, options, timeout)
    for each in options:
        yield run_kernel(Experiment(seconds=each.seconds, rounds=1, area_mib=each.area_mib, locks=()), each.writer)


def _emulated(kernel: Path, archive: Path, options: list[KernelReceivers], timeout: float) -> Iterator[Round]:
    """All writers in one machine, one after the other."""
    first = options[0]
    words = {
        "payload": first.payload,
        "receivers": first.receivers,
        "area_mib": first.area_mib,
        "counted": first.counted,
        "warm_up": first.warm_up_seconds,
        "seconds": first.seconds,
    }
    by_writer = {each.writer: each for each in options}
    patience = timeout + len(options) * first.seconds
    for answer in machine.boot(kernel, archive, list(by_writer), words, patience):
        result = answer.failed or answer.result
        yield kernel_round(by_writer[answer.writer], result, 0, kernel=answer.kernel, emulated=True)


def _among(chosen: tuple[str, ...], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise click.UsageError(f"no such {what}: {', '.join(unknown) or 'none'}; there are {', '.join(known)}")
    return chosen


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores, Linux {platform.release()}"


if __name__ == "__main__":
    main_of(kernel_ab, "kernel_ab")
