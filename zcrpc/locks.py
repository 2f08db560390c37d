"""Lock strategies: how the region map's two locks are made. See native/include/zcrpc/strategy.h."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zcrpc._native import ffi, lib
from zcrpc.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Strategy:
    """A lock strategy: its name, as in `locks="per-region"`, one line about it, and what it adds to memory.

    `map_bytes` and `region_bytes` are the lock state in a map and in each region, before rounding to cache lines.
    """

    name: str
    summary: str
    map_bytes: int
    region_bytes: int


class UnknownStrategy(InvalidArgument, ValueError):
    """There is no lock strategy of that name; the message lists those there are."""


def _natives() -> Iterator[Any]:
    index = 0
    while (native := lib.zc_strategy_at(index)) != ffi.NULL:
        yield native
        index += 1


def _text(native: Any) -> str:
    return str(ffi.string(native).decode())


def names() -> tuple[str, ...]:
    """The names of all strategies."""
    return tuple(_text(native.name) for native in _natives())


def find(name: str) -> Strategy:
    """The strategy of that name. Raises UnknownStrategy."""
    native = find_native(name)
    return Strategy(_text(native.name), _text(native.summary), native.map_size, native.region_size)


def find_native(name: str) -> Any:
    """The core's `const struct zc_strategy *` of that name. Raises UnknownStrategy."""
    native = lib.zc_strategy_find(name.encode()) if "\0" not in name else ffi.NULL
    if native == ffi.NULL:
        known = ", ".join(f'"{each}"' for each in names())
        raise UnknownStrategy(f'there is no lock strategy "{name}"; there are {known}')
    return native
