"""Streams between two Python processes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import streams

MIB = 1 << 20
SHORT = bool(os.environ.get("ZCRPC_BENCH_SHORT"))  # runs everything, measures nothing worth telling


@pytest.mark.parametrize(("size", "count"), [(64, 300_000), (4096, 50_000), (MIB, 1000)], ids=["64B", "4KiB", "1MiB"])
@pytest.mark.parametrize("way", ["download", "upload"])
def test_rate(benchmark: Any, way: Any, size: int, count: int) -> None:
    """One stream; the consumer adds up what it gets."""
    benchmark.group = f"stream of {size}-byte items"
    found = benchmark.pedantic(streams.rate, args=(way, size, count // 100 if SHORT else count), rounds=1)
    benchmark.extra_info.update(
        items_per_second=found.items_per_second,
        gigabytes_per_second=found.bytes_per_second / 1e9,
        client_cpu_us_per_item=found.client_cpu_us_per_item,
    )


@pytest.mark.parametrize("way", ["download", "upload"])
def test_slow_consumer(benchmark: Any, way: Any) -> None:
    """1 GiB from a fast producer to a slow consumer: memory is that of the windows."""
    benchmark.group = "slow consumer"
    found = benchmark.pedantic(streams.slow_consumer, args=(way, MIB, 32 if SHORT else 1024), rounds=1)
    assert found.grown_bytes <= 32 * MIB
    benchmark.extra_info.update(server_memory_mib=found.grown_bytes / MIB)
