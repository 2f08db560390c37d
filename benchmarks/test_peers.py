"""The side-by-side suite, short: `make peers` is the long one. What is not installed is skipped."""

from __future__ import annotations

import pytest
from peers import suite
from peers.stacks import STACKS
from peers.workloads import WORKLOADS

SECONDS = 0.05
FLOORS = ("zcrpc (C client)", "C floor", "uvloop floor")
OTHERS = tuple(name for name in STACKS if name not in ("zcrpc", "uvloop floor (C client)", *FLOORS))


def _check(name: str, workload: str) -> None:
    stack = STACKS[name]
    if stack.missing:
        pytest.skip(f"{stack.missing} is not installed")
    if workload in stack.lacks:
        pytest.skip(stack.lacks[workload])
    (row,) = suite.measure([stack], [WORKLOADS[workload]], 1, SECONDS)
    assert not row.failed
    assert row.wrong == 0
    assert row.requests > 0
    assert row.server_cpu_us_per_request > 0
    assert row.client_cpu_us_per_request > 0
    assert bool(row.uploads_gigabytes_per_second) == bool(WORKLOADS[workload].uploads)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_zcrpc(workload: str) -> None:
    """Everything."""
    _check("zcrpc", workload)


@pytest.mark.parametrize("workload", ["in-flight", "upload-1", "download-1", "beside-uploads"])
@pytest.mark.parametrize("name", FLOORS)
def test_floors(name: str, workload: str) -> None:
    """What they have; verified as everybody's is."""
    _check(name, workload)


@pytest.mark.parametrize("workload", ["echo", "in-flight", "upload-1", "download-1"])
@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, workload: str) -> None:
    """Those that are installed."""
    _check(name, workload)
