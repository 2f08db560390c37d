"""A call that waits for its answer, as a future among asyncio's own; and the order in which a batch wakes who waits."""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import sys
import traceback
import weakref
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from by_hand import Ends, Frame, in_hand, response
from raw_peer import CANCEL, ERROR, REQUEST

import zcrpc
from zcrpc._path import Pending
from zcrpc.calling import ClientConnection
from zcrpc.codec import BYTES, VIEWS
from zcrpc.serving import ServerConnection

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


class Nothing(zcrpc.Service):
    @zcrpc.method
    async def nothing(self) -> None: ...


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    async with in_hand(Nothing()) as ends:
        yield ends


def begin(ends: Ends, stream: int = 1, buffers: int = BYTES, seconds: float | None = None) -> Pending:
    """A call that is in flight."""
    connection = ends.client.connection
    assert isinstance(connection, ClientConnection)
    pending = connection.pending[stream] = Pending(connection, stream, buffers)
    if seconds is not None:
        pending.tick = connection.reactor.deadlines.add(seconds, pending)
    return pending


def result(value: Any, stream: int = 1) -> Frame:
    return response(stream, msgspec.msgpack.encode([value]))


def failure(stream: int, status: zcrpc.Status = zcrpc.Status.NOT_FOUND) -> Frame:
    return Frame(ERROR, stream, msgspec.msgpack.encode(["not here"]), method=status)


async def awaiting(pending: Pending) -> Any:
    return await pending


# ---- one call


@pytest.mark.parametrize("value", [None, 1, "text", b"inline", [1, [2]], {"key": 1}])
async def test_its_task_gets_the_result(ends: Ends, value: Any) -> None:
    pending = begin(ends)
    task = asyncio.ensure_future(awaiting(pending))
    await asyncio.sleep(0)
    assert not pending.done()
    await ends.client.deal(result(value))
    assert task.done()  # in the same turn, when the batch was over
    assert await task == value
    assert pending.done()
    assert pending.result() == value
    assert pending.exception() is None


async def test_whoever_awaits_it_later_gets_the_result_too(ends: Ends) -> None:
    pending = begin(ends)
    await ends.client.deal(result(7))
    assert await pending == await awaiting(pending) == 7


async def test_an_error_is_raised_once_and_then_it_is_gone(ends: Ends) -> None:
    pending = begin(ends)
    task = asyncio.ensure_future(awaiting(pending))
    await asyncio.sleep(0)
    await ends.client.deal(failure(1))
    with pytest.raises(zcrpc.NotFound, match="not here"):
        await task
    assert pending.done()
    assert pending.exception() is None  # whom it was told keeps it: its traceback leads to what holds the call
    with pytest.raises(asyncio.InvalidStateError):
        pending.result()


@pytest.mark.parametrize("value", [(), (1,), (1, 2), ValueError("a result"), StopIteration(3), None])
async def test_a_result_is_what_it_is(ends: Ends, value: Any) -> None:
    for traced in (False, True):
        pending = begin(ends)
        task = asyncio.ensure_future(awaiting(pending))
        await asyncio.sleep(0)
        before = sys.gettrace()
        if traced:
            sys.settrace(lambda *_: None)
        try:
            pending.set_result(value)
            found = await task
        finally:
            sys.settrace(before)
        assert found is value
        with pytest.raises(StopIteration) as stop:
            next(iter(pending))  # type: ignore[call-overload]
        assert stop.value.value is value


async def test_a_tracer_changes_nothing(ends: Ends) -> None:
    """In its presence Python asks for the next value, where it sends None otherwise."""
    seen = []

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        seen.append(event)
        return trace

    async def caller() -> list[Any]:
        found: list[Any] = [await first]
        try:
            found.append(await second)
        except zcrpc.NotFound as error:
            found.append(error.message)
        try:
            await third
        except asyncio.CancelledError:
            found.append("cancelled")
        return found

    first, second, third = (begin(ends, stream) for stream in (1, 2, 3))
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        task = asyncio.ensure_future(caller())
        await asyncio.sleep(0)
        await ends.client.deal(result((1, 2)))
        await ends.client.deal(failure(2))
        third.cancel()  # type: ignore[attr-defined]
        assert await task == [[1, 2], "not here", "cancelled"]
    finally:
        sys.settrace(before)
    assert "call" in seen


