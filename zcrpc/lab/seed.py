"""The seed experiment: what does the lock that guards "find the region, receive into it" cost in a live server?

Real sockets, receive zerocopy forced, a region for each connection; a native load generator and native receivers,
each in a process of its own. Two scenarios: *readers only*, and a *writer storm*, in which one more thread of the
server takes the map lock in write mode over and over, changing only a region that no connection uses. Strategies
alternate over the rounds, and every second round goes backwards, so that drift of the machine hits all of them alike.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from zcrpc import locks
from zcrpc.counting import counters
from zcrpc.lab import load as lab_load
from zcrpc.lab.load import Load, LoadResult
from zcrpc.lab.processes import Child
from zcrpc.lab.receivers import Receive, Receivers, ReceiversResult
from zcrpc.lab.results import Latency
from zcrpc.regions import LockCounters

Scenario = Literal["readers-only", "writer-storm"]
WARM_UP_SECONDS = 0.5  # the first payload of a connection waits for its region to be made


@dataclass(slots=True, frozen=True, kw_only=True)
class Experiment:
    """What is to be run. Raises `ValueError`, saying what is impossible, when created.

    Args:
        locks: names of the strategies (`zcrpc.locks.names`).
        connections, payload: TCP connections, each with one request of so many bytes in flight.
        receive_threads: native receiving threads, which share the connections.
        connections_per_region: connections whose payloads lie in the same region; 0: all of a thread.
        seconds: measured for each strategy and scenario, spread over the rounds.
        writer_interval_us, writer_hold_us: the storm's period, and how long of it the writer holds the map lock; 0
            and 0: no storm.
        writer_busy: the writer computes while it holds the lock, rather than sleep.
        receive: how; the ways of copying are there to be compared with (`zcrpc.lab.receivers.Receivers`).
    """

    locks: tuple[str, ...] = ("global", "per-region")
    connections: int = 100
    payload: int = 4096
    receive_threads: int = 2
    connections_per_region: int = 1
    seconds: float = 5.0
    rounds: int = 5
    writer_interval_us: int = 1000
    writer_hold_us: int = 500
    writer_busy: bool = False
    receive: Receive = "zerocopy"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        return ("readers-only", "writer-storm") if self.writer_interval_us else ("readers-only",)


@dataclass(slots=True, frozen=True)
class Round(LockCounters):
    """One strategy in one scenario for one round. native/lab/lab.h says what the figures mean."""

    strategy: str
    scenario: Scenario
    round: int
    connections: int
    payload_bytes: int
    receive_threads: int
    connections_per_region: int
    receive: str
    seconds: float
    writer_interval_us: int
    writer_hold_us: int
    writer_busy: bool

    requests: int
    requests_per_second: float
    server_cpu_us_per_request: float  # of the receiving threads
    lock_path_share_percent: float
    lock_path_ns: float
    lock_wait_p50_us: float
    lock_wait_p99_us: float
    lock_wait_p999_us: float
    lock_wait_max_us: float
    receive_p50_us: float
    receive_p99_us: float
    receive_p999_us: float
    receive_max_us: float
    samples: int
    waited_samples: int
    preempted_samples: int
    preempted_ms: float

    mapped_percent: float
    payload_bytes_mapped: int
    payload_bytes_copied: int
    fallback_percent: float
    regions: int
    arena_bytes: int
    recycles: int

    writer_locks_per_second: float
    writer_late_percent: float
    writer_cpu_percent: float
    writer_wait_p50_us: float
    writer_wait_p99_us: float
    writer_wait_p999_us: float
    writer_wait_max_us: float
    writer_hold_p50_us: float
    writer_hold_p99_us: float
    writer_hold_p999_us: float
    writer_hold_max_us: float

    client_latency_p50_us: float
    client_latency_p99_us: float
    client_latency_p999_us: float
    client_latency_max_us: float
    client_cpu_us_per_request: float
    wrong_replies: int


# Fields of a round that are the server's own, under the same name.
_AS_REPORTED = (
    "requests",
    "lock_path_share_percent",
    "lock_path_ns",
    "samples",
    "waited_samples",
    "preempted_samples",
    "preempted_ms",
    "payload_bytes_mapped",
    "payload_bytes_copied",
    *counters(LockCounters),
    "regions",
    "arena_bytes",
    "recycles",
)


def run(experiment: Experiment) -> Iterator[Round]:
    """Runs the experiment and yields each round as it ends. Stop iterating to stop it.

    Raises:
        zcrpc.lab.processes.ChildFailed: the server or the load generator could not do its part.
    """
    for number in range(experiment.rounds):
        order = experiment.locks if number % 2 == 0 else experiment.locks[::-1]
        for scenario in experiment.scenarios:
            for strategy in order:
                yield run_round(experiment, strategy, scenario, number)


def run_round(experiment: Experiment, strategy: str, scenario: Scenario, number: int = 0) -> Round:
    """Runs one strategy in one scenario for one round. Raises as `run`."""
    storm = scenario == "writer-storm"
    receivers = Receivers(
        strategy=strategy,
        receive=experiment.receive,
        connections=experiment.connections,
        threads=experiment.receive_threads,
        payload=experiment.payload,
        connections_per_region=experiment.connections_per_region,
        writer_interval_us=experiment.writer_interval_us if storm else 0,
        writer_hold_us=experiment.writer_hold_us if storm else 0,
        writer_busy=experiment.writer_busy,
        warm_up_seconds=WARM_UP_SECONDS,
        seconds=experiment.seconds / experiment.rounds,
    )
    with (
        Child("zcrpc.lab.receivers", receivers) as server,
        lab_load.start(load_for(receivers, server.receive(int))) as client,
    ):
        result = server.receive(ReceiversResult)
        return _round(experiment, receivers, scenario, number, result, client.receive(LoadResult))


def load_for(receivers: Receivers, port: int) -> Load:
    """The requests that such receivers expect, until they close."""
    return Load(
        port=port,
        payload=receivers.payload,
        connections=receivers.connections,
        verify="sum",
        padded=receivers.receive != "copy",
        header=b"",
        warm_up_seconds=receivers.warm_up_seconds,
        seconds=receivers.seconds + 30,  # the server ends the run
        until_closed=True,
    )


def _round(
    experiment: Experiment,
    receivers: Receivers,
    scenario: Scenario,
    number: int,
    server: ReceiversResult,
    client: LoadResult,
) -> Round:
    seconds = server.elapsed_seconds
    return Round(
        strategy=receivers.strategy,
        scenario=scenario,
        round=number,
        connections=receivers.connections,
        payload_bytes=receivers.payload,
        receive_threads=receivers.threads,
        connections_per_region=receivers.connections_per_region,
        receive=receivers.receive,
        seconds=seconds,
        writer_interval_us=receivers.writer_interval_us,
        writer_hold_us=receivers.writer_hold_us,
        writer_busy=receivers.writer_busy,
        requests_per_second=server.requests / seconds,
        server_cpu_us_per_request=1e6 * server.receiver_cpu_seconds / max(server.requests, 1),
        mapped_percent=_percent(server.payload_bytes_mapped, server.payload_bytes_mapped + server.payload_bytes_copied),
        fallback_percent=_percent(server.fallbacks, server.read_locks),
        writer_locks_per_second=server.writer_locks / seconds,
        writer_late_percent=_percent(server.writer_late, server.writer_locks + server.writer_late),
        writer_cpu_percent=100 * server.writer_cpu_seconds / seconds,
        client_cpu_us_per_request=1e6 * client.cpu_seconds / max(client.requests, 1),
        wrong_replies=client.mismatches + client.errors,
        **{name: getattr(server, name) for name in _AS_REPORTED},
        **_distribution("lock_wait", server.lock_wait),
        **_distribution("receive", server.receive),
        **_distribution("writer_wait", server.writer_wait),
        **_distribution("writer_hold", server.writer_hold),
        **_distribution("client_latency", client.latency),
    )


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _distribution(name: str, latency: Latency) -> dict[str, Any]:
    return {f"{name}_{part}": getattr(latency, part) for part in ("p50_us", "p99_us", "p999_us", "max_us")}


def _check(experiment: Experiment) -> None:
    known = locks.names()
    unknown = [name for name in experiment.locks if name not in known]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 64  # what the processes need besides sockets
    hold, interval = experiment.writer_hold_us, experiment.writer_interval_us
    impossible = {
        f"no such lock strategy: {', '.join(unknown)}; there are {', '.join(known)}": unknown,
        "no lock strategy was named": not experiment.locks,
        "a lock strategy was named twice": len(set(experiment.locks)) < len(experiment.locks),
        "connections must be 1 or more": experiment.connections < 1,
        f"connections must be at most {descriptors}, as files may be open": experiment.connections > descriptors,
        "payload must be 1 byte to 1 GiB": not 1 <= experiment.payload <= 1 << 30,
        "receive threads must be 1 to 1024": not 1 <= experiment.receive_threads <= 1024,
        "there are more receive threads than connections": experiment.receive_threads > experiment.connections,
        "connections per region must be 0 or more": not 0 <= experiment.connections_per_region < 1 << 32,
        "seconds must be more than 0 and at most 3600": not 0 < experiment.seconds <= 3600,
        "rounds must be 1 to 1000": not 1 <= experiment.rounds <= 1000,
        "the writer's interval and hold must be 0 to 60 s": not (0 <= interval <= 6e7 and 0 <= hold <= 6e7),
        "the writer's hold must be shorter than its interval": (hold or interval) and hold >= interval,
    }
    for complaint, holds in impossible.items():
        if holds:
            raise ValueError(complaint)
