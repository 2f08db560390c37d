#!/usr/bin/env python3
"""Runs every model: the spin models beside this file, and the weak-memory explorer in zcrpc.lab.explore.

A spin model says in its head what to run it with and what must come of it:

    size: NAME=VALUE …              a size that is searched completely, without an error
    reach: event …                  what must have happened in one of these searches (reach.inc)
    fault NAME (NAME=VALUE …): …    a variant, -DFAULT_NAME, in which an error must be found

A size with LIVE is searched for executions in which the model's ltl property never comes true, under weak fairness (but
for the fault UNFAIR).

Exit status 1 if a model fails, if a seeded fault is not caught, or if something was not reached; 2 without spin or gcc.
`--document FILE` also writes the figures into the file, between its two "figures" marks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from zcrpc.lab.explore.check import Check, check_all

MODELS = Path(__file__).resolve().parent
MARKS = ("<!-- figures: begin -->", "<!-- figures: end -->")
SEARCH_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Variant:
    """A model with some macros defined, and whether a search must end with an error."""

    model: Path
    size: tuple[str, ...]
    fault: str = ""
    what: str = ""

    @property
    def is_live(self) -> bool:
        return any(macro.startswith("LIVE") for macro in self.size)


@dataclass(slots=True)
class Result:
    variant: Variant
    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    error: str = ""  # what the search found wrong
    broken: str = ""  # why there was no complete search
    reached: dict[str, int] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        return not self.broken and bool(self.error) == bool(self.variant.fault)


def directives(model: Path) -> tuple[list[Variant], list[str]]:
    """The variants of a model and the events that it must reach, from its head."""
    head = model.read_text().split("*/", 1)[0]
    variants = [Variant(model, tuple(size.split())) for size in re.findall(r"^ \* size: (.*)$", head, re.M)]
    for name, size, what in re.findall(r"^ \* fault (\w+)(?: \((.*?)\))?: (.*)$", head, re.M):
        variants.append(Variant(model, tuple(size.split()), name, what))
    events = [event for line in re.findall(r"^ \* reach: (.*)$", head, re.M) for event in line.split()]
    if not variants or not events:
        raise SystemExit(f"{model.name}: says neither its sizes nor what it must reach")
    return variants, events


def search(variant: Variant) -> Result:
    """Compiles the verifier of a variant and runs it."""
    result = Result(variant)
    began = time.monotonic()
    macros = [f"-D{macro}" for macro in variant.size] + ([f"-DFAULT_{variant.fault}"] if variant.fault else [])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file in MODELS.glob("*.*"):
            shutil.copy(file, directory)
        made = run(["spin", *macros, "-a", variant.model.name], directory)
        if not (directory / "pan.c").exists():
            result.broken = f"spin: {made.stdout.strip()}"
            return result
        # Faults are found after few states, so that compiling them costs more than searching.
        level = "-O0" if variant.fault else "-O2"
        kind = [] if variant.is_live else ["-DSAFETY"]
        built = run(["gcc", level, "-w", *kind, "-DCOLLAPSE", "-DVECTORSZ=512", "-o", "pan", "pan.c"], directory)
        if built.returncode != 0:
            result.broken = f"gcc: {built.stderr.strip()}"
            return result
        try:
            live = ["-a", *(["-f"] if variant.fault != "UNFAIR" else [])] if variant.is_live else []
            said = run(["./pan", "-m4000000", *live], directory, SEARCH_SECONDS).stdout
        except subprocess.TimeoutExpired:
            result.broken = f"not done after {SEARCH_SECONDS} s"
            return result
    result.seconds = time.monotonic() - began
    read(said, result)
    return result


def read(said: str, result: Result) -> None:
    """What a verifier says when it ends."""
    depth = re.search(r"depth reached (\d+), errors: (\d+)", said)
    states = re.search(r"^\s*(\d+) states, stored", said, re.M)
    error = re.search(r"^pan:1: (.*?) \(at depth", said, re.M)
    if depth is None or states is None or "max search depth too small" in said or "out of memory" in said:
        result.broken = f"no complete search:\n{said}"
        return
    result.depth, result.states = int(depth[1]), int(states[1])
    result.error = error[1] if error else ""
    if int(depth[2]) and not error:
        result.broken = f"an error without a name:\n{said}"
    for event, times in re.findall(r"^reached (\w+) (\d+)$", said, re.M):
        result.reached[event] = int(times)


def run(command: list[str], directory: Path, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=seconds, check=False)


def spin_models(names: list[str]) -> tuple[list[Result], list[str]]:
    """Every variant of every model, and what is wrong with them."""
    models = [model for model in sorted(MODELS.glob("*.pml")) if not names or model.stem in names]
    heads = {model: directives(model) for model in models}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(search, [variant for variants, _ in heads.values() for variant in variants]))
    wrong = []
    for result in results:
        variant = result.variant
        print(f"{'ok ' if result.as_expected else 'BAD'} {title(variant):60} {result.states:>9,} states", flush=True)
        if result.broken:
            wrong.append(f"{title(variant)}: {result.broken}")
        elif not result.as_expected:
            wrong.append(f"{title(variant)}: {result.error or 'the fault was not caught'}")
    for model, (_, events) in heads.items():
        searched = [result for result in results if result.variant.model == model and not result.variant.fault]
        missing = [event for event in events if not any(result.reached.get(event) for result in searched)]
        if missing:
            wrong.append(f"{model.stem}: never reached: {', '.join(missing)}")
    return results, wrong


def title(variant: Variant) -> str:
    parts = [variant.model.stem, *(["fault", variant.fault] if variant.fault else []), *variant.size]
    return " ".join(parts)


def explorer() -> tuple[list[Check], list[str]]:
    checks = list(check_all())
    wrong = []
    for check in checks:
        print(f"{'ok ' if check.as_expected else 'BAD'} {check.title:60} {check.states:>9,} states", flush=True)
        if not check.as_expected:
            wrong.append(f"{check.title}: {check.found or 'nothing found'}, expected: {check.expected}")
    return checks, wrong


def figures(results: list[Result], checks: list[Check]) -> str:
    """The tables of docs/verification.md."""
    lines = ["### spin", "", "| model | size | states | depth | s |", "|---|---|---:|---:|---:|"]
    complete = [result for result in results if not result.variant.fault]
    for result in complete:
        size = " ".join(result.variant.size)
        row = (
            f"| `{result.variant.model.stem}` | {size} | {result.states:,} | {result.depth:,} | {result.seconds:.0f} |"
        )
        lines.append(row)
    lines += [
        "",
        f"{sum(result.states for result in complete):,} states, no error. What the searches went through, how often:",
        "",
    ]
    for model in dict.fromkeys(result.variant.model for result in complete):
        total: dict[str, int] = {}
        for result in complete:
            for event, times in result.reached.items() if result.variant.model == model else ():
                total[event] = total.get(event, 0) + times
        lines.append(f"- `{model.stem}`: " + ", ".join(f"{event} {times:,}" for event, times in sorted(total.items())))
    lines += [
        "",
        "Seeded faults, each with an error that the search finds:",
        "",
        "| model | fault | is | found as | after states |",
    ]
    lines.append("|---|---|---|---|---:|")
    for result in results:
        if result.variant.fault:
            kinds = {"invalid end state": "deadlock, or a waiter that nobody wakes", "acceptance cycle": "starvation"}
            found = kinds.get(result.error, "assertion")
            variant = result.variant
            lines.append(f"| `{variant.model.stem}` | {variant.fault} | {variant.what} | {found} | {result.states:,} |")
    lines += [
        "",
        "### The explorer",
        "",
        "| program | as implemented: states under SC, TSO, views | orders that must not be weaker |",
    ]
    lines.append("|---|---:|---|")
    for name in dict.fromkeys(check.program for check in checks if not check.is_litmus):
        mine = [check for check in checks if check.program == name]
        counts = ", ".join(f"{check.states:,}" for check in mine if not check.weakened)
        caught: dict[str, list[str]] = {}
        for check in mine:
            if check.weakened and check.found:
                caught.setdefault(f"**{check.fault}** {check.weakened}".removeprefix("**** "), []).append(check.model)
        lines.append(
            f"| {name} | {counts} | " + "; ".join(f"{site} ({', '.join(by)})" for site, by in caught.items()) + " |"
        )
    lines += ["", "| litmus test | weak outcome seen under |", "|---|---|"]
    for name in dict.fromkeys(check.program for check in checks if check.is_litmus):
        seen = [check.model for check in checks if check.program == name and check.found]
        lines.append(f"| {name} | {', '.join(seen) or 'none'} |")
    return "\n".join(lines)


def document(path: Path, text: str) -> None:
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description="run the protocol models")
    parser.add_argument("--document", type=Path, help="write the figures into this file")
    parser.add_argument("models", nargs="*", help="names of spin models; default: all, and the explorer")
    options = parser.parse_args()
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            print(f"models: {tool} is not installed (Debian: apt-get install {tool})", file=sys.stderr)
            return 2
    began = time.monotonic()
    checks, wrong = ([], []) if options.models else explorer()
    results, wrong_models = spin_models(options.models)
    wrong += wrong_models
    faults = sum(bool(result.variant.fault) for result in results) + sum(
        bool(check.weakened and check.expected) for check in checks
    )
    states = sum(result.states for result in results if not result.variant.fault)
    print(f"{states:,} states of spin models, {faults} seeded faults, {time.monotonic() - began:.0f} s")
    for line in wrong:
        print(f"FAILED {line}", file=sys.stderr)
    if options.document and not wrong:
        document(options.document, figures(results, checks))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
