"""Both runners, on both loops, must give handlers what a plain task gives them."""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from zcrpc import eager
from zcrpc.eager import Suspended, WorkerRunner

RUNNERS: list[Any] = [WorkerRunner]
if sys.version_info >= (3, 12):
    RUNNERS.append(eager.TaskRunner)

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Bench:
    """A runner in a running loop, called as the reactor calls it: from a callback, with no current task."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.loop = asyncio.get_running_loop()

    async def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What `start` returned or raised."""
        outcome: asyncio.Future[Any] = self.loop.create_future()

        def callback() -> None:
            assert asyncio.current_task() is None
            try:
                started = self.runner.start(coroutine)
            except BaseException as error:
                outcome.set_result((None, error, None))
            else:
                if isinstance(started, Suspended):
                    end: asyncio.Future[Any] = self.loop.create_future()
                    started.then(lambda result, error: end.set_result((result, error)))
                    outcome.set_result((started, None, end))
                else:
                    outcome.set_result((started, None, None))
            assert asyncio.current_task() is None

        self.loop.call_soon(callback)
        return await outcome

    async def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result, waited for if need be."""
        started, error, end = await self.begin(coroutine)
        if end is not None:
            started, error = await end
        if error is not None:
            raise error
        return started

    async def warm(self, workers: int = 3) -> None:
        """Parks workers, so that first steps run by hand."""
        gate = asyncio.Event()
        ends = [await self.begin(_wait(gate)) for _ in range(workers)]
        gate.set()
        for _, _, end in ends:
            await end


async def _wait(gate: asyncio.Event) -> None:
    await gate.wait()


Case = Callable[[Bench], Coroutine[Any, Any, None]]


@pytest.fixture(params=RUNNERS, ids=lambda runner: runner.__name__)
def runner_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, runner_class: Any) -> Callable[[Case], None]:
    def run_case(case: Case) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            runner = runner_class(loop)
            bench = Bench(runner)
            await bench.warm()
            await asyncio.wait_for(case(bench), 20)
            runner.close()
            await asyncio.sleep(0)
            gc.collect()

        with asyncio.Runner(loop_factory=request.param) as loop_runner:
            loop_runner.run(main())
        assert not complaints

    return run_case


def test_returns_at_once(run: Callable[[Case], None]) -> None:
    async def handler() -> int:
        return 7

    async def case(bench: Bench) -> None:
        assert await bench.begin(handler()) == (7, None, None)

    run(case)


def test_raises_at_once(run: Callable[[Case], None]) -> None:
    async def handler() -> None:
        raise KeyError("k")

    async def case(bench: Bench) -> None:
        _, error, end = await bench.begin(handler())
        assert isinstance(error, KeyError)
        assert end is None

    run(case)


@pytest.mark.parametrize("delay", [0, 0.01])
def test_suspends_and_returns(run: Callable[[Case], None], delay: float) -> None:
    async def handler() -> int:
        for _ in range(3):
            await asyncio.sleep(delay)
        return 7

    async def case(bench: Bench) -> None:
        started, _, end = await bench.begin(handler())
        assert isinstance(started, Suspended)
        assert await end == (7, None)

    run(case)


def test_suspends_and_raises(run: Callable[[Case], None]) -> None:
    async def handler() -> None:
        await asyncio.sleep(0.001)
        raise KeyError("k")

    async def case(bench: Bench) -> None:
        with pytest.raises(KeyError):
            await bench.finish(handler())

    run(case)


def test_more_handlers_wait_than_workers_are_parked(run: Callable[[Case], None]) -> None:
    gate = None

    async def handler(number: int) -> int:
        await gate.wait()
        return number

    async def case(bench: Bench) -> None:
        nonlocal gate
        gate = asyncio.Event()
        ends = [(await bench.begin(handler(number)))[2] for number in range(600)]
        gate.set()
        assert [(await end)[0] for end in ends] == list(range(600))
        assert await bench.finish(handler(1)) == 1

    run(case)


def test_current_task_is_the_same_from_the_first_line_on(run: Callable[[Case], None]) -> None:
    async def handler() -> list[Any]:
        seen = [asyncio.current_task()]
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())
        await asyncio.sleep(0.001)
        seen.append(asyncio.current_task())
        return seen

    async def case(bench: Bench) -> None:
        first, second, third = await bench.finish(handler())
        assert isinstance(first, asyncio.Task)
        assert first is second is third

    run(case)


def test_context_is_its_own_and_clean(run: Callable[[Case], None]) -> None:
    async def at_once(value: str) -> str:
        before = variable.get()
        variable.set(value)
        return before

    async def waits(value: str) -> str:
        before = variable.get()
        variable.set(value)
        await asyncio.sleep(0)
        assert variable.get() == value
        return before

    async def case(bench: Bench) -> None:
        for handler in (at_once, waits, at_once, waits):
            assert await bench.finish(handler(handler.__name__)) == "unset"
        assert variable.get() == "unset"

    run(case)


def test_context_reset_in_the_handler_does_not_matter(run: Callable[[Case], None]) -> None:
    async def handler() -> str:
        token = variable.set("x")
        await asyncio.sleep(0)
        variable.reset(token)
        return variable.get()

    async def case(bench: Bench) -> None:
        assert [await bench.finish(handler()) for _ in range(3)] == ["unset"] * 3

    run(case)


@pytest.mark.parametrize("ticks", [0, 1, 5])
def test_cancel_reaches_the_handler_where_it_waits(run: Callable[[Case], None], ticks: int) -> None:
    seen: list[str] = []

    async def handler() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def case(bench: Bench) -> None:
        started, _, end = await bench.begin(handler())
        for _ in range(ticks):
            await asyncio.sleep(0)
        started.cancel()
        result, error = await end
        assert result is None
        assert isinstance(error, asyncio.CancelledError)
        assert seen == ["cancelled"]
        assert await bench.finish(_seven()) == 7

    run(case)


def test_cancel_in_the_very_tick_of_suspending(run: Callable[[Case], None]) -> None:
    """The window between hand-over and the worker's next step."""
    states: list[Any] = []

    async def handler(waited_for: asyncio.Future[None]) -> None:
        try:
            await waited_for
        finally:
            states.append(waited_for.cancelled())

    async def case(bench: Bench) -> None:
        loop = bench.loop
        future: asyncio.Future[None] = loop.create_future()
        end: asyncio.Future[Any] = loop.create_future()

        def callback() -> None:
            started = bench.runner.start(handler(future))
            started.then(lambda result, error: end.set_result(error))
            started.cancel()

        loop.call_soon(callback)
        assert isinstance(await end, asyncio.CancelledError)
        assert states == [True]  # the future was cancelled too, as Task.cancel does

    run(case)


