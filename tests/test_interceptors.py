"""Interceptors around the calls of servers and clients."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from conftest import Serving, Waits, until
from raw_peer import ERROR, REQUEST, RawPeer, frame

import zcrpc
from zcrpc.errors import Status


class Sums(Waits):
    def __init__(self) -> None:
        super().__init__()
        self.served: list[str] = []

    @zcrpc.method
    async def add(self, a: int, b: int = 0) -> int:
        self.served.append(zcrpc.context().method)
        await asyncio.sleep(0)
        return a + b

    @zcrpc.method
    def plain(self, a: int) -> int:
        self.served.append(zcrpc.context().method)
        return a

    @zcrpc.method
    async def size(self, value: memoryview) -> int:
        return len(value)

    @zcrpc.method
    async def fail(self) -> None:
        raise zcrpc.NotFound("no", details={"k": 1})


class Log:
    """An interceptor that writes down what it sees."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def __call__(self, call: zcrpc.Call, proceed: Any) -> Any:
        self.log.append(f"{self.name} > {call.method}{tuple(call.arguments)}{call.keywords or ''}")
        try:
            result = await proceed(call)
        except BaseException as error:
            self.log.append(f"{self.name} ! {type(error).__name__}")
            raise
        self.log.append(f"{self.name} < {result}")
        return result


async def test_the_first_is_the_outermost_on_both_sides(serving: Serving) -> None:
    log: list[str] = []
    around = [Log("c1", log), Log("c2", log)]
    async with serving(Sums(), interceptors=[Log("s1", log), Log("s2", log)]) as (_, address):
        async with zcrpc.connect(address, Sums, interceptors=around) as sums:
            assert await sums.add(1, b=2) == 3
            assert log == [
                *(f"{name} > Sums.add(1,){{'b': 2}}" for name in ("c1", "c2", "s1", "s2")),
                *(f"{name} < 3" for name in ("s2", "s1", "c2", "c1")),
            ]
            log.clear()
            assert await sums.plain(7) == 7
            assert log[0] == "c1 > Sums.plain(7,)"
            assert log[-1] == "c1 < 7"
            log.clear()
            with pytest.raises(zcrpc.NotFound) as caught:
                await sums.fail()
            assert caught.value.details == {"k": 1}
            assert log[4:] == [f"{name} ! NotFound" for name in ("s2", "s1", "c2", "c1")]


async def test_arguments_and_result_can_be_replaced(serving: Serving) -> None:
    async def doubles(call: zcrpc.Call, proceed: Any) -> Any:
        call.arguments = [2 * value for value in call.arguments]
        call.keywords = {"b": 100}
        return await proceed(call) + 1

    async with serving(Sums(), interceptors=[doubles]) as (_, address):
        async with zcrpc.connect(address, Sums, interceptors=[doubles]) as sums:
            assert await sums.add(1) == 106
    async with serving(Sums()) as (_, address), zcrpc.connect(address, Sums, interceptors=[doubles]) as sums:
        assert await sums.add(1) == 103


@pytest.mark.parametrize("waits", [False, True])
async def test_a_server_can_refuse(serving: Serving, waits: bool) -> None:
    service = Sums()

    async def refuse(call: zcrpc.Call, proceed: Any) -> Any:
        if waits:
            await asyncio.sleep(0.001)
        raise zcrpc.PermissionDenied(f"not {call.method}", details=["why"])

    async with serving(service, interceptors=[refuse]) as (server, address), zcrpc.connect(address, Sums) as sums:
        for call in (sums.add(1), asyncio.ensure_future(sums.plain(1))):  # type: ignore[call-overload]
            with pytest.raises(zcrpc.PermissionDenied, match=r"not Sums\.") as caught:
                await call
            assert caught.value.details == ["why"]
        assert not service.served
        assert server.stats().errors == 2


async def test_a_client_can_refuse_and_answer_by_itself(serving: Serving) -> None:
    async def cache(call: zcrpc.Call, proceed: Any) -> Any:
        if call.method == "Sums.add":
            return 42
        raise zcrpc.FailedPrecondition("not from here")

    async with serving(Sums()) as (server, address), zcrpc.connect(address, Sums, interceptors=[cache]) as sums:
        assert await sums.add(1) == 42
        with pytest.raises(zcrpc.FailedPrecondition):
            await sums.plain(1)
        assert server.stats().requests == 0


