"""Prometheus: a server's statistics, to be scraped. Needs `pip install zcrpc[prometheus]`.

endpoint = zcrpc.prometheus.start(server, 9464)                       # http://127.0.0.1:9464/metrics
...
endpoint.close()
"""

from __future__ import annotations

import asyncio
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
)
from prometheus_client.registry import Collector as Base
from prometheus_client.registry import CollectorRegistry

from zcrpc.counting import counted
from zcrpc.metering import BOUNDS, Counters
from zcrpc.regions import LockCounters
from zcrpc.stats import Stats

if TYPE_CHECKING:
    from zcrpc.server import Server

# How long a scrape waits for the server's loop. One that is stuck is to be seen as such, not to stay unseen.
_PATIENCE_SECONDS: Final = 5.0

# Two counters that are one metric, by how the bytes came.
_PAYLOADS: Final = {"payload_bytes_mapped": "mapped", "payload_bytes_copied": "copied"}


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
        for name, grows, text in counted(Stats):
            if name not in _PAYLOADS:
                family = CounterMetricFamily if grows else GaugeMetricFamily
                yield family(f"{self._prefix}_{name}", text, value=getattr(stats, name))
        payloads = {how: getattr(stats, name) for name, how in _PAYLOADS.items()}
        yield self._labelled("payload_bytes", "Bytes of payloads received into regions.", "how", payloads)
        yield self._labelled("fallbacks", "Payloads that were not mapped.", "reason", stats.fallbacks)
        yield self._labelled("exhausted", "Calls answered with RESOURCE_EXHAUSTED.", "limit", stats.exhausted)
        for name, _, text in counted(LockCounters):
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
