"""Torture: everything that a lock strategy must guarantee, done by many native threads at once and checked throughout.

What is done and checked is said in native/lab/torture.h and torture_run.h. Each strategy is tortured in a process of
its own, since whoever finds a violation ends it.

python -m zcrpc.lab.torture     takes `Torture` as JSON, says that it has begun, gives `TortureResult`; a line stops it
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from zcrpc import locks
from zcrpc._native import check, ffi, lib
from zcrpc.lab.processes import Child, ChildFailed, say, serve
from zcrpc.lab.results import from_struct
from zcrpc.regions import LockCounters

MARGIN_SECONDS: Final = 5.0  # for making maps and taking them down, on a busy machine
LONGEST_STALL_SECONDS: Final = 3600.0


@dataclass(slots=True, frozen=True, kw_only=True)
class Experiment:
    """What is to be tortured, and how. Raises `ValueError`, saying what is impossible, when created.

    Args:
        locks: names of the strategies (`zcrpc.locks.names`).
        threads: that read; 1 to 64.
        writers: threads that change the maps; 1 to 16. One more thread places and releases leases.
        seconds: for each strategy; at most a day.
        seed: of all draws, 64 bits; schedules are the system's.
        stalled_seconds: a thread that does not get on for so long is a violation.
    """

    locks: tuple[str, ...]
    threads: int = 2
    writers: int = 1
    seconds: float = 5.0
    seed: int = field(default_factory=lambda: secrets.randbits(32))
    stalled_seconds: float = 30.0

    def __post_init__(self) -> None:
        known = locks.names()
        unknown = [name for name in self.locks if name not in known]
        impossible = {
            f"no such lock strategy: {', '.join(unknown)}; there are {', '.join(known)}": unknown,
            "no lock strategy was named": not self.locks,
            f"threads must be 1 to {lib.ZC_TORTURE_READERS}": not 1 <= self.threads <= lib.ZC_TORTURE_READERS,
            f"writers must be 1 to {lib.ZC_TORTURE_WRITERS}": not 1 <= self.writers <= lib.ZC_TORTURE_WRITERS,
            f"seconds must be more than 0 and at most {lib.ZC_TORTURE_SECONDS}": not (
                0 < self.seconds <= lib.ZC_TORTURE_SECONDS
            ),
            "the seed must be a number of 64 bits": not 0 <= self.seed < 1 << 64,
            f"stalled seconds must be more than 0 and at most {LONGEST_STALL_SECONDS:.0f}": not (
                0 < self.stalled_seconds <= LONGEST_STALL_SECONDS
            ),
        }
        for complaint, holds in impossible.items():
            if holds:
                raise ValueError(complaint)


@dataclass(slots=True, frozen=True, kw_only=True)
class Torture:
    """What the child does: native/lab/torture.h (struct zc_torture_options)."""

    strategy: str
    readers: int
    writers: int
    seconds: float
    stalled_seconds: float
    seed: int


@dataclass(slots=True, frozen=True)
class TortureResult(LockCounters):
    """What was done; native/lab/torture.h (struct zc_torture_result) says what each figure means."""

    operations: int = 0
    looks: int = 0
    confirmed: int = 0
    touches: int = 0
    attaches: int = 0
    detaches: int = 0
    recycles: int = 0
    placed: int = 0
    released: int = 0
    refused: int = 0
    wraps: int = -1
    sleeps: int = 0
    preemptions: int = 0
    rounds: int = 0
    longest_read_wait_us: float = 0.0
    longest_write_wait_us: float = 0.0
    elapsed_seconds: float = 0.0


@dataclass(slots=True, frozen=True, kw_only=True)
class Tortured(LockCounters):
    """One strategy's torture: what was done, and what came of it.

    `wraps` is None for a plugin, of which it is not known what wraps. `violation` is what the process that found it
    said, with the place and the numbers; then there are no figures. "" if there was none.
    """

    strategy: str
    readers: int
    writers: int
    seed: int
    seconds: float
    operations: int
    operations_per_second: float
    looks: int
    confirmed: int
    touches: int
    attaches: int
    detaches: int
    recycles: int
    leases_placed: int
    leases_released: int
    leases_refused: int
    wraps: int | None
    sleeps: int
    preemptions: int
    rounds: int
    longest_read_wait_us: float
    longest_write_wait_us: float
    violation: str = ""

    @property
    def never_happened(self) -> tuple[str, ...]:
        """What torture consists of and this run had none of: it shows nothing about the strategy."""
        parts = {
            "operations": self.operations,
            "read locks": self.read_locks,
            "memory touched": self.touches,
            "write locks": self.write_locks,
            "attaches": self.attaches,
            "detaches": self.detaches,
            "recycles": self.recycles,
            "leases": self.leases_placed,
            "looks confirmed": self.confirmed or not self.looks,
        }
        return tuple(name for name, count in parts.items() if not count)

    @property
    def passed(self) -> bool:
        """It was tortured, and no violation was found."""
        return not self.violation and not self.never_happened


def run(experiment: Experiment) -> Iterator[Tortured]:
    """Tortures one strategy after the other and yields each result; a violation is a result, too.

    An interrupt (KeyboardInterrupt) ends the strategy under way early: its result so far is yielded, and then the
    interrupt raised.

    Raises:
        zcrpc.lab.processes.ChildFailed: a process could not begin.
    """
    for name in experiment.locks:
        with Child("zcrpc.lab.torture", _task(experiment, name)) as child:
            child.receive(str)  # it has begun, and will heed what it is told
            try:
                result = _result(experiment, name, child)
            except KeyboardInterrupt:
                yield _result(experiment, name, child, stop=True)
                raise
        yield result


def _task(experiment: Experiment, name: str) -> Torture:
    return Torture(
        strategy=name,
        readers=experiment.threads,
        writers=experiment.writers,
        seconds=experiment.seconds,
        stalled_seconds=experiment.stalled_seconds,
        seed=experiment.seed,
    )


def _result(experiment: Experiment, name: str, child: Child, *, stop: bool = False) -> Tortured:
    try:
        if stop:
            child.send("stop")
        return _tortured(experiment, name, child.receive(TortureResult))
    except ChildFailed as error:
        return _tortured(experiment, name, TortureResult(), str(error))


def _tortured(experiment: Experiment, name: str, result: TortureResult, violation: str = "") -> Tortured:
    same = {each.name for each in dataclasses.fields(result)} & {each.name for each in dataclasses.fields(Tortured)}
    return Tortured(
        strategy=name,
        readers=experiment.threads,
        writers=experiment.writers,
        seed=experiment.seed,
        seconds=result.elapsed_seconds,
        operations_per_second=result.operations / result.elapsed_seconds if result.elapsed_seconds else 0.0,
        leases_placed=result.placed,
        leases_released=result.released,
        leases_refused=result.refused,
        wraps=result.wraps if result.wraps >= 0 else None,
        violation=violation,
        **{each: getattr(result, each) for each in same - {"wraps"}},
    )


# ---- the child


def torture(task: Torture) -> TortureResult:
    """Tortures one strategy in this process, which ends with status 1 if there is a violation.

    Raises `zcrpc.NotFound` for an unknown strategy.
    """
    locks.find(task.strategy)  # which may be a plugin that the environment names
    strategy = ffi.new("char[]", task.strategy.encode())
    stop = ffi.new("uint32_t *")
    options = ffi.new(
        "struct zc_torture_options *",
        {
            "strategy": strategy,
            "readers": task.readers,
            "writers": task.writers,
            "seconds": task.seconds,
            "stalled_seconds": task.stalled_seconds,
            "seed": task.seed,
            "stop": stop,
        },
    )
    result = ffi.new("struct zc_torture_result *")
    say("begun")
    threading.Thread(target=_stop_when_told, args=(stop,), daemon=True).start()
    limit = task.seconds + 2 * task.stalled_seconds + MARGIN_SECONDS
    timer = threading.Timer(limit, _give_up, args=(task.strategy, limit))
    timer.daemon = True
    timer.start()
    check(lib.zc_torture_run(options, result), f"torturing {task.strategy!r}")
    timer.cancel()
    return from_struct(TortureResult, result)


def _stop_when_told(stop: Any) -> None:
    """Also when the parent is gone: the pipe is closed then. Past sys.stdin, whose lock this would hold at exit."""
    os.read(0, 1)
    stop[0] = 1


def _give_up(strategy: str, seconds: float) -> None:
    """For what the native watchdog does not see: a map that cannot be made or taken down."""
    print(f"{strategy}: has not ended after {seconds:g} s", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    serve(Torture, torture)