async def test_a_client_can_try_again_within_the_deadline(serving: Serving) -> None:
    deadlines: list[float] = []

    async def flaky(call: zcrpc.IncomingCall, proceed: Any) -> Any:
        assert call.deadline is not None
        deadlines.append(call.deadline)
        if len(deadlines) < 3:
            raise zcrpc.Unavailable("try again")
        return await proceed(call)

    async def retry(call: zcrpc.OutgoingCall, proceed: Any) -> Any:
        while True:
            try:
                return await proceed(call)
            except zcrpc.Unavailable:
                await asyncio.sleep(0.02)

    async with serving(Sums(), interceptors=[flaky]) as (server, address):
        async with zcrpc.connect(address, interceptors=[retry]) as client:
            assert await client.call("Sums.add", 1, 2, timeout=5.0) == 3
            assert server.stats().requests == 3
            assert 5 >= deadlines[0] > deadlines[1] > deadlines[2] > 4

            async def never(call: zcrpc.Call, proceed: Any) -> Any:
                raise zcrpc.Unavailable("still not")

        async with zcrpc.connect(address, interceptors=[retry, never]) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.call("Sums.add", 1, 2)


async def test_a_client_changes_metadata_and_deadline_and_reads_what_came_back(serving: Serving) -> None:
    seen: list[Any] = []

    async def serve(call: zcrpc.IncomingCall, proceed: Any) -> Any:
        seen.append((dict(call.metadata), call.deadline, call.kind, call.peer, call.identity))
        call.response_metadata["took"] = "7"
        assert call.context is zcrpc.context()
        return await proceed(call)

    async def trace(call: zcrpc.OutgoingCall, proceed: Any) -> Any:
        assert call.deadline is None
        assert call.metadata == {"mine": "1"}
        del call.metadata["mine"]
        call.metadata["trace"] = b"\x01"
        call.deadline = 3.0
        result = await proceed(call)
        seen.append(dict(call.response_metadata))
        assert (call.peer, call.kind, call.identity) == (address, "unary", None)
        return result

    async with serving(Sums(), interceptors=[serve]) as (_, address):
        async with zcrpc.connect(address, Sums, interceptors=[trace]) as sums:
            with zcrpc.outgoing(metadata={"mine": "1"}) as out:
                assert await sums.add(1) == 1
            assert out.response_metadata == {"took": "7"}
            (metadata, deadline, kind, peer, identity), back = seen
            assert (metadata, kind, identity, back) == ({"trace": b"\x01"}, "unary", None, {"took": "7"})
            assert 2 < deadline <= 3
            assert peer.startswith("tcp://127.0.0.1:")
            with pytest.raises(zcrpc.NotFound):
                with zcrpc.outgoing(metadata={"mine": "1"}) as out:
                    await sums.fail()
            assert out.response_metadata == {"took": "7"}


async def test_interceptors_see_calls_whose_arguments_do_not_fit(serving: Serving) -> None:
    log: list[str] = []

    async def waits(call: zcrpc.Call, proceed: Any) -> Any:
        await asyncio.sleep(0)
        return await proceed(call)

    async with serving(Sums(), interceptors=[Log("s", log), waits]) as (_, address):
        async with zcrpc.connect(address) as client:
            with pytest.raises(zcrpc.InvalidArgument, match="'a'"):
                await client.call("Sums.add", "x")
        async with await RawPeer.greeted(address) as peer:
            peer.send(frame(REQUEST, b"\xc1", method=peer.methods["Sums.add"], stream=1))
            answer = await peer.frame()
            assert (answer.kind, answer.method) == (ERROR, Status.INVALID_ARGUMENT)
    assert log == ["s > Sums.add()", "s ! InvalidArgument"] * 2


async def test_who_may_not_call_does_not_learn_what_fits(serving: Serving) -> None:
    async def refuse(call: zcrpc.Call, proceed: Any) -> Any:
        raise zcrpc.PermissionDenied("no")

    async with serving(Sums(), interceptors=[refuse]) as (_, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.PermissionDenied):
            await client.call("Sums.add", "x")


async def test_interceptor_that_raises_something_else(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(call: zcrpc.Call, proceed: Any) -> Any:
        raise LookupError("lost")

    async with serving(Sums(), interceptors=[broken]) as (_, address), zcrpc.connect(address, Sums) as sums:
        with pytest.raises(zcrpc.Unknown, match="LookupError: lost"):
            await sums.add(1)
        assert "Sums.add() raised LookupError" in caplog.text


async def test_cancelling_goes_through_interceptors_of_both_sides(serving: Serving) -> None:
    log: list[str] = []
    service = Sums()
    async with serving(service, interceptors=[Log("s", log)]) as (_, address):
        async with zcrpc.connect(address, Sums, interceptors=[Log("c", log)]) as sums:
            call = asyncio.ensure_future(sums.wait())
            await until(lambda: service.began)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: service.cancelled == 1)
            assert log[2:] == ["c ! CancelledError", "s ! CancelledError"]


