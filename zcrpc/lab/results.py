"""What experiments give: distributions as the native drivers report them, and files of results.

A results file is JSON: the rows that an experiment measured, its settings, when and on which machine. The version,
under the name `zcrpc_results`, tells it from any other JSON.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from zcrpc._native import ffi

T = TypeVar("T")

VERSION: Final = 1
LARGEST_FILE: Final = 64 << 20  # bytes; a day of rounds has fewer


@dataclass(slots=True, frozen=True)
class Latency:
    """A distribution of durations, in µs. Percentiles are exact to 1/64 of themselves."""

    samples: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    max_us: float = 0.0
    mean_us: float = 0.0


def from_struct(kind: type[T], struct: Any) -> T:
    """A dataclass from the C struct that has the same field names; nested `Latency` structs and texts included."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(struct, field.name)
        if field.type == "Latency":
            value = from_struct(Latency, value)
        elif field.type == "str":
            value = ffi.string(value).decode()
        values[field.name] = value
    return kind(**values)


@dataclass(slots=True, frozen=True)
class Machine:
    """Where something was measured."""

    kernel: str
    architecture: str
    processor: str
    cpus: int  # that this process may run on
    memory_bytes: int
    python: str
    zcrpc: str


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        kernel=platform.release(),
        architecture=platform.machine(),
        processor=_processor(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        zcrpc=version("zcrpc"),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "unknown")  # arm64 has no such line


@dataclass(slots=True, frozen=True)
class Results:
    """A results file.

    Args:
        kind: the experiment: "seed", "upload", "bench", "torture", "kernel", "simulate", "simulate-validation" or
            "conflicts".
        when: the end of the measurement.
        settings: what the experiment was asked to do.
        rows: a flat object for each measurement; units are part of the fields' names.
    """

    kind: str
    when: datetime
    machine: Machine
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    zcrpc_results: int = VERSION


class UnreadableResults(ValueError):
    """A file that is no results file, or of another version, or cut off; says which file and what is wrong."""


def write(path: Path, kind: str, rows: Sequence[object], settings: Mapping[str, object] = {}) -> None:
    """Writes a results file: `rows` are dataclasses or mappings. Raises OSError."""
    results = Results(kind, datetime.now(UTC), this_machine(), dict(settings), msgspec.to_builtins(rows))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


def read(path: Path) -> Results:
    """Reads a results file. Raises `UnreadableResults`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a device need not have an end
            raise UnreadableResults(f"{path} is no file")
        if status.st_size > LARGEST_FILE:
            raise UnreadableResults(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
        return _decode(path, path.read_bytes())
    except OSError as error:
        raise UnreadableResults(f"cannot read {path}: {error.strerror}") from None


def _decode(path: Path, content: bytes) -> Results:
    try:
        head = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableResults(f"{path} is not whole JSON: {error}") from None
    if not isinstance(head, dict) or "zcrpc_results" not in head:
        raise UnreadableResults(f"{path} is no results file of zcrpc")
    if head["zcrpc_results"] != VERSION:
        raise UnreadableResults(f"{path} has version {head['zcrpc_results']!r}, not {VERSION}")
    try:
        return msgspec.convert(head, Results)
    except msgspec.ValidationError as error:
        raise UnreadableResults(f"{path} is not as results are: {error}") from None
