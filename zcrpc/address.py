"""Addresses as users write them: tcp://host:port, tcp://[::1]:0, unix:///run/store.sock."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(slots=True, frozen=True)
class Address:
    """Where to listen or to connect: a host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def parse(text: str) -> Address:
    """ValueError says what is wrong with it."""
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
