"""Faults that real locks had, put in again one at a time (native/lock/faults.h): each must be caught; here is by what.

A build with a fault also loses the processor at bad moments, so the control is a build with those moments and no fault.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent.parent / "native"
SOURCES = ("lock/*.c", "region/*.c", "lab/torture*.c", "lab/clock.c", "net/histogram.c")
NO_FAULT = 99  # one that does not exist
STALLED = "3"  # seconds in which a thread has to get on
CHECKED = "torture_"  # what a check in lab/torture_readers.c or torture_writers.c says begins with its file
SECONDS = 40.0  # that torture has at most; most faults show within one


@dataclass(frozen=True, slots=True)
class Catch:
    """What catches a fault: a program, built with `sanitize`, fails and writes `sign` to standard error."""

    program: str
    arguments: tuple[str, ...]
    sign: str
    sanitize: str = ""


def torture(locks: str, sign: str, sanitize: str = "") -> Catch:
    return Catch("torture", (str(SECONDS), locks, STALLED), sign, sanitize)


CAUGHT = {
    "M1 no release": (1, torture("per-region", "ThreadSanitizer: data race", "thread")),
    "M2 looked before locked": (2, torture("per-region", CHECKED)),
    "M3 one of two regions": (3, torture("per-region", CHECKED)),
    "M4 woken through what is gone": (4, torture("per-region", "AddressSanitizer: SEGV", "address")),
    "M5 no identity check": (5, Catch("test_per_region", (), "a_region_of_another_map_is_not_ours: ")),
    "M5 no range check": (5, torture("per-region", CHECKED)),
    "M6 count saturates": (6, Catch("test_per_region", (), "a_full_count_falls_back: ")),
    "M7 sequence wraps": (7, Catch("test_per_region", (), "check_that_a_writer_waits: ")),
    "M8 lost wake-up": (8, torture("global", f"has been stuck for {STALLED} s")),
    "M9 map lock under a region": (9, torture("per-region", f"has been stuck for {STALLED} s")),
    "M10 recursive read": (10, torture("global-pthread", f"has been stuck for {STALLED} s")),
    "M11 no store-load order": (11, torture("global-big-reader", CHECKED)),
}


def build(directory: Path, program: str, fault: int, sanitize: str = "") -> Path:
    target = directory / f"{program}-{fault}-{sanitize or 'plain'}"
    if target.exists():
        return target
    sources = [str(path) for pattern in SOURCES for path in sorted(NATIVE.glob(pattern))]
    flags = ["-std=gnu11", "-O2", "-g", "-D_GNU_SOURCE", "-DZCRPC_DEBUG", f"-DZCRPC_FAULT={fault}", "-pthread"]
    flags += [f"-I{NATIVE}", f"-I{NATIVE / 'include'}", *([f"-fsanitize={sanitize}"] if sanitize else [])]
    command = [os.environ.get("CC", "cc"), *flags, *sources, str(NATIVE / "tests" / f"{program}.c"), "-lm", "-ldl"]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "handle_abort=0"}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=2 * SECONDS, env={**os.environ, **options}
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def test_every_fault_has_its_catch() -> None:
    assert {fault for fault, _ in CAUGHT.values()} == set(range(1, 12))
    for number in range(1, 12):
        places = [path for path in NATIVE.rglob("*.[ch]") if f"ZC_FAULT({number})" in path.read_text()]
        assert places, f"fault {number} is nowhere"


@pytest.mark.parametrize("name", CAUGHT)
def test_it_is_caught(directory: Path, name: str) -> None:
    fault, catch = CAUGHT[name]
    done = run(build(directory, catch.program, fault, catch.sanitize), *catch.arguments)
    assert done.returncode != 0, f"{name} went unnoticed:\n{done.stdout}"
    assert catch.sign in done.stderr


@pytest.mark.parametrize(("program", "sanitize"), sorted({(c.program, c.sanitize) for _, c in CAUGHT.values()}))
def test_without_a_fault_nothing_is_caught(directory: Path, program: str, sanitize: str) -> None:
    used = sorted({c.arguments for _, c in CAUGHT.values() if (c.program, c.sanitize) == (program, sanitize)})
    for arguments in used:
        calmer = [{str(SECONDS): "2", STALLED: "30"}.get(argument, argument) for argument in arguments]
        done = run(build(directory, program, NO_FAULT, sanitize), *calmer)
        assert done.returncode == 0, done.stderr
