"""Spans and metrics, taken from OpenTelemetry's own SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Serving, Waits, until
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import rpc_attributes
from opentelemetry.semconv._incubating.metrics import rpc_metrics
from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    network_attributes,
    server_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode

import zcrpc
from zcrpc import otel


class Telemetry:
    """Providers that keep what they get."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    @property
    def providers(self) -> dict[str, Any]:
        return {"tracer_provider": self.tracers, "meter_provider": self.meters}

    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str, kind: SpanKind) -> ReadableSpan:
        (found,) = [span for span in self.spans() if span.name == name and span.kind is kind]
        return found

    def points(self, name: str) -> list[Any]:
        """Of a histogram."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


class Store(Waits):
    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self.tracer = telemetry.tracers.get_tracer("store")
        self.tenants: list[Any] = []

    @zcrpc.method
    async def put(self, value: bytes) -> int:
        self.tenants.append(baggage.get_baggage("tenant"))
        with self.tracer.start_as_current_span("disk"):
            await asyncio.sleep(0)
        return len(value)

    @zcrpc.method
    async def absent(self) -> None:
        raise zcrpc.NotFound("no such key")

    @zcrpc.method
    async def broken(self) -> None:
        raise LookupError("oh no")

    @zcrpc.method
    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            with self.tracer.start_as_current_span("step"):
                yield number
                await asyncio.sleep(0)
        if to == 13:
            raise zcrpc.DataLoss("unlucky")


async def test_a_call_is_one_trace_from_client_to_handler(serving: Serving, telemetry: Telemetry) -> None:
    service = Store(telemetry)
    around = [otel.server(**telemetry.providers, address="tcp://store.example:7000")]
    async with serving(service, interceptors=around) as (_, address):
        async with zcrpc.connect(address, Store, interceptors=[otel.client(**telemetry.providers)]) as store:
            token = context.attach(baggage.set_baggage("tenant", "blue"))
            with telemetry.tracers.get_tracer("test").start_as_current_span("request"):
                assert await store.put(b"abc") == 3
            context.detach(token)
    request = telemetry.named("request", SpanKind.INTERNAL)
    outgoing = telemetry.named("Store.put", SpanKind.CLIENT)
    incoming = telemetry.named("Store.put", SpanKind.SERVER)
    disk = telemetry.named("disk", SpanKind.INTERNAL)
    assert [span.parent.span_id for span in (outgoing, incoming, disk)] == [
        span.context.span_id for span in (request, outgoing, incoming)
    ]
    assert len({span.context.trace_id for span in telemetry.spans()}) == 1
    assert service.tenants == ["blue"]

    host, port = address.removeprefix("tcp://").split(":")
    common = {
        rpc_attributes.RPC_SYSTEM_NAME: "zcrpc",
        rpc_attributes.RPC_METHOD: "Store.put",
        rpc_attributes.RPC_RESPONSE_STATUS_CODE: "OK",
        network_attributes.NETWORK_TRANSPORT: "tcp",
    }
    assert outgoing.attributes == {
        **common,
        server_attributes.SERVER_ADDRESS: host,
        server_attributes.SERVER_PORT: int(port),
    }
    assert incoming.attributes is not None
    peer_port = incoming.attributes[client_attributes.CLIENT_PORT]
    assert incoming.attributes == {
        **common,
        server_attributes.SERVER_ADDRESS: "store.example",
        server_attributes.SERVER_PORT: 7000,
        client_attributes.CLIENT_ADDRESS: "127.0.0.1",
        client_attributes.CLIENT_PORT: peer_port,
        network_attributes.NETWORK_PEER_ADDRESS: "127.0.0.1",
        network_attributes.NETWORK_PEER_PORT: peer_port,
    }
    assert outgoing.status.status_code is incoming.status.status_code is StatusCode.UNSET


async def test_durations(serving: Serving, telemetry: Telemetry) -> None:
    async with serving(Store(telemetry), interceptors=[otel.server(**telemetry.providers)]) as (_, address):
        async with zcrpc.connect(address, Store, interceptors=[otel.client(**telemetry.providers)]) as store:
            await store.put(b"")
            await store.put(b"")
            with pytest.raises(zcrpc.NotFound):
                await store.absent()
    for name in (rpc_metrics.RPC_SERVER_CALL_DURATION, rpc_metrics.RPC_CLIENT_CALL_DURATION):
        found = {point.attributes[rpc_attributes.RPC_METHOD]: point for point in telemetry.points(name)}
        assert (found["Store.put"].count, found["Store.absent"].count) == (2, 1)
        assert found["Store.put"].attributes[rpc_attributes.RPC_RESPONSE_STATUS_CODE] == "OK"
        assert found["Store.absent"].attributes[rpc_attributes.RPC_RESPONSE_STATUS_CODE] == "NOT_FOUND"
        assert 0 < found["Store.put"].sum < 1
        assert found["Store.put"].explicit_bounds[0] == 0.005
        assert client_attributes.CLIENT_PORT not in found["Store.put"].attributes, "one series per client else"


async def test_errors_are_a_clients_always_and_a_servers_if_they_are_its_fault(
    serving: Serving, telemetry: Telemetry
) -> None:
    async with serving(Store(telemetry), interceptors=[otel.server(**telemetry.providers)]) as (_, address):
        async with zcrpc.connect(address, interceptors=[otel.client(**telemetry.providers)]) as client:
            for method in ("Store.absent", "Store.broken", "Store.nothing"):
                with pytest.raises(zcrpc.ZcrpcError):
                    await client.call(method)
            with pytest.raises(zcrpc.InvalidArgument):
                await client.call("Store.put", 5)
            with pytest.raises(TypeError):
                await client.call("Store.put", object())
    kinds = (SpanKind.CLIENT, SpanKind.SERVER)
    absent = [telemetry.named("Store.absent", kind) for kind in kinds]
    assert [span.status.status_code for span in absent] == [StatusCode.ERROR, StatusCode.UNSET]
    assert absent[0].status.description == "no such key"
    assert absent[0].attributes is not None
    assert absent[0].attributes[error_attributes.ERROR_TYPE] == "NOT_FOUND"
    broken = [telemetry.named("Store.broken", kind) for kind in kinds]
    assert [span.status.status_code for span in broken] == [StatusCode.ERROR, StatusCode.ERROR]
    assert [event.attributes["exception.type"] for event in broken[1].events] == ["LookupError"]
    nothing = telemetry.named("Store.nothing", SpanKind.CLIENT)
    assert nothing.attributes is not None
    assert nothing.attributes[rpc_attributes.RPC_RESPONSE_STATUS_CODE] == "UNIMPLEMENTED"
    unsent = [span for span in telemetry.spans() if span.name == "Store.put" and span.kind is SpanKind.CLIENT][1]
    assert unsent.attributes is not None
    assert unsent.attributes[error_attributes.ERROR_TYPE] == "TypeError"
    assert rpc_attributes.RPC_RESPONSE_STATUS_CODE not in unsent.attributes


async def test_streams_last_until_their_end(serving: Serving, telemetry: Telemetry) -> None:
    async with serving(Store(telemetry), interceptors=[otel.server(**telemetry.providers)]) as (_, address):
        async with zcrpc.connect(address, Store, interceptors=[otel.client(**telemetry.providers)]) as store:
            assert [number async for number in store.count(3)] == [0, 1, 2]
            await until(lambda: len(telemetry.spans()) == 5)
            outgoing = telemetry.named("Store.count", SpanKind.CLIENT)
            incoming = telemetry.named("Store.count", SpanKind.SERVER)
            steps = [span for span in telemetry.spans() if span.name == "step"]
            assert {span.parent.span_id for span in steps if span.parent} == {incoming.context.span_id}
            assert incoming.parent is not None
            assert incoming.parent.span_id == outgoing.context.span_id
            telemetry.exporter.clear()

            with pytest.raises(zcrpc.DataLoss):
                async for _ in store.count(13):
                    pass
            for kind in (SpanKind.CLIENT, SpanKind.SERVER):
                assert telemetry.named("Store.count", kind).status.status_code is StatusCode.ERROR
            telemetry.exporter.clear()

            async for number in store.count(1_000_000):
                if number == 2:
                    break
            await until(lambda: len([span for span in telemetry.spans() if span.name == "Store.count"]) == 2)
            for kind in (SpanKind.CLIENT, SpanKind.SERVER):
                span = telemetry.named("Store.count", kind)
                assert span.attributes is not None
                assert span.attributes[rpc_attributes.RPC_RESPONSE_STATUS_CODE] == "CANCELLED"
    assert trace.get_current_span() is trace.INVALID_SPAN, "nothing is left over in the consumer"


async def test_deadlines_and_cancelling(serving: Serving, telemetry: Telemetry) -> None:
    service = Store(telemetry)
    async with serving(service, interceptors=[otel.server(**telemetry.providers)]) as (_, address):
        async with zcrpc.connect(address, interceptors=[otel.client(**telemetry.providers)]) as client:
            with pytest.raises(zcrpc.DeadlineExceeded):
                await client.call("Store.wait", timeout=0.05)
            await until(lambda: len(telemetry.spans()) == 2)
            found = {span.kind: span.attributes[rpc_attributes.RPC_RESPONSE_STATUS_CODE] for span in telemetry.spans()}
            assert found == {SpanKind.CLIENT: "DEADLINE_EXCEEDED", SpanKind.SERVER: "DEADLINE_EXCEEDED"}
            telemetry.exporter.clear()
            call = asyncio.ensure_future(client.call("Store.wait"))
            await until(lambda: service.began == 2)
            call.cancel()
            await until(lambda: len(telemetry.spans()) == 2)
            found = {span.kind: span.attributes[rpc_attributes.RPC_RESPONSE_STATUS_CODE] for span in telemetry.spans()}
            assert found == {SpanKind.CLIENT: "CANCELLED", SpanKind.SERVER: "CANCELLED"}


async def test_unix_sockets_and_callers_without_telemetry(
    serving: Serving, telemetry: Telemetry, tmp_path: Any
) -> None:
    path = f"unix://{tmp_path}/s"
    async with serving(Store(telemetry), address=path, interceptors=[otel.server(**telemetry.providers)]) as (_, where):
        async with zcrpc.connect(where) as client:
            await client.call("Store.put", b"", metadata={"traceparent": "nonsense", "binary": b"\xff"})
    span = telemetry.named("Store.put", SpanKind.SERVER)
    assert span.parent is None
    assert span.attributes is not None
    assert span.attributes[network_attributes.NETWORK_TRANSPORT] == "unix"
    assert span.attributes[network_attributes.NETWORK_PEER_ADDRESS] == f"{tmp_path}/s"
    assert server_attributes.SERVER_ADDRESS not in span.attributes