async def test_one_task_awaits_it(ends: Ends) -> None:
    pending = begin(ends)
    task = asyncio.ensure_future(awaiting(pending))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="await"):
        await asyncio.wait_for(awaiting(pending), 1)
    for use in (asyncio.shield, asyncio.gather):
        with pytest.raises(RuntimeError, match="one task"):
            use(pending)
    await ends.client.deal(result(1))
    assert await task == 1


async def test_it_does_not_take_nonsense(ends: Ends) -> None:
    pending = begin(ends)
    with pytest.raises(asyncio.InvalidStateError):
        pending.result()
    with pytest.raises(asyncio.InvalidStateError):
        pending.exception()
    with pytest.raises(TypeError):
        pending.set_exception("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Pending(None, 1, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reactor"):
        Pending(zcrpc._path.Connection(), 1, 0)
    pending.set_result(1)
    for again in (lambda: pending.set_result(2), lambda: pending.set_exception(ValueError())):
        with pytest.raises(asyncio.InvalidStateError):
            again()
    assert pending.cancel() is False  # type: ignore[attr-defined]
    assert pending.result() == 1
    assert pending.get_loop() is asyncio.get_running_loop()  # type: ignore[attr-defined]


# ---- cancellation and deadlines


async def test_a_task_that_is_cancelled_cancels_it_with_its_message(ends: Ends) -> None:
    pending = begin(ends)
    task = asyncio.ensure_future(awaiting(pending))
    await asyncio.sleep(0)
    task.cancel("no more")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert pending.cancelled()  # type: ignore[attr-defined]
    assert caught.value.args == ("no more",) or sys.version_info >= (3, 11)
    with pytest.raises(asyncio.CancelledError, match="no more"):
        pending.result()
    await ends.client.deal(result(1))  # too late
    assert pending.cancelled()  # type: ignore[attr-defined]


async def test_a_task_that_is_cancelled_after_the_answer_came_is_cancelled_all_the_same(ends: Ends) -> None:
    first, second = begin(ends, 1), begin(ends, 2)
    late = asyncio.ensure_future(awaiting(second))

    async def caller() -> Any:
        value = await first
        late.cancel()  # its answer was in the same batch, behind this one
        return value

    task = asyncio.ensure_future(caller())
    await asyncio.sleep(0)
    await ends.client.deal(result(1), result(2, 2))
    assert await task == 1
    with pytest.raises(asyncio.CancelledError):
        await late
    assert second.result() == 2


@pytest.mark.parametrize("answered", [False, True])
async def test_timeouts_around_it(ends: Ends, answered: bool) -> None:
    async def bounded(stream: int) -> Any:
        async with asyncio.timeout(0.02):
            return await begin(ends, stream)

    async def work() -> list[Any]:
        calls = [bounded(1), asyncio.wait_for(awaiting(begin(ends, 2)), 0.02), asyncio.shield(awaiting(begin(ends, 3)))]
        return await asyncio.gather(*calls, return_exceptions=True)

    task = asyncio.ensure_future(work())
    if not answered:
        await asyncio.sleep(0.05)
    else:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await ends.client.deal(result(1, 1), result(2, 2), result(3, 3))
    found = await task
    assert found[2] == 3
    assert found[:2] == [1, 2] if answered else all(isinstance(each, TimeoutError) for each in found[:2])


async def test_a_group_of_calls_of_which_one_fails(ends: Ends) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(awaiting(begin(ends, stream))) for stream in (1, 2, 3)]
            await asyncio.sleep(0)
            await ends.client.deal(result(1, 1), failure(2))
    assert [type(error) for error in caught.value.exceptions] == [zcrpc.NotFound]
    assert tasks[0].result() == 1
    assert tasks[2].cancelled()


