"""A virtual machine: how it is started, and what it says on its console. Emulated: guests hang under some hosts' KVM,
and counts do not depend on speed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from zcrpc.lab.kernel_receivers import KernelResult, Writer
from zcrpc.lab.processes import ChildFailed

QEMU: Final = "qemu-system-x86_64"
CORES: Final = 2  # a receiver and a writer at the same time
MEMORY_MIB: Final = 1024
# QEMU 7.2 with a thread for each core now and then runs code that the guest is just changing (the jump of a static
# key), and the guest dies of the breakpoint that stands there meanwhile. So the second core, which most of that would
# hit, is started by the experiment, when the kernel has booted; and a guest that dies nevertheless is started again.
ATTEMPTS: Final = 4
_START: Final = '{"kernel"'  # of a line that the experiment prints; others are the machine's


class MachineFailed(ChildFailed):
    """A virtual machine cannot be had, or did not do its part; says why."""


class GuestFailed(MachineFailed):
    """What ran in the machine stopped, or never came to its end."""


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
        *("-append", f"console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off maxcpus=1 -- {passed}"),
    ]


def boot(
    kernel: Path, initramfs: Path, words: Mapping[str, object], *, runs: int, timeout: float, attempts: int = ATTEMPTS
) -> list[Answer]:
    """Runs the experiment in a machine with that kernel.

    Args:
        runs: how many results it is to give.
        timeout: seconds after which the machine is stopped.
        attempts: how often it is started, if need be.

    Raises:
        MachineFailed: it did not start, did not end in time, or gave fewer results.
    """
    require_qemu()
    while True:
        attempts -= 1
        try:
            return _boot_once(command(kernel, initramfs, words), kernel.name, runs, timeout)
        except GuestFailed:
            if attempts <= 0:
                raise


def _boot_once(line: list[str], name: str, runs: int, timeout: float) -> list[Answer]:
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise GuestFailed(f"{name} did not end within {timeout:g} s{_last(error.stdout)}") from None
    if done.returncode != 0:
        raise MachineFailed(f"{QEMU} ended with status {done.returncode}{_last(done.stderr)}")
    found = answers(done.stdout)
    if len(found) < runs:
        raise GuestFailed(f"{name} gave {len(found)} results of {runs}{_last(done.stdout)}")
    return found


def answers(console: bytes) -> list[Answer]:
    """What the experiment printed among whatever else a console shows. Raises `GuestFailed` for a torn line."""
    lines = [line.strip() for line in console.decode(errors="replace").splitlines()]
    try:
        return [_answer(line) for line in lines if line.startswith(_START)]
    except msgspec.DecodeError as error:
        raise GuestFailed(f"the machine's console is not as it should be: {error}") from None


def _answer(line: str) -> Answer:
    head = msgspec.json.decode(line)
    result = msgspec.json.decode(line, type=KernelResult)  # which leaves alone what it does not know
    return msgspec.convert({**{name: head[name] for name in ("kernel", "writer", "failed")}, "result": result}, Answer)


def _last(console: bytes | None) -> str:
    """The last thing that was said, for a message."""
    said: Sequence[str] = (console or b"").decode(errors="replace").strip().splitlines()
    return f": {said[-1].strip()[:200]}" if said else ""
