"""The echo servers with io_uring: everything comes back, in order, whole or in pieces. Speed is `io_uring.py`'s."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import io_uring
import pytest

BENCHMARKS = Path(__file__).parent


@pytest.fixture(scope="module")
def without() -> str:
    return io_uring.missing()


@pytest.mark.parametrize(
    ("connections", "in_flight", "payload"),
    [(100, 1, 4096), (10, 64, 64), (20, 8, 5000), (4, 2, 300_000), (300, 1, 64)],
    ids=["100x4KiB", "64-in-flight", "in-pieces", "large", "more-than-a-wake-up"],
)
@pytest.mark.parametrize("shape", io_uring.SHAPES)
def test_echo(shape: str, connections: int, in_flight: int, payload: int, without: str) -> None:
    """The load generator compares each reply with its request."""
    if io_uring.SHAPES[shape] and without:
        pytest.skip(without)
    with io_uring.server(shape) as peer:
        options = {"connections": connections, "in_flight": in_flight, "warm_up_seconds": 0.05, "seconds": 0.15}
        result = peer.run("echo", payload, **options)
    assert result.requests >= connections


QUICK = ["--rounds", "1", "--seconds", "0.05", "--connections", "4", "batched"]


def test_a_table(capsys: pytest.CaptureFixture[str], without: str) -> None:
    """A row for each shape that is asked for, and for what it is compared with."""
    if without:
        pytest.skip(without)
    io_uring.main(QUICK)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["shape", "epoll-nested", "batched"]


def test_where_it_is_forbidden() -> None:
    """What is left out is said by name."""
    program = f"import forbidding; forbidding.forbid('io_uring_setup'); import io_uring; io_uring.main({QUICK})"
    path = os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent / "tests")))
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "batched left out: io_uring: Operation not permitted"
    assert [line.split()[0] for line in lines[1:]] == ["shape", "epoll-nested"]


@pytest.mark.parametrize("wrong", [["aio"], ["--rounds", "0"], ["--seconds", "0"], ["--payload", "-1"]])
def test_bad_input(wrong: list[str]) -> None:
    """Status 2."""
    with pytest.raises(SystemExit, match="2"):
        io_uring.main(wrong)
