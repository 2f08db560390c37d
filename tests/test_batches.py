"""Many calls in one batch, whose handlers are awaited one after the other inside one worker."""

import asyncio
import contextvars
import fcntl
import socket
import termios
import time
from collections.abc import AsyncIterator

import pytest
from raw_peer import ERROR, REQUEST, RESPONSE, RawPeer, frame

import zcrpc
from zcrpc._path import SUBMIT_FROM

ANSWER = 26  # bytes of the shortest frame of an answer with a number

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError("as arrays do")

    __hash__ = None  # type: ignore[assignment]


incomparable: contextvars.ContextVar[Incomparable] = contextvars.ContextVar("incomparable")


class Mixed(zcrpc.Service):
    def __init__(self) -> None:
        self.order: list[int] = []
        self.go = asyncio.Event()
        self.socket: socket.socket  # of a peer that has read nothing yet

    @zcrpc.method
    async def answered(self) -> int:
        """Answers that have arrived at the socket."""
        waiting = bytearray(4)
        fcntl.ioctl(self.socket.fileno(), termios.FIONREAD, waiting)
        return int.from_bytes(waiting, "little") // ANSWER

    @zcrpc.method
    async def blocks(self, seconds: float) -> None:
        time.sleep(seconds)

    @zcrpc.method
    async def left(self) -> float | None:
        return zcrpc.context().deadline

    @zcrpc.method
    async def quick(self, number: int) -> int:
        self.order.append(number)
        return number

    @zcrpc.method
    async def slow(self, number: int) -> list[int]:
        task = asyncio.current_task()
        variable.set(number)
        await self.go.wait()
        assert asyncio.current_task() is task
        return [number, variable.get()]

    @zcrpc.method
    async def traces(self, number: int) -> int:
        found = variable.get()
        variable.set(number)
        return found

    @zcrpc.method
    async def sets_incomparable(self, number: int) -> int:
        incomparable.set(Incomparable())
        return number

    @zcrpc.method
    async def cancels_itself(self, number: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        task.cancel()
        return number

    @zcrpc.method
    async def fails(self, number: int) -> None:
        raise zcrpc.NotFound(str(number))

    @zcrpc.method
    async def deadline(self, payload: memoryview) -> float | None:
        return zcrpc.context().deadline

    @zcrpc.method
    def plain(self, number: int) -> int:
        return number

    @zcrpc.method
    def plain_traces(self, number: int) -> list[bool | int]:
        found = variable.get()
        variable.set(number)
        return [asyncio.current_task() is None, found]

    @zcrpc.method
    async def takes_cancelling_back(self, number: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.uncancel()
        return number

    @zcrpc.method
    async def nothing(self) -> None:
        """Takes and returns nothing."""

    @zcrpc.method
    async def size(self, payload: memoryview, unit: int = 1) -> int:
        return len(payload) // unit

    @zcrpc.method
    async def text(self, payload: bytes) -> str:
        assert type(payload) is bytes
        return payload[:4].decode()


@pytest.fixture
def service() -> Mixed:
    return Mixed()


@pytest.fixture
async def address(service: Mixed) -> AsyncIterator[str]:
    server = zcrpc.Server(service)
    async with server.listen("tcp://127.0.0.1:0") as address:
        yield address


async def test_those_behind_one_that_suspends_are_served_at_once(address: str, service: Mixed) -> None:
    async with await RawPeer.greeted(address) as peer:
        for stream in range(1, 31):
            peer.call("Mixed.slow" if stream % 3 == 0 else "Mixed.quick", stream, stream=stream)
        answered = [(await peer.frame()).stream for _ in range(20)]
        assert answered == service.order == [stream for stream in range(1, 31) if stream % 3]
        service.go.set()
        for _ in range(10):
            answer = await peer.frame()
            assert answer.kind == RESPONSE
            assert answer.header == [[answer.stream, answer.stream]]


async def test_no_handler_sees_what_another_has_left(address: str) -> None:
    async with await RawPeer.greeted(address) as peer:
        names = ["traces", "cancels_itself", "quick", "plain"] * 8
        for stream, name in enumerate(names, 1):
            peer.call(f"Mixed.{name}", stream, stream=stream)
        for stream, name in enumerate(names, 1):
            answer = await peer.frame()
            assert answer.stream == stream
            if name != "cancels_itself":  # what becomes of that differs between Pythons
                assert (answer.kind, answer.header) == (RESPONSE, [0 if name == "traces" else stream])


async def test_variables_that_cannot_be_compared_are_a_trace_as_any_other() -> None:
    token = incomparable.set(Incomparable())
    try:
        server = zcrpc.Server(Mixed())
        async with server.listen("tcp://127.0.0.1:0") as address, await RawPeer.greeted(address) as peer:
            for stream in range(1, 9):
                peer.call("Mixed.sets_incomparable" if stream % 3 else "Mixed.quick", stream, stream=stream)
            answers = [await peer.frame() for _ in range(8)]
    finally:
        incomparable.reset(token)
    assert [(answer.kind, answer.header) for answer in answers] == [(RESPONSE, [stream]) for stream in range(1, 9)]


async def test_plain_handlers_are_in_no_task_and_see_no_variables_of_others(address: str) -> None:
    async with zcrpc.connect(address) as client:
        calls = [
            client.call(f"Mixed.{name}", n) for n in range(1, 9) for name in ("plain_traces", "traces", "plain_traces")
        ]
        answers = await asyncio.gather(*calls)
        assert answers == [[True, 0], 0, [True, 0]] * 8


async def test_who_takes_cancelling_itself_back_harms_no_other(address: str, service: Mixed) -> None:
    async with zcrpc.connect(address) as client:
        calls = [asyncio.ensure_future(client.call("Mixed.takes_cancelling_back", n)) for n in range(4)]
        slow = [asyncio.ensure_future(client.call("Mixed.slow", n)) for n in range(4)]
        await asyncio.gather(*calls, return_exceptions=True)  # what becomes of those differs between Pythons
        slow += [asyncio.ensure_future(client.call("Mixed.slow", n)) for n in range(4)]
        await asyncio.sleep(0.01)
        service.go.set()
        assert await asyncio.gather(*slow) == [[n, n] for n in range(4)] * 2


async def test_who_waited_too_long_behind_others_is_not_begun(address: str, service: Mixed) -> None:
    async with await RawPeer.greeted(address) as peer:
        blocks, quick, plain = (peer.methods[f"Mixed.{name}"] for name in ("blocks", "quick", "plain"))
        calls = [
            frame(REQUEST, [[0.05]], method=blocks, stream=1),
            frame(REQUEST, [[2]], method=quick, stream=2, deadline_ms=20),
            frame(REQUEST, [[3]], method=plain, stream=3, deadline_ms=20),
            frame(REQUEST, [[4]], method=quick, stream=4, deadline_ms=5000),
            frame(REQUEST, [[]], method=peer.methods["Mixed.left"], stream=5, deadline_ms=5000),
        ]
        peer.send(b"".join(calls))
        answers = [await peer.frame() for _ in calls]
    assert [each.kind for each in answers] == [RESPONSE, ERROR, ERROR, RESPONSE, RESPONSE]
    assert [each.method for each in answers[1:3]] == [zcrpc.Status.DEADLINE_EXCEEDED] * 2
    assert service.order == [4]
    assert answers[4].header[0] <= 4.95  # of what the others had taken, nothing is left


async def test_errors_are_each_calls_own(address: str) -> None:
    async with zcrpc.connect(address, Mixed) as client:
        calls = [client.fails(n) if n % 2 else client.quick(n) for n in range(20)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    for number, outcome in enumerate(found):
        if number % 2:
            assert isinstance(outcome, zcrpc.NotFound)
            assert outcome.message == str(number)
        else:
            assert outcome == number


@pytest.mark.parametrize("length", [0, 3, 511, 512, 4096, 100_000])
async def test_a_sole_buffer_is_what_the_method_takes_and_the_caller_wants(address: str, length: int) -> None:
    async with zcrpc.connect(address) as client:
        for buffer in (bytes(length), memoryview(bytes(length)), bytearray(length)):
            assert await client.call("Mixed.size", buffer) == length
            assert await client.call("Mixed.size", buffer, 2) == length // 2
        assert await client.call("Mixed.text", b"text" * length) == "text"[: 4 * length]
        assert await client.call("Mixed.text", memoryview(b"text" * length)) == "text"[: 4 * length]
        left = await client.call("Mixed.deadline", memoryview(bytes(length)), timeout=60)
        assert 0 < left <= 60
        assert await client.call("Mixed.deadline", memoryview(bytes(length))) is None
        with pytest.raises(zcrpc.InvalidArgument):
            await client.call("Mixed.quick", memoryview(bytes(length)))


async def test_the_first_of_many_answers_leave_before_the_last_handler_begins(address: str, service: Mixed) -> None:
    count = 4 * SUBMIT_FROM
    async with await RawPeer.greeted(address) as peer:
        service.socket = peer.writer.get_extra_info("socket")
        method = peer.methods["Mixed.answered"]
        peer.send(b"".join(frame(REQUEST, method=method, stream=stream) for stream in range(1, count + 1)))
        answered = [(await peer.frame()).header[0] for _ in range(count)]
    assert answered[:SUBMIT_FROM] == [0] * SUBMIT_FROM
    assert all(count - SUBMIT_FROM >= here > 0 for here in answered[2 * SUBMIT_FROM :: SUBMIT_FROM])
    assert answered == sorted(answered)
