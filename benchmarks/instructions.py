"""Instructions of the native path per request, counted by valgrind and compared with what was recorded.

    python benchmarks/instructions.py [--program FILE] [--record] [--records FILE] [workload …]

Counts of one program can be repeated to the instruction, whatever else the machine does; so a few per cent more are a
change of the source. Status 1 if a workload takes more than 5 % more than recorded. `make instructions` compares,
`make instructions-record` records anew: do that when a change is meant, and say in its commit why.

What valgrind counts is what native/lab/programs/instructions.c lets it. The program's own functions are left out. So
are, in the *path*, libc's copies and comparisons of memory, which cost what the payload's length says; they are in
the *whole*. Both are compared. Counts depend on the compiler and on libc: each such environment has records of its
own. In one that has none, what is common to all workloads is taken for the compiler's doing, and what is left is
allowed more: `UNFAMILIAR_LIMIT`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAM: Final = ROOT / "build/native/instructions"
RECORDS: Final = Path(__file__).with_suffix(".json")
LIMIT: Final = 0.05
# Against records of gcc 12, gcc 11 gave up to 3 % more for a workload, and clang 14 up to 10 %.
UNFAMILIAR_LIMIT: Final = 0.15
# Functions are recorded and shown from so many instructions per request on.
TOLD_FROM: Final = 2.0
_DRIVER: Final = "lab/programs/instructions.c"
_COPIES: Final = re.compile(r"_*mem(cpy|move|set|cmp)")
# libc's copies for any processor: counts must not depend on which one this is.
_ANY_PROCESSOR: Final = "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM"


class CountFailed(Exception):
    """There is nothing to compare."""


@dataclass(slots=True)
class Count:
    """Instructions per request."""

    path: float
    whole: float  # with libc's copies
    functions: dict[str, float]  # of the path, by name


Records = dict[str, dict[str, Count]]  # by environment, then workload


def count(program: Path, workload: str, requests: int = 1024) -> Count:
    """One workload under valgrind. Raises `CountFailed`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        options = ["--compress-strings=no", "--compress-pos=no", "--toggle-collect=counted"]
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *options, program, workload]
        printed = _run([*command, str(requests)])
        return _add_up(out.read_text().splitlines(), int(printed))


def _run(command: list[str | Path]) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "GLIBC_TUNABLES": _ANY_PROCESSOR},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise CountFailed(f"{command[0]} is not here") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if not line.startswith("==")]
        raise CountFailed(said[-1] if said else f"{command[0]} ended with status {done.returncode}")
    return done.stdout


def _add_up(lines: Iterable[str], requests: int) -> Count:
    functions: dict[str, int] = {}
    for file, function, cost in _own_costs(lines):
        if not file.endswith(_DRIVER):
            functions[function] = functions.get(function, 0) + cost
    whole = sum(functions.values())
    of_path = {name: cost / requests for name, cost in functions.items() if not _COPIES.match(name)}
    return Count(sum(of_path.values()), whole / requests, of_path)


