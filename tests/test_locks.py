"""Lock strategies by name."""

from __future__ import annotations

import pytest

import zcrpc
from zcrpc import locks
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
