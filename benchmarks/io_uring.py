"""What io_uring would save: an echo server in C in several shapes, see `floor/uring_echo.c`. docs/io-uring.md says what
was found.

python benchmarks/io_uring.py [--rounds 11] [--seconds 0.5] [--connections 100] [--payload 4096] [--work 2000] [shape …]

Each request takes `--work` nanoseconds of computing besides, which stand for those of an RPC library. The load comes
from the native generator; every reply is verified. Shapes that need io_uring are left out where there is none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from statistics import median

from peers.servers import Peer, compiled, floor
from rich.console import Console
from rich.table import Table
from rounds import alternate, medians

from zcrpc.lab.load import LoadResult

REFERENCE = "epoll-nested"
# Whether it takes io_uring.
SHAPES = {"epoll": False, REFERENCE: False, "sends": True, "batched": True, "ring": True}


def missing() -> str:
    """Why there is no io_uring here; empty: there is."""
    done = subprocess.run([str(compiled("uring_echo")), "check"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def server(shape: str, work_ns: int = 0) -> AbstractContextManager[Peer]:
    """A running one."""
    return floor(shape, str(compiled("uring_echo")), shape, str(work_ns))


def _cpu(result: LoadResult) -> float:
    return result.server_cpu_us_per_request


def _table(found: dict[str, list[LoadResult]]) -> Table:
    cpu, speed = medians(found, _cpu), medians(found, lambda each: each.requests_per_second)
    table = Table("shape", "server CPU per request, µs", f"against {REFERENCE}", "requests/s", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for shape, results in found.items():
        ratios = [_cpu(each) / _cpu(other) for each, other in zip(results, found[REFERENCE], strict=True)]
        table.add_row(shape, f"{cpu[shape]:.2f}", f"{median(ratios):.2f}", f"{speed[shape]:,.0f}")
    return table


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="shape", help=f"beside {REFERENCE}: {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a shape is measured in each round")
    parser.add_argument("--connections", type=int, default=100, help="with one request in flight on each")
    parser.add_argument("--payload", type=int, default=4096, help="bytes in each request")
    parser.add_argument("--work", type=int, default=2000, help="nanoseconds of computing for each request")
    parsed = parser.parse_args(arguments)
    unknown = set(parsed.shapes) - set(SHAPES)
    if unknown:
        parser.error(f"no such shape: {', '.join(sorted(unknown))}")
    if min(parsed.rounds, parsed.connections) < 1 or parsed.seconds <= 0 or min(parsed.payload, parsed.work) < 0:
        parser.error("--rounds, --connections and --seconds must be more than 0, --payload and --work not less")
    return parsed


def main(arguments: list[str]) -> None:
    """Measures, and prints a table."""
    parsed = _parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    wanted = [shape for shape in SHAPES if shape in (*(parsed.shapes or SHAPES), REFERENCE)]
    without = missing()
    if without:
        left_out = [shape for shape in wanted if SHAPES[shape]]
        console.print(f"{', '.join(left_out) or 'nothing'} left out: {without}")
        wanted = [shape for shape in wanted if not SHAPES[shape]]
    with ExitStack() as stack:
        servers = {shape: stack.enter_context(server(shape, parsed.work)) for shape in wanted}
        options = {"connections": parsed.connections, "seconds": parsed.seconds, "warm_up_seconds": 0.15}
        ways = {shape: partial(each.run, "echo", parsed.payload, **options) for shape, each in servers.items()}
        console.print(_table(alternate(ways, parsed.rounds)))


if __name__ == "__main__":
    main(sys.argv[1:])
