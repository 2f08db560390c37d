"""Lock strategies by name, and the native driver that times them."""

from __future__ import annotations

import pytest

from zcrpc import locks
from zcrpc._native import ffi, lib
from zcrpc.errors import InvalidArgument, Status, ZcrpcError


def test_both_strategies_are_there() -> None:
    assert locks.names() == ("global", "per-region")


@pytest.mark.parametrize("name", locks.names())
def test_a_strategy_says_what_it_is(name: str) -> None:
    strategy = locks.find(name)
    assert strategy.name == name
    assert "lock" in strategy.summary or "count" in strategy.summary
    assert strategy.map_bytes > 0
    assert locks.find(name) == strategy


def test_only_per_region_has_a_lock_in_every_region() -> None:
    assert locks.find("global").region_bytes == 0
    assert locks.find("per-region").region_bytes > 0


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


@pytest.mark.parametrize("name", [*locks.names(), "pthread"])
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
