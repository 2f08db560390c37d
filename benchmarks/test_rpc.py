"""Calls through Python handlers against the floors: a C epoll server and a hand-written uvloop protocol, all under
the same C client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import beside_uploads
import pytest
from peers import Peer, c_floor, uvloop_floor, zcrpc_server

from zcrpc.lab import load as lab_load
from zcrpc.lab import upload

MIB = 1 << 20
SHORT = bool(os.environ.get("ZCRPC_BENCH_SHORT"))  # runs everything, measures nothing worth telling
REQUESTS = 1_000 if SHORT else 10_000
ROUNDS = 1 if SHORT else 5
SECONDS = 0.2 if SHORT else 1.0


@pytest.fixture(params=["zcrpc", "C floor", "uvloop floor"])
def echo(request: Any) -> Iterator[Peer]:
    with {"zcrpc": zcrpc_server, "C floor": c_floor, "uvloop floor": uvloop_floor}[request.param]("echo") as peer:
        yield peer


@pytest.mark.parametrize(
    ("connections", "in_flight", "payload"),
    [(100, 1, 4096), (1, 1, 64), (1, 64, 64)],
    ids=["100x4KiB", "1x64B", "64-in-flight-64B"],
)
def test_echo(benchmark: Any, echo: Peer, connections: int, in_flight: int, payload: int) -> None:
    """The time of so many echoes; server CPU per request in extra_info. Replies are compared byte by byte."""
    benchmark.group = f"echo of {payload} bytes, {connections} connections, {in_flight} in flight"
    load = echo.load(
        "echo", payload, connections=connections, in_flight=in_flight, requests=REQUESTS, warm_up_seconds=0, seconds=60
    )
    result = benchmark.pedantic(lab_load.generate, args=(load,), rounds=ROUNDS, warmup_rounds=1)
    assert (result.requests, result.errors, result.mismatches) == (REQUESTS, 0, 0)
    benchmark.extra_info.update(
        requests_per_second=result.requests_per_second,
        server_cpu_us_per_request=result.server_cpu_us_per_request,
        latency_p50_us=result.latency.p50_us,
        latency_p99_us=result.latency.p99_us,
    )


@pytest.mark.parametrize("name", ["C floor", "uvloop floor"])
def test_upload_floor(benchmark: Any, name: str) -> None:
    """16 MiB uploads to the floors."""
    benchmark.group = "upload of 16 MiB"
    with {"C floor": c_floor, "uvloop floor": uvloop_floor}[name]("upload") as peer:
        result = benchmark.pedantic(peer.run, args=("upload", 16 * MIB), kwargs={"seconds": SECONDS}, rounds=1)
    benchmark.extra_info.update(
        gigabytes_per_second=result.gigabytes_per_second,
        server_cpu_seconds_per_gigabyte=result.server_cpu_seconds_per_gigabyte,
    )


@pytest.mark.parametrize("receive", ["copy", "zerocopy", "auto"])
def test_upload_python(benchmark: Any, receive: Any) -> None:
    """16 MiB uploads, client and server in Python; the handler touches every page."""
    benchmark.group = "upload of 16 MiB"
    result = benchmark.pedantic(upload.run, args=(receive,), kwargs={"seconds": SECONDS}, rounds=1)
    assert result.wrong == 0
    if receive == "zerocopy":
        assert result.mapped_percent >= 99
    benchmark.extra_info.update(
        gigabytes_per_second=result.gigabytes_per_second,
        server_cpu_seconds_per_gigabyte=result.server_cpu_seconds_per_gigabyte,
        mapped_percent=result.mapped_percent,
    )


@pytest.mark.parametrize("beside", beside_uploads.BESIDE)
def test_small_calls_beside(benchmark: Any, beside: beside_uploads.Beside) -> None:
    """50 connections of 64 B echoes, alone, while two others upload 16 MiB, while those upload to another server."""
    benchmark.group = "50 connections of 64 B echoes"
    with beside_uploads.servers() as running:
        found = benchmark.pedantic(running.measure, args=(beside, SECONDS), rounds=1)
    benchmark.extra_info.update(asdict(found))