def test_cancel_in_the_very_tick_when_the_future_is_done_already(run: Callable[[Case], None]) -> None:
    async def handler(waited_for: asyncio.Future[None]) -> str:
        try:
            await waited_for
        except asyncio.CancelledError:
            return "cancelled"
        return "not cancelled"

    async def case(bench: Bench) -> None:
        loop = bench.loop
        future: asyncio.Future[None] = loop.create_future()
        end: asyncio.Future[Any] = loop.create_future()

        def callback() -> None:
            started = bench.runner.start(handler(future))
            started.then(lambda result, error: end.set_result(result))
            future.set_result(None)
            started.cancel()

        loop.call_soon(callback)
        assert await end == "cancelled"
        assert await bench.finish(_seven()) == 7

    run(case)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("self_inflicted", [True, False])
def test_cancel_in_the_tick_in_which_the_worker_is_made(
    run: Callable[[Case], None], runner_class: Any, self_inflicted: bool, waits: bool
) -> None:
    """Its task has not taken its first step when the handler has suspended."""
    seen: list[str] = []

    async def handler() -> str:
        if self_inflicted:
            asyncio.current_task().cancel()
        try:
            await (asyncio.sleep(30) if waits else asyncio.sleep(0))
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0.001)
            assert asyncio.current_task() is not None
            return "cleaned up"
        return "never"

    async def case(bench: Bench) -> None:
        fresh = Bench(runner_class(bench.loop))
        end: asyncio.Future[Any] = bench.loop.create_future()

        def callback() -> None:
            started = fresh.runner.start(handler())
            started.then(lambda result, error: end.set_result((result, error)))
            if not self_inflicted:
                started.cancel()

        bench.loop.call_soon(callback)
        assert await end == ("cleaned up", None)
        assert seen == ["cancelled"]
        assert await fresh.finish(_seven()) == 7
        fresh.runner.close()
        await asyncio.sleep(0)

    run(case)


def test_first_steps_run_at_once_however_many_wait(run: Callable[[Case], None], runner_class: Any) -> None:
    async def case(bench: Bench) -> None:
        fresh = Bench(runner_class(bench.loop))
        gate = asyncio.Event()
        done: asyncio.Future[Any] = bench.loop.create_future()

        def callback() -> None:
            results = []
            for _ in range(50):
                fresh.runner.start(_wait(gate)).then(lambda result, error: None)
                results += [fresh.runner.start(_seven()) for _ in range(3)]
            done.set_result(results)

        bench.loop.call_soon(callback)
        assert await done == [7] * 150
        gate.set()
        for _ in range(5):
            await asyncio.sleep(0)
        fresh.runner.close()
        await asyncio.sleep(0)

    run(case)


def test_cancel_may_be_refused_by_the_handler(run: Callable[[Case], None]) -> None:
    async def handler() -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            return "went on"
        return "never"

    async def case(bench: Bench) -> None:
        started, _, end = await bench.begin(handler())
        started.cancel()
        assert await end == ("went on", None)
        task = await bench.finish(_current())
        assert task.cancelling() == 0  # whoever comes next does not inherit the request

    run(case)


