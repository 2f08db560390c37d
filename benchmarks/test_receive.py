"""Receiving: copy against zerocopy against auto over payload sizes, and the seed workload in small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from peers import Peer, zcrpc_server

from zcrpc.lab import load as lab_load
from zcrpc.lab import seed

KIB, MIB = 1 << 10, 1 << 20
SIZES = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB]
SHORT = bool(os.environ.get("ZCRPC_BENCH_SHORT"))  # runs everything, measures nothing worth telling
BYTES_PER_ROUND = (8 if SHORT else 64) * MIB
ROUNDS = 1 if SHORT else 5
MAP_FROM = 4 * KIB  # everything here is to be mapped where that was asked for


@pytest.fixture(params=["copy", "zerocopy", "auto"], scope="module")
def server(request: Any) -> Iterator[Peer]:
    with zcrpc_server(
        "upload", request.param, receive=request.param, more={"place_from": MAP_FROM, "map_from": MAP_FROM}
    ) as peer:
        yield peer


@pytest.mark.parametrize("payload", SIZES, ids=lambda size: f"{size // KIB}KiB")
def test_upload(benchmark: Any, server: Peer, payload: int) -> None:
    """A native client uploads to a Python handler that touches every page; contents are verified."""
    benchmark.group = f"upload of {payload // KIB} KiB"
    load = server.load(
        "upload", payload, requests=max(2, min(4000, BYTES_PER_ROUND // payload)), warm_up_seconds=0, seconds=60
    )
    assert server.service is not None
    before = server.service.snapshot()
    result = benchmark.pedantic(lab_load.generate, args=(load,), rounds=ROUNDS, warmup_rounds=1)
    after = server.service.snapshot()
    assert result.requests == load.requests
    assert (result.errors, result.mismatches) == (0, 0)
    mapped = after.payload_bytes_mapped - before.payload_bytes_mapped
    copied = after.payload_bytes_copied - before.payload_bytes_copied
    percent = 100 * mapped / (mapped + copied)
    benchmark.extra_info.update(
        gigabytes_per_second=result.gigabytes_per_second,
        server_cpu_seconds_per_gigabyte=result.server_cpu_seconds_per_gigabyte,
        mapped_percent=percent,
    )
    if server.name == "zerocopy":
        assert percent >= 99
    if server.name == "copy":
        assert mapped == 0


@pytest.mark.parametrize("receive", ["zerocopy", "copy-pages", "copy"])
@pytest.mark.parametrize("strategy", ["global", "per-region"])
def test_seed_workload(benchmark: Any, strategy: str, receive: Any) -> None:
    """100 connections of 4 KiB requests on native receiving threads; the time is that of a round, the figures are in
    extra_info.
    """
    benchmark.group = f"seed workload, {strategy}"
    experiment = seed.Experiment(locks=(strategy,), seconds=0.2 if SHORT else 1.0, rounds=1, receive=receive)
    found = benchmark.pedantic(seed.run_round, args=(experiment, strategy, "readers-only"), rounds=1)
    assert found.wrong_replies == 0
    assert found.requests > 0
    if receive == "zerocopy":
        assert found.mapped_percent >= 99
    benchmark.extra_info.update(
        requests_per_second=found.requests_per_second,
        server_cpu_us_per_request=found.server_cpu_us_per_request,
        lock_path_share_percent=found.lock_path_share_percent,
        mapped_percent=found.mapped_percent,
    )