async def test_views_are_let_go(serving: Serving) -> None:
    """`serving` asserts that no lease is left."""
    log: list[str] = []
    async with serving(Sums(), interceptors=[Log("s", log)]) as (_, address):
        async with zcrpc.connect(address, Sums) as sums:
            assert await sums.size(bytes(1 << 20)) == 1 << 20


@pytest.mark.parametrize("interceptors", [[5], ["log"], [None]])
def test_what_is_no_interceptor_is_refused(interceptors: Any) -> None:
    with pytest.raises(TypeError, match="an interceptor is"):
        zcrpc.Server(Sums(), interceptors=interceptors)
    with pytest.raises(TypeError, match="an interceptor is"):
        zcrpc.connect("tcp://127.0.0.1:1", interceptors=interceptors)


async def test_without_interceptors_handlers_are_called_as_they_are() -> None:
    from zcrpc.interceptors import Intercepted

    async def around(call: zcrpc.Call, proceed: Any) -> Any:
        return await proceed(call)

    service = Sums()
    assert zcrpc.Server(service).handlers[1][1] == service.add
    assert isinstance(zcrpc.Server(Sums(), interceptors=[around]).handlers[1][1], Intercepted)


# ---- streams


class Flows(zcrpc.Service):
    def __init__(self) -> None:
        self.contexts: list[zcrpc.Context] = []
        self.ended: list[str] = []

    @zcrpc.method
    async def count(self, n: int) -> AsyncIterator[int]:
        call = zcrpc.context()
        self.contexts.append(call)
        call.response_metadata["begun"] = "1"
        try:
            for number in range(n):
                assert zcrpc.context() is call
                yield number
                await asyncio.sleep(0)
            call.response_metadata["counted"] = str(n)
        finally:
            self.ended.append("count")

    @zcrpc.method
    async def total(self, items: AsyncIterator[int], times: int = 1) -> int:
        zcrpc.context().response_metadata["method"] = zcrpc.context().method
        return times * sum([item async for item in items])

    @zcrpc.method
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item
        zcrpc.context().response_metadata["saw"] = str(zcrpc.context().metadata.get("k", ""))

    @zcrpc.method
    async def breaks(self) -> AsyncIterator[int]:
        yield 1
        zcrpc.context().response_metadata["k"] = "v"
        raise zcrpc.DataLoss("gone")


