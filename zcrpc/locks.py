"""Lock strategies: how the region map's two locks are made. See native/include/zcrpc/strategy.h.

A strategy that is not built in comes from a *plugin*, a shared object made from one C file (`zcrpc lab new` writes an
example). It is found in three ways: `load(path)`; a path in the environment variable ZCRPC_LOCKS, whose paths are
separated by ":"; an entry point of an installed package in the group "zcrpc.locks", which is the path, or a function
that returns it. From then on its name works wherever a strategy is named.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zcrpc import _core
from zcrpc._native import ffi, lib
from zcrpc.errors import InvalidArgument

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENVIRONMENT: Final = "ZCRPC_LOCKS"
"""The environment variable that names plugins, separated by ":"."""

GROUP: Final = "zcrpc.locks"
"""The group of entry points that name plugins."""

_log = logging.getLogger("zcrpc.locks")


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


class BadPlugin(InvalidArgument, ValueError):
    """A file is no lock strategy that can be used; the message says what is wrong with it."""


class _Discovery:
    """Plugins named by the environment and by installed packages are looked for once, when a strategy is first named
    that may be one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = False
        self.paths: dict[str, Path] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
            # Takes as long to import as a fifth of zcrpc, and a strategy that is built in is found without.
            from importlib.metadata import entry_points

            for path in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
                self._try(f"{ENVIRONMENT}={path}", partial(Path, path))
            for entry in entry_points(group=GROUP):
                self._try(f"the entry point {entry.name} = {entry.value}", partial(_path_of, entry))

    def _try(self, source: str, path: Callable[[], str | os.PathLike[str]]) -> None:
        """One broken plugin must not take the others away: it is logged, and named where a strategy is not found."""
        try:
            load(path())
        except Exception as error:
            message = error.message if isinstance(error, BadPlugin) else f"{type(error).__name__}: {error}"
            self.failures.append(f"{source}: {message}")
            _log.warning("a plugin was left out: %s: %s", source, message)


_discovery = _Discovery()


def _path_of(entry: EntryPoint) -> str | os.PathLike[str]:
    found: Any = entry.load()
    path: str | os.PathLike[str] = found() if callable(found) else found
    return path


def load(path: str | os.PathLike[str]) -> Strategy:
    """Loads the plugin at `path`; from now on its strategy can be named everywhere in this process, and in the
    processes that the laboratory starts. Loading it again does nothing. Raises BadPlugin."""
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise BadPlugin(f"{file}: there is no such file")
    out = ffi.new("const struct zc_strategy **")
    text = ffi.new("char[512]")
    if lib.zc_strategy_load(os.fsencode(file), out, text, len(text)) < 0:
        raise BadPlugin(f"{file}: {ffi.string(text).decode(errors='replace').removeprefix(f'{file}: ')}")
    strategy = _describe(out[0])
    _discovery.paths[strategy.name] = file
    return strategy


def plugins() -> dict[str, Path]:
    """The plugins that are loaded: name of the strategy → file."""
    _discovery.run()
    return dict(_discovery.paths)


def environment() -> dict[str, str]:
    """This process's environment, for a child that is to know the same plugins."""
    paths = os.pathsep.join(str(path) for path in plugins().values())
    return {**os.environ, ENVIRONMENT: paths} if paths else dict(os.environ)


def include_directory() -> Path:
    """The directory to compile a plugin with: `cc -I <directory>` finds <zcrpc/strategy.h> in it."""
    return Path(_core.__file__).parent / "include"


def names() -> tuple[str, ...]:
    """The names of all strategies, those built in first."""
    _discovery.run()
    return tuple(_text(native.name) for native in _natives())


def find(name: str) -> Strategy:
    """The strategy of that name. Raises UnknownStrategy."""
    return _describe(find_native(name))


def find_native(name: str) -> Any:
    """The core's `const struct zc_strategy *` of that name. Raises UnknownStrategy."""
    encoded = name.encode() if "\0" not in name else b""
    native = lib.zc_strategy_find(encoded)
    if native == ffi.NULL:
        _discovery.run()
        native = lib.zc_strategy_find(encoded)
    if native != ffi.NULL:
        return native
    if name == "none":
        raise UnknownStrategy('"none" locks nothing, so nothing but a benchmark without writers may use it')
    known = ", ".join(f'"{each}"' for each in names())
    left_out = "".join(f"; left out was {each}" for each in _discovery.failures)
    raise UnknownStrategy(f'there is no lock strategy "{name}"; there are {known}{left_out}')


def _natives() -> Iterator[Any]:
    index = 0
    while (native := lib.zc_strategy_at(index)) != ffi.NULL:
        yield native
        index += 1


def _describe(native: Any) -> Strategy:
    return Strategy(_text(native.name), _text(native.summary), native.map_size, native.region_size)


def _text(native: Any) -> str:
    return str(ffi.string(native).decode())
