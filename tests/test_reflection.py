"""What a server tells about itself: its methods, and its statistics."""

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator
from typing import Any

import numpy
import pytest
from conftest import Serving, Waits, until

import zcrpc
from zcrpc.metering import BOUNDS, quantile
from zcrpc.reflection import MethodDescription, ParameterDescription
from zcrpc.statistics import Statistics


@dataclasses.dataclass
class Entry:
    key: str
    size: int = 0


class Store(zcrpc.Service):
    """Keeps blobs.

    In memory.
    """

    @zcrpc.method
    async def put(self, key: str, value: memoryview, *, note: str = "it's") -> int:
        """Keeps a blob. Its length in bytes."""
        return len(value)

    @zcrpc.method
    def entry(self, entry: Entry, /, *more: int) -> Entry | None:
        return entry

    @zcrpc.method
    async def tail(self, since: int) -> AsyncIterator[Entry]:
        yield Entry("a")

    @zcrpc.method
    async def load(self, rows: AsyncIterator[bytes]) -> int:
        return sum([len(row) async for row in rows])

    @zcrpc.method(name="open")
    async def open_(self, anything: Any) -> None: ...

    @zcrpc.method
    async def fail(self) -> None:
        raise zcrpc.NotFound("no")


async def described(address: str, what: str) -> dict[str, MethodDescription]:
    async with zcrpc.connect(address, zcrpc.Reflection) as reflection:
        return {each.name: each async for each in reflection.describe(what)}


async def test_services(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address, zcrpc.Reflection) as reflection:
        found = [each async for each in reflection.services()]
    assert [each.name for each in found] == ["Store", "zcrpc.Health", "zcrpc.Stats", "zcrpc.Reflection"]
    assert found[0].doc == "Keeps blobs.\n\nIn memory."
    assert set(found[0].methods) == {f"Store.{name}" for name in ("put", "entry", "tail", "load", "open", "fail")}


async def test_methods_kinds_signatures_docstrings_and_schemas(serving: Serving) -> None:
    async with serving(Store()) as (_, address):
        found = await described(address, "Store")
    put = found["Store.put"]
    assert (put.kind, put.doc) == ("unary", "Keeps a blob. Its length in bytes.")
    assert put.signature == """(key: str, value: memoryview, *, note: str = "it's") -> int"""
    assert put.parameters[0] == ParameterDescription(
        name="key", annotation="str", required=True, positional=True, named=True, schema={"type": "string"}
    )
    assert put.parameters[1].schema == {"type": "string", "contentEncoding": "base64"}
    assert (put.parameters[2].required, put.parameters[2].positional) == (False, False)
    assert (put.result, put.result_schema) == ("int", {"type": "integer"})

    entry = found["Store.entry"]
    assert [(each.name, each.required, each.named) for each in entry.parameters] == [
        ("entry", True, False),
        ("*more", False, False),
    ]
    schema = entry.parameters[0].schema
    assert schema is not None
    assert schema["$defs"]["Entry"]["required"] == ["key"]

    assert {name: each.kind for name, each in found.items()}["Store.tail"] == "server-stream"
    assert found["Store.tail"].result.endswith("Entry")
    assert found["Store.load"].kind == "client-stream"
    assert [(each.stream, each.annotation) for each in found["Store.load"].parameters] == [(True, "bytes")]
    assert found["Store.open"].parameters[0].schema is None


async def test_a_single_method_and_what_there_is_not(serving: Serving) -> None:
    async with serving(Store()) as (_, address):
        assert list(await described(address, "Store.put")) == ["Store.put"]
        assert "zcrpc.Health.check" in await described(address, "")
        with pytest.raises(zcrpc.NotFound, match="no service and no method 'Shop'"):
            await described(address, "Shop")


async def test_types_that_msgspec_has_no_word_for(serving: Serving) -> None:
    class Arrays(zcrpc.Service):
        @zcrpc.method
        async def mean(self, array: numpy.ndarray) -> float:  # type: ignore[type-arg]
            return float(array.mean())

    async with serving(Arrays()) as (_, address):
        found = await described(address, "Arrays")
    assert found["Arrays.mean"].parameters[0].schema == {"x-python-type": "numpy.ndarray"}


async def test_a_schema_that_is_too_long_is_left_out(serving: Serving) -> None:
    wide = dataclasses.make_dataclass(
        "Wide", [(f"a_rather_long_name_of_a_field_{number}", int) for number in range(2000)]
    )

    class Widths(zcrpc.Service):
        @zcrpc.method
        async def take(self, wide: wide) -> None: ...  # type: ignore[valid-type]

    async with serving(Widths()) as (_, address):
        found = await described(address, "Widths")
    assert [(each.name, each.schema) for each in found["Widths.take"].parameters] == [("wide", None)]


