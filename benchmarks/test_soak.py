"""The soak, short: memory stays flat and no lease is left. `python benchmarks/soak.py` is the long one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import soak

CALLS = 20_000 if os.environ.get("ZCRPC_BENCH_SHORT") else 100_000


@pytest.mark.parametrize("receive", ["copy", "zerocopy"])
def test_soak(benchmark: Any, receive: Any) -> None:
    """Mixed calls: echoes of all sizes, uploads, failures, deadlines that pass."""
    benchmark.group = f"soak of {CALLS:,} calls"
    found = benchmark.pedantic(soak.run, args=(CALLS,), kwargs={"receive": receive}, rounds=1)
    assert found.calls == CALLS
    assert found.wrong == 0
    assert found.leases_left == 0
    assert found.grown_bytes <= soak.FLAT_BYTES
    benchmark.extra_info.update(calls_per_second=found.calls / found.seconds, grown_bytes=found.grown_bytes)
