"""Lock strategies by name, and the native driver that times them."""

from __future__ import annotations

from typing import Any

import pytest

import zcrpc
from zcrpc import locks
from zcrpc._native import ffi, lib
from zcrpc.errors import InvalidArgument, Status, ZcrpcError
from zcrpc.regions import RegionMap


def test_all_strategies_are_there() -> None:
    assert locks.names()[:13] == (
        "global",
        "per-region",
        "per-region-convert",
        "speculative",
        "per-region-6.4",
        "per-region-6.4-convert",
        "region-rwlock",
        "range",
        "global-mutex",
        "global-pthread",
        "global-phase-fair",
        "global-bravo",
        "global-big-reader",
    )


@pytest.mark.parametrize("name", locks.names())
def test_a_strategy_says_what_it_is(name: str) -> None:
    strategy = locks.find(name)
    assert strategy.name == name
    assert len(strategy.summary) > 20
    assert strategy.map_bytes > 0
    assert locks.find(name) == strategy


def test_only_some_have_a_lock_in_every_region() -> None:
    for name in locks.names():
        has = name == "speculative" or "region" in name
        assert (locks.find(name).region_bytes > 0) == has


class Echo(zcrpc.Service):
    @zcrpc.method
    def echo(self, payload: bytes) -> bytes:
        return payload


def test_no_lock_at_all_is_for_benchmarks() -> None:
    assert "none" not in locks.names()
    for refusing in (locks.find, RegionMap, lambda name: zcrpc.Server(Echo(), locks=name)):
        with pytest.raises(locks.UnknownStrategy, match='"none" locks nothing'):
            refusing("none")


def run(name: str, **settings: float) -> tuple[int, Any]:
    text = ffi.new("char[]", name.encode())
    result = ffi.new("struct zc_lock_bench_result *")
    return lib.zc_lock_bench(ffi.new("struct zc_lock_bench_options *", {"strategy": text, **settings}), result), result


def test_no_lock_at_all_is_timed_without_writers() -> None:
    code, result = run("none", readers=1, iterations=1000)
    assert (code, result.reads) == (0, 1000)
    code, _ = run("none", readers=1, writers=1, iterations=1000)
    assert code < 0


def test_looking_costs_no_lock() -> None:
    code, result = run("speculative", readers=2, hot=1, iterations=1000)
    assert (code, result.reads, result.fallbacks) == (0, 2000, 0)
    code, result = run("speculative", readers=2, hot=1, iterations=1000, hold=1)
    assert (code, result.reads) == (0, 2000)


@pytest.mark.parametrize("name", ["", "per_region", "Global", "global\0", "no such lock", "é"])
def test_an_unknown_name_lists_those_there_are(name: str) -> None:
    with pytest.raises(locks.UnknownStrategy) as raised:
        locks.find(name)
    for known in locks.names():
        assert f'"{known}"' in raised.value.message
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, InvalidArgument)
    assert isinstance(raised.value, ZcrpcError)
    assert raised.value.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("name", locks.names())
def test_the_driver_counts_what_it_did(name: str) -> None:
    text = ffi.new("char[]", name.encode())
    options = ffi.new(
        "struct zc_lock_bench_options *",
        {"strategy": text, "readers": 3, "writers": 1, "iterations": 20_000, "writer_pause_ns": 20_000},
    )
    result = ffi.new("struct zc_lock_bench_result *")
    assert lib.zc_lock_bench(options, result) == 0
    assert result.reads == 60_000
    assert result.writes > 0
    assert 0 < result.ns_per_read < 1e6
    assert result.reads_per_second > 0
    assert result.fallbacks <= result.reads


def test_the_driver_stops_when_time_is_up() -> None:
    text = ffi.new("char[]", b"global")
    options = ffi.new(
        "struct zc_lock_bench_options *",
        {"strategy": text, "readers": 1, "writers": 1, "writer_hold_ns": 100_000, "seconds": 0.05},
    )
    result = ffi.new("struct zc_lock_bench_result *")
    assert lib.zc_lock_bench(options, result) == 0
    assert result.reads * result.ns_per_read == pytest.approx(0.05e9, rel=1)
    assert result.writes * 100_000 > 0.01e9


def test_the_driver_refuses_what_makes_no_sense() -> None:
    result = ffi.new("struct zc_lock_bench_result *")
    for name, readers, iterations in (("no such lock", 1, 1), ("global", 0, 1), ("global", 1, 0), ("global", 1000, 1)):
        text = ffi.new("char[]", name.encode())
        options = ffi.new(
            "struct zc_lock_bench_options *", {"strategy": text, "readers": readers, "iterations": iterations}
        )
        assert lib.zc_lock_bench(options, result) < 0
