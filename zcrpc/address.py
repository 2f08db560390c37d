"""Addresses as users write them: tcp://host:port, tcp://[::1]:0, unix:///run/store.sock."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

# A comma may be part of a path.
_SEPARATOR: Final = re.compile(r",(?=\s*(?:tcp|unix)://)")


@dataclass(slots=True, frozen=True)
class Address:
    """Where to listen or to connect: a host and port, or the path of a Unix socket. connect: gives a connected socket,
    for connections that are made otherwise; host, or port and path, are then merely a name."""

    host: str = ""
    port: int = 0
    path: str = ""
    connect: Callable[[], Awaitable[socket.socket]] | None = field(default=None, repr=False)

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def parse(text: str | Address) -> Address:
    """ValueError says what is wrong with it."""
    if isinstance(text, Address):
        return text
    parts = urlsplit(text)
    if parts.scheme == "unix":
        path = parts.netloc + parts.path
        if not path:
            raise ValueError(f"{text!r}: no path")
        return Address(path=path)
    if parts.scheme == "tcp":
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        if not host or port is None or parts.path not in ("", "/"):
            raise ValueError(f"{text!r}: expected tcp://host:port")
        return Address(host=host, port=port)
    raise ValueError(f"{text!r}: expected tcp://host:port or unix://path")


def parse_all(text: str | Address | Sequence[str]) -> list[Address]:
    """One address or several, in a sequence or separated by commas. ValueError says what is wrong."""
    if isinstance(text, Address):
        return [text]
    parts = _SEPARATOR.split(text) if isinstance(text, str) else list(text)
    if not parts:
        raise ValueError("no address")
    return list(dict.fromkeys(parse(part.strip()) for part in parts))


def is_numeric(address: Address) -> bool:
    """Whether it names one server, and no resolver need be asked."""
    if address.is_unix:
        return True
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return False
    return True


async def resolve(address: Address) -> list[tuple[int, Any]]:
    """Families and socket addresses of a TCP address, best first. A numeric host takes no thread. May raise OSError."""
    try:
        numeric = ipaddress.ip_address(address.host)
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        return [(family, where) for family, _, _, _, where in found]
    if numeric.version == 6 and not numeric.scope_id:
        return [(socket.AF_INET6, (address.host, address.port, 0, 0))]
    if numeric.version == 4:
        return [(socket.AF_INET, (address.host, address.port))]
    info = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [(family, where) for family, _, _, _, where in info]
