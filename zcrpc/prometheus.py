"""Prometheus: a server's statistics, to be scraped. Needs `pip install zcrpc[prometheus]`.

endpoint = zcrpc.prometheus.start(server, 9464)                       # http://127.0.0.1:9464/metrics
...
endpoint.close()
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

try:
    import prometheus_client
except ImportError as error:
    raise ImportError("zcrpc.prometheus needs the Prometheus client: pip install zcrpc[prometheus]") from error

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector as Base
from prometheus_client.registry import CollectorRegistry

from zcrpc.metering import BOUNDS, Counters
from zcrpc.stats import Stats

if TYPE_CHECKING:
    from zcrpc.server import Server

# How long a scrape waits for the server's loop. One that is stuck is to be seen as such, not to stay unseen.
_PATIENCE_SECONDS: Final = 5.0

_GAUGES: Final = {
    "connections": "Connections that are open.",
    "calls": "Calls whose handlers wait for something.",
    "queued": "Calls that have come and are not begun.",
    "threads": "Blocking handlers that run.",
    "waiting": "Calls of blocking handlers that wait for a thread.",
    "streams": "Streams that are open, each direction of a call for itself.",
    "paused": "Connections that are not read now.",
    "outbound_bytes": "Bytes that wait to be sent.",
    "regions": "Regions of the arena.",
    "arena_bytes": "Bytes of regions.",
    "idle_bytes": "Bytes of regions that are kept warm.",
    "leases": "Payloads that are held.",
    "leased_bytes": "Bytes of payloads that are held.",
}
_COUNTERS: Final = {
    "requests": "Calls received.",
    "errors": "Calls answered with a status other than OK.",
    "refused": "Connections beyond the limit.",
    "accept_pauses": "Times that new connections had to wait for a file descriptor or memory.",
    "handshakes_failed": "Connections that did not get through TLS.",
    "unauthenticated": "Connections whose credentials were not accepted.",
    "violations": "Connections closed because their peer broke the protocol.",
    "bytes_in": "Bytes received.",
    "bytes_out": "Bytes sent.",
    "frames_in": "Frames received.",
    "frames_out": "Frames sent.",
    "sends_zerocopy": "Payloads sent without a copy.",
    "sends_zerocopy_copied": "Payloads that the kernel copied although they were to be sent without.",
    "items_in": "Items of streams received.",
    "items_out": "Items of streams sent.",
    "credit_stalls": "Times that a stream had to wait for its peer to take items.",
    "recycles": "Regions that were recycled.",
    "budget_refusals": "Times that the memory budget was used up.",
}
_KNOWN: Final = {*_GAUGES, *_COUNTERS, "payload_bytes_mapped", "payload_bytes_copied", "mapped_percent"}
_LOCK: Final = {
    "read_locks": "Regions found and held.",
    "fallbacks": "Regions held through the map lock because their own did not do.",
    "retries": "Regions looked up again because they changed underneath.",
    "misses": "Looked for a region where there is none.",
    "write_locks": "Write locks of the region map.",
    "waits": "Times that a lock had to be waited for.",
}


class Collector(Base):
    """A server's statistics for a registry of yours: `registry.register(Collector(server))`.

    measure: counts the calls of each method, too, from now on; see `Server.measure`. prefix: of all names.
    """

    def __init__(self, server: Server, *, measure: bool = True, prefix: str = "zcrpc_server") -> None:
        self._server = server
        self._prefix = prefix
        self._measures = measure
        if measure:
            server.measure()

    def close(self) -> None:
        """Measures no more."""
        if self._measures:
            self._measures = False
            self._server.meter.end()

    def describe(self) -> list[Metric]:
        """Nothing beforehand: to be registered, the server need not run yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry, in whatever thread. TimeoutError if the server's loop does not answer."""
        stats, methods = self._look()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"{self._prefix}_{name}", text, value=getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"{self._prefix}_{name}", text, value=getattr(stats, name))
        for field in dataclasses.fields(stats):
            value = getattr(stats, field.name)
            if field.name not in _KNOWN and isinstance(value, (int, float)):
                yield UnknownMetricFamily(f"{self._prefix}_{field.name}", "See zcrpc.Stats.", value=value)
        payload = {"mapped": stats.payload_bytes_mapped, "copied": stats.payload_bytes_copied}
        yield self._labelled("payload_bytes", "Bytes of payloads received into regions.", "how", payload)
        yield self._labelled("fallbacks", "Payloads that were not mapped.", "reason", stats.fallbacks)
        yield self._labelled("exhausted", "Calls answered with RESOURCE_EXHAUSTED.", "limit", stats.exhausted)
        for name, text in _LOCK.items():
            counts = {self._server.regions.locks: getattr(stats.lock, name)}
            yield self._labelled(f"lock_{name}", text, "strategy", counts)
        yield from self._of_methods(methods)

    def _look(self) -> tuple[Stats, dict[str, Counters]]:
        server, loop = self._server, self._server._loop
        if loop is None or not loop.is_running() or server.is_closed or loop is _running_loop():
            return server.stats(), dict(server.meter.methods)

        async def look() -> tuple[Stats, dict[str, Counters]]:
            return server.stats(), dict(server.meter.methods)

        return asyncio.run_coroutine_threadsafe(look(), loop).result(_PATIENCE_SECONDS)

    def _labelled(self, name: str, text: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}_{name}", text, labels=[label])
        for value, count in values.items():
            family.add_metric([value], count)
        return family

    def _of_methods(self, methods: dict[str, Counters]) -> Iterator[Metric]:
        prefix = self._prefix
        active = GaugeMetricFamily(f"{prefix}_active_calls", "Calls that are served now.", labels=["method"])
        ended = CounterMetricFamily(f"{prefix}_ended_calls", "Calls, by how they ended.", labels=["method", "status"])
        duration = HistogramMetricFamily(f"{prefix}_call_duration_seconds", "How long calls took.", labels=["method"])
        for method, counters in methods.items():
            active.add_metric([method], counters.active)
            for status, count in list(counters.statuses.items()):
                ended.add_metric([method, status.name], count)
            duration.add_metric([method], _cumulative(list(counters.buckets)), counters.seconds)
        yield from (active, ended, duration)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()


class Endpoint:
    """A running endpoint. Made by `start`."""

    def __init__(self, http: Any, thread: threading.Thread, registry: CollectorRegistry, collector: Collector) -> None:
        self._http = http
        self._thread = thread
        self._registry = registry
        self._collector = collector

    @property
    def port(self) -> int:
        """The one that was bound."""
        port: int = self._http.server_port
        return port

    def close(self) -> None:
        """Listens no more, and measures no more. Takes up to half a second."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._registry.unregister(self._collector)
        self._collector.close()


def start(
    server: Server,
    port: int,
    host: str = "127.0.0.1",
    *,
    registry: CollectorRegistry | None = None,
    measure: bool = True,
) -> Endpoint:
    """Serves a server's statistics by HTTP, in a thread of its own; port 0: any free one. host: "0.0.0.0" lets others
    than this machine scrape, whoever they are. registry: one of yours, to which they are added; else one that has the
    process's figures besides. measure: each method's calls, too. Raises OSError if the port cannot be had."""
    if registry is None:
        registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)
    http, thread = prometheus_client.start_http_server(port, host, registry)
    collector = Collector(server, measure=measure)
    registry.register(collector)
    return Endpoint(http, thread, registry, collector)
