"""What to serve, by name: module:attribute."""

from __future__ import annotations

import importlib
from typing import Any

from zcrpc.server import Server
from zcrpc.service import Service


class CannotLoad(ValueError):
    """There is nothing of that name, or it cannot be served."""


def load(name: str) -> Service | Server:
    """`module:attribute`, where the attribute is a Service class, which is made without arguments; a Service; a Server;
    or a function without arguments that returns one of the latter two. Raises CannotLoad, and whatever importing the
    module or calling the function raises."""
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise CannotLoad(f"{name!r}: expected module:Service")
    found: Any = _module(module_name)
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise CannotLoad(f"{name}: there is no {attribute!r} in {getattr(found, '__name__', found)}") from None
    if not isinstance(found, Service | Server) and callable(found):
        found = found()
    if not isinstance(found, Service | Server):
        raise CannotLoad(f"{name} is no zcrpc.Service or zcrpc.Server, but {type(found).__name__}")
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # One that the module itself imports in vain deserves its traceback.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise CannotLoad(f"there is no module {error.name!r}") from None
        raise


def load_server(names: list[str], options: dict[str, Any]) -> Server:
    """One server of all that is named, with these options of `Server`."""
    loaded = [load(name) for name in names]
    if len(loaded) == 1 and isinstance(loaded[0], Server):
        if options:
            raise CannotLoad(f"{names[0]} is a Server with options of its own; {', '.join(options)} cannot be given")
        return loaded[0]
    for name, each in zip(names, loaded, strict=True):
        if isinstance(each, Server):
            raise CannotLoad(f"{name} is a Server; it cannot be served together with others")
    try:
        return Server(*(each for each in loaded if isinstance(each, Service)), **options)
    except (TypeError, ValueError) as error:
        raise CannotLoad(str(error)) from None
