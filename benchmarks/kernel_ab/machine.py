"""A virtual machine: how it is started, and what it says on its console. Emulated: guests hang under some hosts' KVM,
and counts do not depend on speed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from zcrpc.lab.kernel_receivers import KernelResult, Writer
from zcrpc.lab.processes import ChildFailed

QEMU: Final = "qemu-system-x86_64"
CORES: Final = 2  # a receiver and a writer at the same time
MEMORY_MIB: Final = 1024
# QEMU 7.2 loses track of code that the guest changes (the jumps of static keys) now and then, however its cores are
# emulated, and the guest dies of it: 6.12 in about one start of five. So it is started again for what it still owes.
ATTEMPTS: Final = 6
_START: Final = '{"kernel"'  # of a line that the experiment prints; others are the machine's


class MachineFailed(ChildFailed):
    """A virtual machine cannot be had, or did not do its part; says why."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Answer:
    """One writer's result, as the experiment in a machine prints it.

    `failed`: why there is none.
    """

    kernel: str
    writer: Writer
    failed: str
    result: KernelResult


def require_qemu() -> None:
    """Raises `MachineFailed` where there is no QEMU."""
    if shutil.which(QEMU) is None:
        raise MachineFailed(f"{QEMU} is not here; Debian's package is qemu-system-x86")


def command(kernel: Path, initramfs: Path, words: Mapping[str, object]) -> list[str]:
    """How to start it. `words` are the experiment's; after `--` the kernel leaves them to the first process."""
    passed = " ".join(f"{name}={value}" for name, value in words.items())
    return [
        QEMU,
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(CORES), "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", f"console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off -- {passed}"),
    ]


def boot(
    kernel: Path, initramfs: Path, writers: Sequence[Writer], words: Mapping[str, object], timeout: float
) -> list[Answer]:
    """Runs the experiment with each writer in a machine with that kernel.

    Args:
        words: what else the experiment is to know.
        timeout: seconds after which the machine is stopped.

    Raises:
        MachineFailed: it did not start, or did not give every result however often it was started.
    """
    require_qemu()
    found: dict[str, Answer] = {}
    why = ""
    for _ in range(ATTEMPTS):
        missing = [writer for writer in writers if writer not in found]
        if not missing:
            break
        console, why = _run(command(kernel, initramfs, {"writers": ",".join(missing), **words}), timeout)
        found |= {each.writer: each for each in answers(console)}
    missing = [writer for writer in writers if writer not in found]
    if missing:
        raise MachineFailed(f"{kernel.name} gave no result with {', '.join(missing)}, {ATTEMPTS} times{why}")
    return [found[writer] for writer in writers]


def _run(line: list[str], timeout: float) -> tuple[bytes, str]:
    """What the machine said, and, for a message, what it said last."""
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return said, f", for {timeout:g} s{_last(said)}"
    if done.returncode != 0:
        raise MachineFailed(f"{QEMU} ended with status {done.returncode}{_last(done.stderr)}")
    return done.stdout, _last(done.stdout)


def answers(console: bytes) -> list[Answer]:
    """What the experiment printed among whatever else a console shows; a line that was cut off or disturbed is none."""
    found = []
    for line in console.decode(errors="replace").splitlines():
        with suppress(msgspec.DecodeError):
            if line.startswith(_START):
                found.append(_answer(line))
    return found


def _answer(line: str) -> Answer:
    head = msgspec.json.decode(line)
    result = msgspec.json.decode(line, type=KernelResult)  # which leaves alone what it does not know
    return msgspec.convert({**{name: head[name] for name in ("kernel", "writer", "failed")}, "result": result}, Answer)


def _last(console: bytes) -> str:
    said = console.decode(errors="replace").strip().splitlines()
    return f": {said[-1].strip()[:200]}" if said else ""