async def test_the_deadline_of_a_call_that_was_answered_in_the_same_tick(ends: Ends) -> None:
    calls = [begin(ends, stream, seconds=0) for stream in (1, 2)]
    await asyncio.sleep(0)
    sent = await ends.client.deal(result(1, 1))
    assert sent == []
    with pytest.raises(zcrpc.DeadlineExceeded):
        await calls[1]
    assert await calls[0] == 1
    assert len(ends.client.reactor.deadlines) == 0
    await asyncio.sleep(0)
    assert [frame.stream for frame in ends.client.frames if frame.kind == CANCEL] == [2]


# ---- a batch


async def test_those_who_wait_are_woken_in_the_order_of_answers_in_their_contexts_and_in_no_task(ends: Ends) -> None:
    order: list[int] = []
    found: list[Any] = []

    async def caller(stream: int) -> None:
        variable.set(stream)
        pending = begin(ends, stream)
        await pending
        order.append(stream)
        task = asyncio.current_task()
        found.append((variable.get(), task is not None and task.get_name()))

    tasks = [asyncio.create_task(caller(stream), name=str(stream)) for stream in range(1, 9)]
    await asyncio.sleep(0)
    streams = [5, 3, 8, 1, 2, 7, 6, 4]
    await ends.client.deal(*(failure(stream) if stream == 8 else result(stream, stream) for stream in streams))
    assert order == [stream for stream in streams if stream != 8]
    assert found == [(stream, str(stream)) for stream in order]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [index for index, outcome in enumerate(outcomes, 1) if outcome is not None] == [8]
    assert variable.get() is None


async def test_what_those_who_were_woken_send_leaves_with_the_batch(ends: Ends) -> None:
    async def caller(stream: int) -> None:
        await begin(ends, stream)
        ends.client.connection.send_ping(bytes([stream]))

    tasks = [asyncio.create_task(caller(stream)) for stream in range(1, 5)]
    await asyncio.sleep(0)
    sent = await ends.client.deal(*(result(None, stream) for stream in range(1, 5)))
    assert [frame.header for frame in sent] == [b"\1", b"\2", b"\3", b"\4"]
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_who_ends_the_loop_when_woken_does_not_lose_the_others(ends: Ends, kind: type[BaseException]) -> None:
    async def caller(stream: int) -> int:
        await begin(ends, stream)
        if stream == 2:
            raise kind(stream)
        return stream

    tasks = [asyncio.create_task(caller(stream)) for stream in range(1, 5)]
    await asyncio.sleep(0)
    with pytest.raises(kind):
        await ends.client.deal(*(result(None, stream) for stream in range(1, 5)))
    assert not ends.client.reactor.dispatching
    found = await asyncio.gather(*tasks[:1], *tasks[2:])  # the loop goes on here, which it need not
    assert found == [1, 3, 4]
    assert tasks[1].done()
    with pytest.raises(kind):
        tasks[1].result()


async def test_who_closes_the_reactor_when_woken_does_not_lose_the_others(ends: Ends) -> None:
    async def caller(stream: int) -> int:
        await begin(ends, stream)
        if stream == 1:
            ends.client.reactor.close()
        return stream

    tasks = [asyncio.create_task(caller(stream)) for stream in range(1, 4)]
    unanswered = asyncio.create_task(caller(4))
    await asyncio.sleep(0)
    await ends.client.deal(*(result(None, stream) for stream in range(1, 4)))
    assert await asyncio.gather(*tasks) == [1, 2, 3]
    with pytest.raises(zcrpc.Unavailable):
        await unanswered


