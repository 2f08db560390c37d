"""What the suite's processes tell each other, and what they have in common."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from peers.workloads import Work


@dataclass(slots=True, frozen=True)
class Order:
    """What to do, by which adapter, with which server; see `peers.workloads.Workload`."""

    adapter: str
    port: int
    server_pid: int
    work: Work
    payload: int
    connections: int
    in_flight: int
    idle: int
    items: int
    warm_up_seconds: float
    seconds: float


@dataclass(slots=True, frozen=True)
class Serve:
    """Which adapter's server, and how much those get who download."""

    adapter: str
    download_bytes: int


@dataclass(slots=True, frozen=True)
class Ready:
    """Where it listens on 127.0.0.1."""

    port: int


def allow_many_connections() -> None:
    """As many files as this process may have at most."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