def test_cancel_after_the_end_hits_nobody_else(run: Callable[[Case], None]) -> None:
    async def case(bench: Bench) -> None:
        started, _, end = await bench.begin(asyncio.sleep(0.001, "first"))
        assert await end == ("first", None)
        second, _, second_end = await bench.begin(asyncio.sleep(0.001, "second"))
        started.cancel()
        assert isinstance(second, Suspended)
        assert await second_end == ("second", None)

    run(case)


def test_handler_that_cancels_itself(run: Callable[[Case], None]) -> None:
    async def and_returns() -> int:
        asyncio.current_task().cancel()
        return 7

    async def and_waits() -> str:
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "cancelled"
        return "not cancelled"

    async def case(bench: Bench) -> None:
        # With a task that ends before it is cancelled, TaskRunner reports CancelledError or the result, depending on
        # the version of Python.
        started, error, _ = await bench.begin(and_returns())
        assert started == 7 or isinstance(error, asyncio.CancelledError)
        assert await bench.finish(and_waits()) == "cancelled"
        assert await bench.finish(_seven()) == 7

    run(case)


@pytest.mark.parametrize("timeout", [0, 0.005])
@pytest.mark.parametrize("waits_before", [False, True])
def test_timeout_inside(run: Callable[[Case], None], timeout: float, waits_before: bool) -> None:
    async def handler() -> str:
        if waits_before:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(30)
        except TimeoutError:
            await asyncio.sleep(0)
            return f"timed out, cancelling {asyncio.current_task().cancelling()}"
        return "never"

    async def case(bench: Bench) -> None:
        for _ in range(3):
            assert await bench.finish(handler()) == "timed out, cancelling 0"

    run(case)


def test_timeout_that_is_not_reached(run: Callable[[Case], None]) -> None:
    async def handler() -> str:
        async with asyncio.timeout(30):
            return "at once"

    async def case(bench: Bench) -> None:
        assert await bench.begin(handler()) == ("at once", None, None)

    run(case)


def test_task_group_inside(run: Callable[[Case], None]) -> None:
    async def child(number: int) -> int:
        await asyncio.sleep(0.001)
        if number < 0:
            raise ValueError(number)
        return number

    async def handler(*numbers: int) -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(number)) for number in numbers]
        return [task.result() for task in tasks]

    async def case(bench: Bench) -> None:
        assert await bench.finish(handler(1, 2, 3)) == [1, 2, 3]
        with pytest.raises(ExceptionGroup):
            await bench.finish(handler(1, -1, 3))
        assert await bench.finish(handler(4)) == [4]

    run(case)


def test_gather_and_wait_for_inside(run: Callable[[Case], None]) -> None:
    async def handler() -> list[str]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(30), 0.001)
        return await asyncio.gather(asyncio.sleep(0.001, "a"), asyncio.sleep(0, "b"))

    async def case(bench: Bench) -> None:
        assert await bench.finish(handler()) == ["a", "b"]

    run(case)


def test_awaiting_a_failed_future_raises_its_error(run: Callable[[Case], None]) -> None:
    async def handler(future: asyncio.Future[None]) -> str:
        try:
            await future
        except OSError as error:
            await asyncio.sleep(0)
            return str(error)
        return "never"

    async def case(bench: Bench) -> None:
        future: asyncio.Future[None] = bench.loop.create_future()
        bench.loop.call_later(0.001, future.set_exception, OSError("why"))
        assert await bench.finish(handler(future)) == "why"

    run(case)


def test_yielding_nonsense_fails_the_handler_alone(run: Callable[[Case], None]) -> None:
    class Nonsense:
        def __await__(self) -> Any:
            yield "nonsense"

    async def handler() -> None:
        await Nonsense()

    async def case(bench: Bench) -> None:
        with pytest.raises(RuntimeError):
            await bench.finish(handler())
        assert await bench.finish(_seven()) == 7

    run(case)


def test_nothing_keeps_arguments_alive(run: Callable[[Case], None]) -> None:
    class Payload:
        pass

    async def handler(payload: Payload, delay: float | None) -> None:
        if delay is not None:
            await asyncio.sleep(delay)
        assert payload is not None

    async def case(bench: Bench) -> None:
        for delay in (None, 0, 0.001):
            payload = Payload()
            gone = weakref.ref(payload)
            coroutine = handler(payload, delay)
            del payload
            await bench.finish(coroutine)
            del coroutine
            await asyncio.sleep(0)
            gc.collect()
            assert gone() is None

    run(case)


def test_worker_is_reused() -> None:
    async def main() -> None:
        runner = WorkerRunner(asyncio.get_running_loop())
        bench = Bench(runner)
        await bench.warm(1)
        tasks = {await bench.finish(_current()) for _ in range(10)}
        assert len(tasks) == 1
        runner.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_loop_that_ends_takes_parked_workers_along() -> None:
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await Bench(WorkerRunner(loop)).warm(5)

    asyncio.run(main())
    gc.collect()
    assert not complaints


async def _seven() -> int:
    return 7


async def _current() -> Any:
    return asyncio.current_task()
