"""Interceptors around the calls of servers and clients."""

import asyncio
import logging
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


@pytest.mark.parametrize(
    "test",
    [
        test_the_first_is_the_outermost_on_both_sides,
        test_a_client_changes_metadata_and_deadline_and_reads_what_came_back,
        test_cancelling_goes_through_interceptors_of_both_sides,
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
