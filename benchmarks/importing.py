"""How long it takes from the start of an interpreter until zcrpc, and what it rests on, is imported.

    python benchmarks/importing.py [--rounds 25]

Wants a quiet machine. Bytecode is there, as it is where pip has installed zcrpc.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

from rounds import alternate, medians

LIMIT_MS = 60
WAYS = {
    "pass": "pass",
    "import asyncio": "import asyncio",
    "import asyncio, msgspec": "import asyncio, msgspec",
    "import zcrpc": "import zcrpc",
    "with Server and connect": "import zcrpc; zcrpc.Server; zcrpc.connect",
    "zcrpc --help": "import sys; sys.argv = ['zcrpc', '--help']; from zcrpc.cli import main; main()",
}


def run(rounds: int) -> dict[str, float]:
    """Medians in ms."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for code in WAYS.values():  # writes the bytecode
            _milliseconds(code, environment)
        ways = {name: partial(_milliseconds, code, environment) for name, code in WAYS.items()}
        return medians(alternate(ways, rounds), float)


def _milliseconds(code: str, environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    for name, found in run(parser.parse_args().rounds).items():
        print(f"{name:<24} {found:6.1f} ms")
