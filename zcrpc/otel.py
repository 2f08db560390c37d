"""OpenTelemetry: spans and metrics of calls, as interceptors. Needs `pip install zcrpc[otel]`.

    server = zcrpc.Server(Store(), interceptors=[zcrpc.otel.server()])
    client = await zcrpc.connect(address, Store, interceptors=[zcrpc.otel.client()])

Names are those of the semantic conventions for RPC (https://opentelemetry.io/docs/specs/semconv/rpc/), of 1.40, with
"zcrpc" for `rpc.system.name`. Which statuses are errors is as those say for gRPC, whose statuses these are: at a client
all but OK, at a server those that are the server's fault. The context travels in metadata, by the propagators that are
configured: `traceparent`, `tracestate` and `baggage`, unless somebody changed that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
except ImportError as error:
    raise ImportError("zcrpc.otel needs OpenTelemetry: pip install zcrpc[otel]") from error

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from zcrpc.address import parse_all
from zcrpc.errors import Status, ZcrpcError
from zcrpc.interceptors import IncomingCall, Interceptor, OutgoingCall, Proceed
from zcrpc.metering import outcome

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.40.0"
# What the conventions advise for durations of calls.
_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_FAULTS: Final = frozenset(
    {
        Status.UNKNOWN,
        Status.DEADLINE_EXCEEDED,
        Status.UNIMPLEMENTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
        Status.DATA_LOSS,
    }
)
Attributes = dict[str, str | int]


def server(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    address: str | None = None,
) -> Interceptor:
    """For `Server(interceptors=[…])`: a span for each call, of which the caller's is the parent and in which the
    handler runs, and the histogram `rpc.server.call.duration`. address: what clients know the server by, for
    `server.address` and `server.port`. Without providers the global ones are used."""
    return _Server(tracer_provider, meter_provider, {} if address is None else _where(address, "server")).intercept


def client(
    *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Interceptor:
    """For `connect(interceptors=[…])`: a span for each call, whose context is sent along, and the histogram
    `rpc.client.call.duration`."""
    return _Client(tracer_provider, meter_provider).intercept


class _Side:
    """What is the same on both sides."""

    def __init__(self, side: str, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer = trace.get_tracer("zcrpc", tracer_provider=tracer_provider, schema_url=_SCHEMA)
        meter = metrics.get_meter("zcrpc", meter_provider=meter_provider, schema_url=_SCHEMA)
        direction = "incoming" if side == "server" else "outgoing"
        self._duration = meter.create_histogram(
            f"rpc.{side}.call.duration",
            unit="s",
            description=f"Measures the duration of an {direction} Remote Procedure Call (RPC).",
            explicit_bucket_boundaries_advisory=_BOUNDS,
        )

    def end(self, span: Span, begun: float, attributes: Attributes, status: Status | None, error: Any) -> None:
        """A call is over. status: None if it came to none. error: None where that is no error."""
        seconds = time.perf_counter() - begun
        found: Attributes = {} if status is None else {"rpc.response.status_code": status.name}
        if error is not None:
            found["error.type"] = status.name if status is not None else _qualified(type(error))
            message = error.message if isinstance(error, ZcrpcError) else str(error) or type(error).__name__
            span.set_status(StatusCode.ERROR, message)
        span.set_attributes(found)
        self._duration.record(seconds, {**attributes, **found}, context=trace.set_span_in_context(span))
        span.end()


class _Server(_Side):
    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None, own: Attributes
    ) -> None:
        super().__init__("server", tracer_provider, meter_provider)
        self._own = own

    async def intercept(self, call: IncomingCall, proceed: Proceed) -> Any:
        begun = time.perf_counter()
        attributes: Attributes = {"rpc.system.name": "zcrpc", "rpc.method": call.method, **self._own}
        parent = propagate.extract({key: each for key, each in call.metadata.items() if isinstance(each, str)})
        peer = {**_where(call.peer, "client"), **_where(call.peer, "network.peer"), **_transport(call.peer)}
        span = self._tracer.start_span(call.method, parent, SpanKind.SERVER, {**attributes, **peer})
        token = contexts.attach(trace.set_span_in_context(span, parent))
        try:
            result = await proceed(call)
        except BaseException as error:
            self._failed(span, begun, attributes, call, error)
            raise
        finally:
            contexts.detach(token)
        if call.kind in ("server-stream", "bidi-stream"):
            return self._until_the_end(result, span, begun, attributes, call, parent)
        self.end(span, begun, attributes, Status.OK, None)
        return result

    async def _until_the_end(
        self,
        items: Any,
        span: Span,
        begun: float,
        attributes: Attributes,
        call: IncomingCall,
        parent: contexts.Context,
    ) -> AsyncIterator[Any]:
        token = contexts.attach(trace.set_span_in_context(span, parent))
        try:
            async for item in items:
                yield item
            self.end(span, begun, attributes, Status.OK, None)
        except BaseException as error:
            self._failed(span, begun, attributes, call, error)
            raise
        finally:
            contexts.detach(token)
            await _close(items)

    def _failed(
        self, span: Span, begun: float, attributes: Attributes, call: IncomingCall, error: BaseException
    ) -> None:
        status = outcome(call, error)
        if status is Status.UNKNOWN and not isinstance(error, ZcrpcError):
            span.record_exception(error)
        self.end(span, begun, attributes, status, error if status in _FAULTS else None)


class _Client(_Side):
    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        super().__init__("client", tracer_provider, meter_provider)

    async def intercept(self, call: OutgoingCall, proceed: Proceed) -> Any:
        begun = time.perf_counter()
        attributes: Attributes = {
            "rpc.system.name": "zcrpc",
            "rpc.method": call.method,
            **_where(call.peer, "server"),
        }
        span = self._tracer.start_span(
            call.method, kind=SpanKind.CLIENT, attributes={**attributes, **_transport(call.peer)}
        )
        propagate.inject(call.metadata, trace.set_span_in_context(span))
        try:
            result = await proceed(call)
        except BaseException as error:
            self._failed(span, begun, attributes, error)
            raise
        if call.kind in ("server-stream", "bidi-stream"):
            return self._until_the_end(result, span, begun, attributes)
        self.end(span, begun, attributes, Status.OK, None)
        return result

    async def _until_the_end(self, items: Any, span: Span, begun: float, attributes: Attributes) -> AsyncIterator[Any]:
        try:
            async for item in items:
                yield item
            self.end(span, begun, attributes, Status.OK, None)
        except BaseException as error:
            self._failed(span, begun, attributes, error)
            raise
        finally:
            await _close(items)

    def _failed(self, span: Span, begun: float, attributes: Attributes, error: BaseException) -> None:
        status = None
        if isinstance(error, ZcrpcError):
            status = error.status
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            status = Status.CANCELLED
        self.end(span, begun, attributes, status, error)


async def _close(items: Any) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


def _qualified(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _where(address: str, who: str) -> Attributes:
    """Address and port of a peer, as attributes; of several peers neither, since nobody knows which it will be."""
    try:
        found = parse_all(address)
    except ValueError:
        return {}
    if len(found) != 1:
        return {}
    if found[0].is_unix:
        return {f"{who}.address": found[0].path}
    return {f"{who}.address": found[0].host, f"{who}.port": found[0].port}


def _transport(address: str) -> Attributes:
    return {"network.transport": "unix" if address.startswith("unix:") else "tcp"}