async def test_it_can_be_turned_off(serving: Serving) -> None:
    async with serving(Store(), introspection=False) as (_, address), zcrpc.connect(address) as client:
        assert not [name for name in client.methods if name.startswith(("zcrpc.Reflection", "zcrpc.Stats"))]
        assert "zcrpc.Health.check" in client.methods


# ---- statistics


async def test_a_snapshot(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address) as client:
        await client.call("Store.put", "k", bytes(100_000))
        snapshot = await client.use(Statistics).snapshot()
        assert snapshot.counters["requests"] == 2
        assert snapshot.counters["payload_bytes_mapped"] + snapshot.counters["payload_bytes_copied"] == 100_000
        assert snapshot.lock.strategy == "per-region"
        assert snapshot.lock.read_locks > 0
        assert (snapshot.measures, snapshot.methods) == (False, {})


async def test_methods_are_measured_while_somebody_watches(serving: Serving) -> None:
    service = Waits()
    async with serving(Store(), service) as (server, address), zcrpc.connect(address) as client:
        plain = {number: handler for number, (_, handler) in server.handlers.items()}
        watch = client.use(Statistics).watch(0.05)
        assert (await anext(watch)).measures  # type: ignore[call-overload]
        await client.call("Store.put", "k", b"")
        with pytest.raises(zcrpc.NotFound):
            await client.call("Store.fail")
        with pytest.raises(zcrpc.InvalidArgument):
            await client.call("Store.put", 1)
        with pytest.raises(zcrpc.DeadlineExceeded):
            await client.call("Waits.wait", timeout=0.05)
        assert [entry.key async for entry in client.use(Store).tail(0)] == ["a"]
        call = asyncio.ensure_future(client.call("Waits.wait"))
        await until(lambda: service.began == 2)
        measured = (await client.use(Statistics).snapshot()).methods
        assert measured["Store.put"].statuses == {"OK": 1, "INVALID_ARGUMENT": 1}
        assert measured["Store.fail"].statuses == {"NOT_FOUND": 1}
        assert measured["Waits.wait"].statuses == {"DEADLINE_EXCEEDED": 1}
        assert measured["Waits.wait"].active == 1
        assert 0.04 < measured["Waits.wait"].seconds < 5
        assert sum(measured["Store.put"].buckets) == 2
        assert measured["Store.tail"].statuses == {"OK": 1}
        assert measured["Store.tail"].active == 0
        call.cancel()
        await until(lambda: service.cancelled == 2)
        assert (await client.use(Statistics).snapshot()).methods["Waits.wait"].statuses["CANCELLED"] == 1
        await watch.aclose()  # type: ignore[attr-defined]
        await until(lambda: not server.meter.measures)
        assert {number: handler for number, (_, handler) in server.handlers.items()} == plain, "as they are again"


async def test_a_stream_that_is_left_is_measured_to_its_end(serving: Serving) -> None:
    class Endless(zcrpc.Service):
        @zcrpc.method
        async def count(self) -> AsyncIterator[int]:
            number = 0
            while True:
                yield (number := number + 1)
                await asyncio.sleep(0)

    async with serving(Endless()) as (server, address), zcrpc.connect(address, Endless) as endless:
        server.measure()
        async for number in endless.count():
            if number == 3:
                break
        await until(lambda: server.meter.methods["Endless.count"].statuses)
        counters = server.meter.methods["Endless.count"]
        assert ({status.name: count for status, count in counters.statuses.items()}, counters.active) == (
            {"CANCELLED": 1},
            0,
        )


async def test_intervals(serving: Serving) -> None:
    async with serving(Store()) as (server, address), zcrpc.connect(address, Statistics) as statistics:
        for interval in (0.0, math.nan, 1e9):
            with pytest.raises(zcrpc.InvalidArgument, match="interval="):
                async for _ in statistics.watch(interval):
                    pass
        assert not server.meter.measures


def test_quantiles_of_a_histogram() -> None:
    buckets = [0] * (len(BOUNDS) + 1)
    assert math.isnan(quantile(buckets, 0.5))
    buckets[BOUNDS.index(0.001)] = 100  # all between 0.5 and 1 ms
    assert quantile(buckets, 0.5) == pytest.approx(0.00075)
    assert quantile(buckets, 1.0) == pytest.approx(0.001)
    buckets[-1] = 100  # and as many over 10 s
    assert quantile(buckets, 0.99) == BOUNDS[-1]
    assert list(BOUNDS) == sorted(set(BOUNDS))
