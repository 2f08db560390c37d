"""What a virtual machine boots into: the experiment itself, linked statically, as the only program there is."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_ab.machine import MachineFailed

NATIVE: Final = Path(__file__).resolve().parents[2] / "native"
SOURCES: Final = (
    "lab/programs/kernel_ab.c",
    "lab/kernel.c",
    "lab/kernel_change.c",
    "lab/kernel_receive.c",
    "lab/kernel_send.c",
    "lab/mmap_lock_trace.c",
    "lab/clock.c",
    "net/histogram.c",
)


@dataclass(slots=True, frozen=True)
class Entry:
    """A file of the archive; `mode` includes the kind of file, `device` is (major, minor)."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """An archive in the one format that the kernel unpacks: "newc", see Documentation/driver-api/early-userspace."""
    return b"".join(map(_encode, [*entries, Entry("TRAILER!!!", 0)]))


def _encode(entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (0, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _pad(head) + _pad(entry.content)


def _pad(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)


def compile_program(target: Path) -> Path:
    """Compiles the experiment so that it needs nothing else. Raises `MachineFailed`."""
    if shutil.which("cc") is None:
        raise MachineFailed("a C compiler, cc, is not here")
    command = ["cc", "-std=gnu11", "-O2", "-static", "-pthread", "-D_GNU_SOURCE", "-I.", "-Iinclude", *SOURCES]
    done = subprocess.run([*command, "-lm", "-o", target], cwd=NATIVE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise MachineFailed(f"the experiment cannot be linked statically: {complaint}")
    return target


def build(folder: Path) -> Path:
    """Compiles the experiment and packs it. Raises `MachineFailed`."""
    program = compile_program(folder / "init").read_bytes()
    entries = [Entry("dev", 0o40755), Entry("dev/console", 0o20600, device=(5, 1)), Entry("init", 0o100755, program)]
    archive = folder / "initramfs.gz"
    archive.write_bytes(gzip.compress(cpio(entries)))
    return archive