async def numbers(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


class Wraps:
    """An interceptor that adds to every item, in both directions."""

    def __init__(self, add: int, log: list[str]) -> None:
        self.add = add
        self.log = log

    async def each(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        try:
            async for item in items:
                yield item + self.add
        finally:
            self.log.append(f"end {self.add}")

    async def __call__(self, call: zcrpc.Call, proceed: Any) -> Any:
        self.log.append(f"{call.kind} {self.add}")
        if call.items is not None:
            call.items = self.each(call.items)
        result = await proceed(call)
        return self.each(result) if call.kind.endswith("r-stream") or call.kind == "bidi-stream" else result + self.add


@pytest.mark.parametrize("typed", [True, False])
async def test_streams_go_through_interceptors_of_both_sides(serving: Serving, typed: bool) -> None:
    log: list[str] = []
    async with serving(Flows(), interceptors=[Wraps(1, log)]) as (_, address):
        async with zcrpc.connect(address, interceptors=[Wraps(100, log)]) as client:
            flows = client.use(Flows)
            items: Any = flows.count(3) if typed else client.stream("Flows.count", 3)
            assert [item async for item in items] == [101, 102, 103]
            assert log == ["server-stream 100", "server-stream 1", "end 1", "end 100"]
            log.clear()
            call: Any = flows.total(numbers(3), times=2) if typed else client.call("Flows.total", numbers(3), times=2)
            assert await call == 2 * (3 + 3 * 101) + 101
            assert sorted(log) == ["client-stream 1", "client-stream 100", "end 1", "end 100"]
            log.clear()
            items = flows.double(numbers(2)) if typed else client.stream("Flows.double", numbers(2))
            assert [item async for item in items] == [2 * 101 + 101, 2 * 102 + 101]
            assert sorted(log) == sorted([f"bidi-stream {n}" for n in (100, 1)] + [f"end {n}" for n in (100, 1)] * 2)


@pytest.mark.parametrize("intercepted", [False, True])
async def test_streams_have_a_context_and_metadata_both_ways(serving: Serving, intercepted: bool) -> None:
    service = Flows()
    around = [Wraps(0, [])] if intercepted else []
    async with serving(service, interceptors=around) as (_, address):
        async with zcrpc.connect(address, Flows, interceptors=around) as flows:
            with zcrpc.outgoing(metadata={"k": "v"}, timeout=5) as out:
                assert [item async for item in flows.count(2)] == [0, 1]
                assert out.response_metadata == {"begun": "1", "counted": "2"}
                (call,) = service.contexts
                assert call.metadata == {"k": "v"}
                assert call.deadline is not None
                assert call.deadline < 5
                assert await flows.total(numbers(4)) == 6
                assert out.response_metadata == {"method": "Flows.total"}
                assert [item async for item in flows.double(numbers(2))] == [0, 2]
                assert out.response_metadata == {"saw": "v"}
                with pytest.raises(zcrpc.DataLoss) as caught:
                    _ = [item async for item in flows.breaks()]
                assert out.response_metadata == caught.value.metadata == {"k": "v"}
            with pytest.raises(zcrpc.DeadlineExceeded):
                with zcrpc.outgoing(timeout=0.05):
                    async for _ in flows.count(1 << 40):
                        pass
            await until(lambda: len(service.ended) == 2)
            assert service.contexts[1].cancelled()


@pytest.mark.parametrize("leave", ["break", "aclose", "with", "forget"])
async def test_leaving_an_intercepted_stream_cancels_the_call(serving: Serving, leave: str) -> None:
    service, log = Flows(), list[str]()
    async with serving(service, interceptors=[Wraps(1, log)]) as (server, address):
        async with zcrpc.connect(address, Flows, interceptors=[Wraps(1, log)]) as flows:
            stream: Any = flows.count(1 << 40)
            if leave == "with":
                async with stream as items:
                    async for _ in items:
                        break
            else:
                async for _ in stream:
                    break
            if leave == "aclose":
                await stream.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            del stream
            gc.collect()
            await until(lambda: not server.stats().calls)
            assert service.ended == ["count"]
            assert service.contexts[0].cancelled()
            assert log.count("end 1") == 2


async def test_stream_refused_by_an_interceptor(serving: Serving) -> None:
    async def refuse(call: zcrpc.Call, proceed: Any) -> Any:
        raise zcrpc.PermissionDenied(f"no {call.kind}")

    service = Flows()
    async with serving(service, interceptors=[refuse]) as (server, address), zcrpc.connect(address, Flows) as flows:
        with pytest.raises(zcrpc.PermissionDenied, match="no server-stream"):
            await anext(flows.count(3))
        with pytest.raises(zcrpc.PermissionDenied, match="no client-stream"):
            await flows.total(numbers(3))
        with pytest.raises(zcrpc.PermissionDenied, match="no bidi-stream"):
            await anext(flows.double(numbers(3)))
        with pytest.raises(zcrpc.PermissionDenied):
            await anext(flows.count("not a number"))  # type: ignore[arg-type]
        assert not service.contexts
        assert server.stats().calls == 0


async def test_client_refuses_a_stream_and_stands_in_for_it(serving: Serving) -> None:
    async def cached(call: zcrpc.Call, proceed: Any) -> Any:
        if call.method == "Flows.count":
            return numbers(2)
        raise zcrpc.FailedPrecondition("not from here")

    async with serving(Flows()) as (server, address), zcrpc.connect(address, Flows, interceptors=[cached]) as flows:
        assert [item async for item in flows.count(99)] == [0, 1]
        stream = flows.double(numbers(3))
        with pytest.raises(zcrpc.FailedPrecondition):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert server.stats().requests == 0


async def test_one_consumer_at_a_time(serving: Serving) -> None:
    gate = asyncio.Event()

    async def waits(call: zcrpc.Call, proceed: Any) -> Any:
        await gate.wait()
        return await proceed(call)

    async with serving(Flows()) as (_, address), zcrpc.connect(address, Flows, interceptors=[waits]) as flows:
        stream = flows.count(1)
        first = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one consumer at a time"):
            await anext(stream)
        gate.set()
        assert await first == 0
        await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "test",
    [
        test_the_first_is_the_outermost_on_both_sides,
        test_a_client_changes_metadata_and_deadline_and_reads_what_came_back,
        test_cancelling_goes_through_interceptors_of_both_sides,
        lambda serving: test_streams_go_through_interceptors_of_both_sides(serving, True),
        lambda serving: test_streams_have_a_context_and_metadata_both_ways(serving, True),
    ],
)
def test_on_uvloop(serving: Serving, test: Any) -> None:
    uvloop.run(test(serving))


def test_log_level_of_refusals_is_not_error(caplog: pytest.LogCaptureFixture, serving: Serving) -> None:
    """A refusal is no fault of the server."""

    async def main() -> None:
        await test_a_server_can_refuse(serving, False)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert not caplog.records
