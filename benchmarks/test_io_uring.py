"""The echo servers with io_uring: everything comes back, in order, whole or in pieces. Speed is `io_uring.py`'s."""

from __future__ import annotations

import io_uring
import pytest


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


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """What is left out is said by name."""
    io_uring.main(["--rounds", "1", "--seconds", "0.05", "--connections", "4", "batched"])
    lines = capsys.readouterr().out.splitlines()
    shapes = [line.split()[0] for line in lines]
    assert "epoll-nested" in shapes
    assert shapes.count("batched") == 1  # its row, or that it was left out


@pytest.mark.parametrize("wrong", [["aio"], ["--rounds", "0"], ["--seconds", "0"], ["--payload", "-1"]])
def test_bad_input(wrong: list[str]) -> None:
    """Status 2."""
    with pytest.raises(SystemExit, match="2"):
        io_uring.main(wrong)
