"""Conflicts of the lock strategies: cache lines per operation that one of two threads writes and the other touches.

Counted by a C test, without hardware: `native/tests/test_conflicts.c`, which is built from the sources only. As a
program, `python -m zcrpc.lab.conflicts build/native/test_conflicts conflicts.json` runs it and writes a results file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from zcrpc.lab import results


@dataclass(slots=True, frozen=True)
class Conflict:
    """Shared cache lines per find + lock + unlock: two threads with a region each, and both with the same one.

    `way` is "holding", or "looking" for a strategy whose readers may look without holding.
    """

    strategy: str
    way: Literal["holding", "looking"]
    disjoint_lines: float
    hot_lines: float


def count(program: Path) -> list[Conflict]:
    """Runs the test. Raises OSError, `subprocess.CalledProcessError` if it fails, `msgspec.DecodeError`."""
    done = subprocess.run([program, "--json"], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=list[Conflict])


def main(arguments: Sequence[str]) -> int:
    """Counts, and writes the results file. Returns the exit status."""
    if len(arguments) != 2:
        print("usage: python -m zcrpc.lab.conflicts PROGRAM RESULTS", file=sys.stderr)
        return 2
    program, target = map(Path, arguments)
    try:
        results.write(target, "conflicts", count(program))
    except (OSError, subprocess.CalledProcessError, msgspec.DecodeError) as error:
        print(f"zcrpc: counting conflicts: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
