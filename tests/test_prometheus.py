"""The Prometheus endpoint, scraped by HTTP and read by the client's own parser."""

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import prometheus_client
import pytest
from conftest import Serving
from prometheus_client.parser import text_string_to_metric_families

import zcrpc
from zcrpc import prometheus
from zcrpc.counting import counted
from zcrpc.regions import LockCounters
from zcrpc.stats import Stats

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Store(zcrpc.Service):
    @zcrpc.method
    async def put(self, value: memoryview) -> int:
        return len(value)

    @zcrpc.method
    async def fail(self) -> None:
        raise zcrpc.NotFound("no")

    @zcrpc.method
    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


async def scrape(port: int) -> Samples:
    text = await asyncio.to_thread(read, port)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_scrape(serving: Serving) -> None:
    async with serving(Store(), receive="copy") as (server, address), zcrpc.connect(address, Store) as store:
        endpoint = prometheus.start(server, 0)
        try:
            for _ in range(3):
                await store.put(bytes(100_000))
            with pytest.raises(zcrpc.NotFound):
                await store.fail()
            assert [number async for number in store.count(5)] == list(range(5))
            samples = await scrape(endpoint.port)
        finally:
            endpoint.close()
    assert samples["zcrpc_server_connections", ()] == 1
    assert samples["zcrpc_server_requests_total", ()] == 5
    assert samples["zcrpc_server_errors_total", ()] == 1
    assert samples["zcrpc_server_items_out_total", ()] == 5
    assert samples["zcrpc_server_payload_bytes_total", (("how", "copied"),)] == 300_000
    assert samples["zcrpc_server_payload_bytes_total", (("how", "mapped"),)] == 0
    assert samples["zcrpc_server_fallbacks_total", (("reason", "policy"),)] == 3
    assert samples["zcrpc_server_exhausted_total", (("limit", "calls"),)] == 0
    assert samples["zcrpc_server_lock_read_locks_total", (("strategy", "per-region"),)] >= 3
    put = ("method", "Store.put")
    assert samples["zcrpc_server_ended_calls_total", (put, ("status", "OK"))] == 3
    assert samples["zcrpc_server_ended_calls_total", (("method", "Store.fail"), ("status", "NOT_FOUND"))] == 1
    assert samples["zcrpc_server_active_calls", (put,)] == 0
    assert samples["zcrpc_server_call_duration_seconds_count", (put,)] == 3
    assert samples["zcrpc_server_call_duration_seconds_bucket", (("le", "+Inf"), put)] == 3
    assert 0 < samples["zcrpc_server_call_duration_seconds_sum", (put,)] < 1
    assert samples["process_open_fds", ()] > 0
    assert not server.meter.measures, "closed, it measures no more"


async def test_every_number_of_the_statistics_is_there(serving: Serving) -> None:
    async with serving(Store()) as (server, _):
        registry = prometheus_client.CollectorRegistry()
        registry.register(prometheus.Collector(server, measure=False))
        names = {metric.name.removeprefix("zcrpc_server_") for metric in registry.collect()}
        assert not server.meter.measures
    elsewhere = {"mapped_percent", "lock", "payload_bytes_mapped", "payload_bytes_copied"}
    assert {*Stats.__dataclass_fields__} - elsewhere <= names
    assert {f"lock_{name}" for name in LockCounters.__dataclass_fields__} <= names


def test_every_number_says_what_it_is() -> None:
    said = {each.name: each for each in counted(Stats)}
    assert {*Stats.__dataclass_fields__} - {*said} == {"exhausted", "fallbacks", "mapped_percent", "lock"}
    assert said["requests"].grows
    assert not said["connections"].grows
    for each in (*said.values(), *counted(LockCounters)):
        assert each.text[0].isupper(), each
        assert each.text.endswith("."), each


async def test_a_registry_of_ones_own(serving: Serving) -> None:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("mine", "Of the program.", registry=registry).inc()
    async with serving(Store()) as (server, _):
        endpoint = prometheus.start(server, 0, registry=registry, measure=False)
        samples = await scrape(endpoint.port)
        endpoint.close()
        assert samples["mine_total", ()] == 1
        assert ("zcrpc_server_connections", ()) in samples
        assert [metric.name for metric in registry.collect()] == ["mine"]


async def test_after_the_servers_end(serving: Serving) -> None:
    async with serving(Store()) as (server, address), zcrpc.connect(address, Store) as store:
        await store.put(b"x")
    endpoint = prometheus.start(server, 0)
    samples = await scrape(endpoint.port)
    endpoint.close()
    assert (samples["zcrpc_server_requests_total", ()], samples["zcrpc_server_connections", ()]) == (1, 0)


async def test_before_its_beginning() -> None:
    server = zcrpc.Server(Store())
    endpoint = prometheus.start(server, 0)
    assert (await scrape(endpoint.port))["zcrpc_server_connections", ()] == 0
    endpoint.close()
    await server.close()


async def test_a_loop_that_is_stuck_is_a_failed_scrape(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_PATIENCE_SECONDS", 0.2)
    async with serving(Store()) as (server, address), zcrpc.connect(address, Store) as store:
        endpoint = prometheus.start(server, 0)
        failed: list[BaseException] = []

        def scrape_once() -> None:
            try:
                read(endpoint.port)
            except urllib.error.HTTPError as error:
                failed.append(error)
                error.close()

        thread = threading.Thread(target=scrape_once)
        thread.start()
        thread.join(10)  # the loop does nothing meanwhile
        assert len(failed) == 1
        await asyncio.to_thread(endpoint.close)
        assert await store.put(b"x") == 1, "it goes on"


async def test_a_port_that_is_taken(serving: Serving) -> None:
    async with serving(Store()) as (server, _):
        endpoint = prometheus.start(server, 0)
        with pytest.raises(OSError, match="in use"):
            prometheus.start(server, endpoint.port)
        endpoint.close()