async def test_one_event_that_cannot_be_dealt_with_does_not_lose_the_others(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [asyncio.ensure_future(awaiting(begin(ends, stream))) for stream in (1, 2, 3)]
    await asyncio.sleep(0)
    connection = ends.client.connection
    assert isinstance(connection, ClientConnection)
    broken, connection.pending[2] = connection.pending[2], object()  # type: ignore[assignment]
    await ends.client.deal(*(result(stream, stream) for stream in (1, 2, 3)))
    assert "could not be dealt with" in caplog.text
    assert [await calls[0], await calls[2]] == [1, 3]
    connection.pending[2] = broken
    ends.client.reactor.close()
    with pytest.raises(zcrpc.Unavailable):
        await calls[1]


# ---- what keeps what alive


@pytest.mark.parametrize("outcome", ["kept", "raised", "cancelled", "late"])
async def test_a_payload_dies_with_its_last_view(ends: Ends, outcome: str) -> None:
    class Marked(Exception):
        pass

    died: list[bool] = []
    gc.collect()  # of what other tests have left

    async def caller() -> None:
        value = await begin(ends, buffers=VIEWS)
        weakref.finalize(value, died.append, True)
        if outcome == "raised":
            raise Marked

    gc.disable()
    try:
        task = asyncio.ensure_future(caller())
        await asyncio.sleep(0)
        header = b"\x91\xd8\x02" + bytes(8) + (5).to_bytes(8, "little")
        if outcome in ("cancelled", "late"):
            task.cancel()
        if outcome == "late":
            await asyncio.gather(task, return_exceptions=True)
        await ends.client.deal(response(1, header, b"bytes"))
        (found,) = await asyncio.gather(task, return_exceptions=True)
        if outcome == "raised":
            assert isinstance(found, Marked)
            traceback.clear_frames(found.__traceback__)
        del task, found
        assert died == ([True] if outcome in ("kept", "raised") else [])
        assert not [each for each in gc.get_objects() if type(each) is Pending]
    finally:
        gc.enable()


async def test_a_call_that_was_taken_apart_is_harmless(ends: Ends) -> None:
    """The garbage collector takes cycles apart before their last references are gone."""
    found: list[str] = []

    class Witness:
        def __init__(self, pending: Pending) -> None:
            self.pending = pending

        def __del__(self) -> None:
            found.append("died")

    pending = begin(ends)
    pending.sink = Witness(pending)  # a cycle
    ends.client.connection.pending.clear()
    del pending
    gc.collect()
    assert found == ["died"]
    assert not [each for each in gc.get_objects() if type(each) is Pending]


def members(kind: type) -> list[str]:
    return [name for name, each in vars(kind).items() if type(each).__name__ == "member_descriptor"]


@pytest.mark.parametrize("value", ["deleted", None, 3, "text", object()])
@pytest.mark.parametrize("owner", [zcrpc._path.Reactor, zcrpc._path.Connection])
async def test_members_that_make_no_sense_do_not_crash(
    owner: type, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sets them so, but what is under Python's feet must hold."""
    for end in (ClientConnection, ServerConnection):
        monkeypatch.setattr(end, "abort", lambda _: None)  # the connection is needed for the next one
    async with in_hand(Nothing()) as ends:
        method = ends.methods("nothing")
        calls = [Frame(REQUEST, 1, method=method), Frame(REQUEST, 2, b"\x91\x91\xc4\0", method=method)]
        for hand, name in itertools.product((ends.client, ends.server), members(owner)):
            target: Any = hand.reactor if owner is zcrpc._path.Reactor else hand.connection
            pending: Any = begin(ends, seconds=60)
            pending.add_done_callback(lambda _: None, context=contextvars.copy_context())
            before = getattr(target, name)
            with contextlib.suppress(TypeError):  # where a number belongs
                setattr(target, name, value) if value != "deleted" else delattr(target, name)
            with contextlib.suppress(Exception):
                await hand.deal(*calls, result(1), Frame(ERROR, 9), result(2, 2))
            call: Any = ends.caller.call("Nothing.nothing", b"", timeout=1)
            with contextlib.suppress(Exception):
                call.send(None)
            setattr(target, name, before)
            call.close()
        ends.client.connection.pending.clear()  # type: ignore[attr-defined]
