"""What zcrpc is to reach beside the floors and other stacks, measured by the suite that compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from peers import suite
from peers.stacks import STACKS
from peers.tables import BULK, MEMORY, P50, RATE, SERVER, SERVER_BULK, Column, middle
from peers.workloads import WORKLOADS
from targets import Figure, Settings

MIB = 1 << 20
SECONDS = 1.0
PYTHON: Final = ("zcrpc", "uvloop floor")
NATIVE: Final = ("zcrpc (C client)", "C floor", "uvloop floor (C client)")
RPC: Final = tuple(name for name, stack in STACKS.items() if stack.kind == "rpc")

Medians = Callable[[Column], dict[str, float]]


def _measure(workload: str, names: tuple[str, ...], settings: Settings) -> Medians:
    """Medians by stack, of those that are installed. AssertionError if one failed or answered wrongly."""
    stacks = [STACKS[name] for name in names if not STACKS[name].missing]
    rows = list(suite.measure(stacks, [WORKLOADS[workload]], settings.rounds, SECONDS))
    for row in rows:
        assert not row.failed, f"{workload}, {row.stack}: {row.failed}"
        assert not row.wrong, f"{workload}, {row.stack}: {row.wrong} wrong answers"
    found = suite.by_stack(rows, workload)
    return lambda column: {name: middle(each, column) for name, each in found.items()}


def _compared(what: str, column: Column, values: dict[str, float], one: str, other: str, limit: float) -> Figure:
    """One stack's figure over another's, at least or, where less is better, at most the limit."""
    ratio = values[one] / values[other]
    told = ", ".join(f"{name} {column.write(value)}" for name, value in values.items())
    return Figure(
        what,
        f"{'≤' if column.less else '≥'} {limit:.2f} × {other}",
        f"{ratio:.2f} ×: {told} {column.heading}",
        ratio <= limit if column.less else ratio >= limit,
    )


def _best(values: dict[str, float]) -> str | None:
    """The fastest RPC stack that is installed."""
    return max((name for name in values if name in RPC), key=values.__getitem__, default=None)


def echo(settings: Settings) -> Iterator[Figure]:
    """100 connections, 4 KiB: the server's CPU, and how far a client in Python gets."""
    of = _measure("echo", (*PYTHON, *NATIVE, *RPC), settings)
    cpu, rate = of(SERVER), of(RATE)
    native = {name: cpu[name] for name in NATIVE}
    what = "server CPU per 4 KiB echo, 100 connections"
    yield _compared(what, SERVER, native, "zcrpc (C client)", "C floor", 1.25)
    both = {name: value for name, value in rate.items() if name not in NATIVE}
    yield _compared("requests/s of them, Python client", RATE, both, "zcrpc", "uvloop floor", 1.0)
    if best := _best(both):
        yield _compared("… against the best RPC stack", RATE, both, "zcrpc", best, 4.5)


def sequential(settings: Settings) -> Iterator[Figure]:
    """One 64 B call at a time."""
    values = _measure("sequential", (*PYTHON, "C floor"), settings)(P50)
    yield _compared("p50 of a 64 B echo, 1 connection", P50, values, "zcrpc", "uvloop floor", 1.1)


def in_flight(settings: Settings) -> Iterator[Figure]:
    """64 calls of 64 B in flight on one connection."""
    values = _measure("in-flight", (*PYTHON, "C floor", "pycapnp"), settings)(RATE)
    what = "64 B echoes, 1 connection, 64 in flight"
    yield _compared(what, RATE, values, "zcrpc", "uvloop floor", 0.7)
    if "pycapnp" in values:
        yield _compared(what, RATE, values, "zcrpc", "pycapnp", 5.0)


def uploads(settings: Settings) -> Iterator[Figure]:
    """16 MiB uploads: speed, the server's CPU and its memory."""
    of = _measure("upload-16", (*PYTHON, "C floor"), settings)
    yield _compared("uploads of 16 MiB", BULK, of(BULK), "zcrpc", "C floor", 0.95)
    yield _compared("server CPU of them", SERVER_BULK, of(SERVER_BULK), "zcrpc", "C floor", 1.2)
    grown = of(MEMORY)
    yield Figure(
        "server memory growth by them",
        "≤ 20 MiB",
        ", ".join(f"{name} {MEMORY.write(value)}" for name, value in grown.items()) + " MiB at its peak",
        grown["zcrpc"] <= 20 * MIB,
    )


def downloads(settings: Settings) -> Iterator[Figure]:
    """16 MiB downloads."""
    values = _measure("download-16", (*PYTHON, "C floor"), settings)(BULK)
    yield _compared("downloads of 16 MiB", BULK, values, "zcrpc", "C floor", 1.0)