def _own_costs(lines: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """(file, function, instructions) of each line of a profile that tells of a function's own cost."""
    file = function = ""
    of_callee = False
    for line in lines:
        name, equals, value = line.partition("=")
        if name == "fl":
            file = value
        elif name == "fn":
            function = value
        elif name == "calls":
            of_callee = True
        elif not equals and line[:1] in "0123456789+-*" and line:
            if not of_callee:
                yield file, function, int(line.split()[1])
            of_callee = False


# ---- comparing


@dataclass(slots=True)
class Change:
    """A workload beside its record. `ratio` is of the path or the whole, whichever changed more; what the compiler is
    taken to have changed is divided out of it."""

    workload: str
    recorded: Count
    counted: Count
    ratio: float


def _ratio(recorded: Count, counted: Count) -> float:
    return max(counted.path / recorded.path, counted.whole / recorded.whole)


def compare(recorded: Mapping[str, Count], counted: Mapping[str, Count], familiar: bool) -> list[Change]:
    """Of the workloads that are in both. Unless the environment is familiar, in units of their median change."""
    ratios = {name: _ratio(recorded[name], each) for name, each in counted.items() if name in recorded}
    unit = 1.0 if familiar or not ratios else median(ratios.values())
    return [Change(name, recorded[name], counted[name], ratio / unit) for name, ratio in ratios.items()]


def nearest(environment: str, records: Records) -> str | None:
    """The environment whose records are compared with: this one, or else one of the same architecture."""
    architecture = environment.partition(",")[0]
    alike = [each for each in records if each.partition(",")[0] == architecture]
    return environment if environment in records else next(iter(alike), None)


def _table(changes: list[Change], limit: float) -> Table:
    table = Table("workload", *(("path", "recorded", "whole", "recorded", "change", "")), box=None)
    for each in changes:
        table.add_row(
            each.workload,
            *(f"{figure:,.1f}" for figure in (each.counted.path, each.recorded.path)),
            *(f"{figure:,.1f}" for figure in (each.counted.whole, each.recorded.whole)),
            f"{each.ratio - 1:+.1%}",
            "MORE" if each.ratio > 1 + limit else "less" if each.ratio < 1 - limit else "",
        )
    for column in table.columns[1:6]:
        column.justify = "right"
    return table


def differences(change: Change, most: int = 8) -> list[tuple[str, float, float]]:
    """(function, recorded, counted) of the functions whose own instructions changed most."""
    recorded, counted = change.recorded.functions, change.counted.functions
    both = [(name, recorded.get(name, 0.0), counted.get(name, 0.0)) for name in {**recorded, **counted}]
    changed = [each for each in both if abs(each[2] - each[1]) >= TOLD_FROM]
    return sorted(changed, key=lambda each: -abs(each[2] - each[1]))[:most]


# ---- records


def load(path: Path) -> Records:
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    return {
        environment: {name: Count(**each) for name, each in workloads.items()}
        for environment, workloads in found.items()
    }


def _rounded(count: Count) -> dict[str, object]:
    told = {name: round(cost, 1) for name, cost in sorted(count.functions.items()) if cost >= TOLD_FROM}
    return {"path": round(count.path, 1), "whole": round(count.whole, 1), "functions": told}


def save(path: Path, records: Records) -> None:
    plain = {
        environment: {name: _rounded(each) for name, each in workloads.items()}
        for environment, workloads in sorted(records.items())
    }
    path.write_text(json.dumps(plain, indent=1) + "\n")


# ---- the command


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="workload", help="all, if none is named")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="build/native/instructions, or another build")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--record", action="store_true", help="keep what is counted, instead of comparing")
    return parser.parse_args()


def _judge(console: Console, environment: str, records: Records, counted: dict[str, Count], whole_list: bool) -> bool:
    """Prints the comparison. Whether nothing takes more than it may."""
    against = nearest(environment, records)
    if against is None:
        console.print(f"Nothing is recorded for {environment}, nor for its architecture: nothing is compared.")
        return True
    familiar = against == environment
    limit = LIMIT if familiar else UNFAMILIAR_LIMIT
    if not familiar:
        console.print(
            f"Nothing is recorded for {environment}. Compared with {against}, in units of the median change, and "
            f"{limit:.0%} are allowed. `make instructions-record` records."
        )
    changes = compare(records[against], counted, familiar)
    console.print(_table(changes, limit))
    for change in changes:
        if abs(change.ratio - 1) > limit and familiar:
            console.print(f"\n{change.workload}, where:")
            for name, before, now in differences(change):
                console.print(f"  {now - before:+9.1f}  {name}  {before:,.1f} → {now:,.1f}")
    missing = [name for name in counted if name not in records[against]]
    gone = [name for name in records[against] if name not in counted] if whole_list else []
    for name in missing:
        console.print(f"{name} is not recorded: make instructions-record")
    for name in gone:
        console.print(f"{name} is recorded, but there is no such workload any more: make instructions-record")
    more = [change for change in changes if change.ratio > 1 + limit]
    if more:
        console.print(
            f"\n{len(more)} of {len(changes)} workloads take over {limit:.0%} more instructions than recorded. "
            "If that is meant: make instructions-record, and say why in the commit."
        )
    return not more and not missing and not gone


def main() -> int:
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if shutil.which("valgrind") is None:
        print("instructions: valgrind is not here", file=sys.stderr)
        return 2
    try:
        environment = _run([arguments.program, "environment"]).strip()
        names = _run([arguments.program, "list"]).splitlines()
        unknown = set(arguments.workloads) - set(names)
        if unknown:
            raise CountFailed(f"no such workload: {', '.join(sorted(unknown))}")
        counted = {name: count(arguments.program, name) for name in arguments.workloads or names}
        records = load(arguments.records)
    except (CountFailed, ValueError, TypeError) as failed:
        print(f"instructions: {failed}", file=sys.stderr)
        return 2
    if arguments.record:
        kept = records.get(environment, {}) if arguments.workloads else {}
        save(arguments.records, {**records, environment: {**kept, **counted}})
        console.print(f"recorded {len(counted)} workloads for {environment}")
        return 0
    return 0 if _judge(console, environment, records, counted, not arguments.workloads) else 1


if __name__ == "__main__":
    sys.exit(main())
