"""Handlers run at once, in the tick that received them; a task is made only for those that wait.

Most handlers return without ever suspending, and a task for each of them is the largest avoidable cost of a call. But
inside a handler `asyncio.current_task()`, `asyncio.timeout()`, `TaskGroup` and context variables must work from its
first line on, so the first step cannot simply be a bare `coroutine.send(None)`.

From Python 3.12 on asyncio has the answer: a task with `eager_start=True` runs its first step in its constructor
(`TaskRunner`).

On 3.11 `WorkerRunner` does the same with *parked workers*, tasks of our own that wait for work, each with a context and
a *driver* of its own, a generator that awaits one coroutine after the other:

  1. A parked worker is made the current task, and its driver is sent the handler's coroutine inside the worker's
     context, which runs the first step. (A driver, because the result of `yield from` comes without a StopIteration:
     that halves the cost.)
  2. It returns or raises: the worker never noticed, and goes on being parked. It is used again only if the handler left
     no trace: its context still equals the template's (O(1) while untouched), and nobody asked it to cancel.
  3. It yields a future: driver and future are handed to the worker, which is woken, yields the *same* future to its own
     task (whose blocking flag is still set, so the task cannot tell the difference) and takes the driver on until the
     coroutine ends, as a task would.

The driver may as well be a loop over all that came in at once (`work_through`): then the worker is entered once for
many handlers, and when one suspends, another worker goes on with the rest of the loop.

Between 3's hand-over and the worker's next step someone may cancel the task. Then the worker finds CancelledError where
it waited for work, and does what Task.cancel would have done: cancels the future that the handler waits for, or, where
that is done already, throws.

A runner belongs to one event loop and one thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeAlias

from zcrpc.context import SCOPE, Scope

Finish: TypeAlias = Callable[[Any, BaseException | None], None]
Handler: TypeAlias = Coroutine[Any, Any, Any]

# Workers beyond this are let go when their handler is done. Each is about 2 KiB.
_PARKED = 256


class Suspended:
    """A handler that waits for something."""

    __slots__ = ()

    def then(self, finish: Finish) -> None:
        """Calls `finish(result, None)` or `finish(None, error)` once, when the handler is done. To be called before
        control returns to the loop."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Cancels the handler as Task.cancel does; nothing happens if it is done."""
        raise NotImplementedError


class _Job(Suspended):
    """A handler that has begun, and that a worker takes to its end."""

    __slots__ = ("_finish", "cancelled", "worker", "yielded")

    def __init__(self, worker: Worker, yielded: Any) -> None:
        self.worker: Worker | None = worker
        self.yielded = yielded  # what it waits for
        self.cancelled = False  # before the worker's task had taken its first step
        self._finish: Finish | None = None

    def then(self, finish: Finish) -> None:
        self._finish = finish

    def cancel(self) -> None:
        if self.worker is None:
            return
        if self.worker.lives:
            self.worker.task.cancel()
        else:
            self.cancelled = True

    def done(self, result: Any, error: BaseException | None) -> None:
        self.worker = None
        finish = self._finish
        # The future may have the same result, and finish leads back here: a view would wait for the garbage collector.
        self._finish = self.yielded = None
        if finish is not None:
            finish(result, error)


_DONE = object()  # what a driver yields when it wants the next coroutine


class Worker:
    """A task that is parked, or works on one job."""

    __slots__ = (
        "context",
        "driver",
        "error",
        "job",
        "lives",
        "parked",
        "result",
        "run",
        "runner",
        "scope",
        "send",
        "task",
    )

    def __init__(self, runner: WorkerRunner) -> None:
        self.runner = runner
        self.context = runner.template.copy()
        self.run = self.context.run
        self.result: Any = None  # of the coroutine that the driver has ended
        self.error: BaseException | None = None
        self.scope: Scope = None  # of the coroutine that the driver is to begin
        self.job: _Job | None = None
        self.parked: asyncio.Future[None] | None = None
        self.start_driver()
        self.start_task(None)

    def start_task(self, cancelled: asyncio.CancelledError | None) -> None:
        self.lives = False  # its task has taken its first step
        self.task = asyncio.Task(self._live(cancelled), loop=self.runner.loop, context=self.context)
        self.task.add_done_callback(self._ended)

    def start_driver(self) -> None:
        self.driver = self._drive()
        self.send = self.driver.send
        self.send(None)

    @types.coroutine
    def _drive(self) -> Generator[Any, Any, None]:
        enter, leave = SCOPE.set, SCOPE.reset
        while True:
            coroutine = yield _DONE
            token = enter(self.scope)
            try:
                self.result = yield from coroutine
            except (Exception, asyncio.CancelledError) as error:
                self.error = error
            leave(token)  # the context equals the template again, if the handler left it alone
            del coroutine, token
            if self.job is not None:  # handed over meanwhile: the worker goes on
                return

    def untouched(self) -> bool:
        """Whether the last handler left nothing behind that the next one could see."""
        return self.context == self.runner.template and not self.doomed()()

    def doomed(self) -> Callable[[], bool]:
        """What tells, until the worker's task takes its next step, whether that will end in a CancelledError. Who was
        asked to cancel and then took that back is no longer `cancelling`, but it ends all the same."""
        return self._must_cancel if self.parked is None else self.parked.cancelled

    def _must_cancel(self) -> bool:
        task = self.task
        return bool(task.cancelling() or task._must_cancel)  # type: ignore[attr-defined]

    def hand_over(self, job: _Job) -> None:
        self.job = job
        if self.parked is not None and not self.parked.done():
            self.parked.set_result(None)

    async def _live(self, cancelled: asyncio.CancelledError | None) -> None:
        self.lives = True
        while True:
            if self.job is None:
                self.parked = self.runner.loop.create_future()
                try:
                    await self.parked
                except asyncio.CancelledError as caught:
                    cancelled = caught
                self.parked = None
            if self.job is None:
                return  # the loop or the runner closes
            job = self.job
            if job.cancelled:
                self.task.cancel()
            await _resume(self.driver, job.yielded, cancelled, job.cancelled)
            result, error = self.result, self.error
            self.result = self.error = self.job = cancelled = None
            self.start_driver()
            job.done(result, error)
            del job, result, error  # a parked worker must not keep a payload alive
            if not (self.untouched() and self.runner.park(self)):
                return

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self.job is not None and task.cancelled():  # before its first step, by the handler that it was lent to
            self.start_task(asyncio.CancelledError())
            return
        self.runner.forget(self)
        if not task.cancelled():
            task.exception()


@types.coroutine
def _resume(
    driver: Generator[Any, Any, None], yielded: Any, error: BaseException | None, cancelling: bool
) -> Generator[Any, Any, None]:
    """Takes a driver that has yielded `yielded` to the end of its coroutine, inside the current task. `error`: what the
    task was cancelled with meanwhile. `cancelling`: it will be, at the next yield."""
    try:
        if error is None:
            if yielded is None and not cancelling:  # a bare yield: the tick that it asked for has passed
                return (yield from driver)
        elif yielded is not None and yielded.cancel():
            error = None
        while True:
            if error is None:
                try:
                    yield yielded
                except BaseException as caught:
                    error = caught
                else:
                    return (yield from driver)
            yielded = driver.throw(error)
            error = None
    except StopIteration:
        return None


class WorkerRunner:
    """Runs handlers on parked workers. Works on every supported Python; the default on 3.11."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.template = contextvars.copy_context()
        if SCOPE in self.template:  # the server was started inside a call of another
            self.template.run(SCOPE.set, None)
        self._parked: list[Worker] = []
        self._closed = False

    def work_through(
        self, work: Callable[[Worker], Generator[Any, Any, None]], suspended: Callable[[Suspended], None]
    ) -> None:
        """Runs the first steps of many handlers: `work` awaits them one after the other by `yield from`, and is inside
        the worker all the time, so that none of them has to be entered and left.

        When one suspends, its worker goes on with it: the generator must then end when that handler does, leaving what
        came of it in `worker.result` or `worker.error`. `suspended` is told, and `work` called again for the rest; and
        so it is if it ends because a handler left a trace.
        """
        loop = self.loop
        while True:
            worker = self._parked.pop() if self._parked else Worker(self)
            task, driver = worker.task, work(worker)
            _enter_task(loop, task)
            try:
                yielded = worker.run(next, driver, _DONE)
            except BaseException:  # KeyboardInterrupt, SystemExit: the driver has ended with it
                task.cancel()
                raise
            finally:
                _leave_task(loop, task)
            if yielded is not _DONE:
                worker.driver = driver
                job = _Job(worker, yielded)
                worker.hand_over(job)
                suspended(job)
            elif not worker.untouched():
                task.cancel()
            else:
                if not self.park(worker):
                    task.cancel()
                return

    def start(self, coroutine: Handler, scope: Scope = None) -> Any:
        """Runs the coroutine's first step. Its result if that was all, its exception if it raised one, else a
        `Suspended`. `scope`: what `zcrpc.context` says inside of it."""
        outer = asyncio.current_task(self.loop)
        if outer is None:
            return self._start(coroutine, scope)
        _leave_task(self.loop, outer)  # within work_through
        try:
            return self._start(coroutine, scope)
        finally:
            _enter_task(self.loop, outer)

    def _start(self, coroutine: Handler, scope: Scope) -> Any:
        if not self._parked:
            self._parked.append(Worker(self))
        worker = self._parked[-1]
        worker.scope = scope
        loop, task = self.loop, worker.task
        _enter_task(loop, task)
        try:
            yielded = worker.run(worker.send, coroutine)
        except BaseException:  # KeyboardInterrupt, SystemExit: the driver has ended with it
            self._retire(worker)
            raise
        finally:
            _leave_task(loop, task)
        if yielded is not _DONE:
            self._parked.pop()
            job = _Job(worker, yielded)
            worker.hand_over(job)
            return job
        if not worker.untouched():
            self._retire(worker)
        if worker.error is not None:
            error, worker.error = worker.error, None
            try:
                raise error
            finally:
                del error  # its traceback has this frame
        result, worker.result = worker.result, None
        return result

    def park(self, worker: Worker) -> bool:
        """Takes a worker back. False if there are enough."""
        if self._closed or len(self._parked) >= _PARKED:
            return False
        self._parked.append(worker)
        return True

    def forget(self, worker: Worker) -> None:
        """A worker's task has ended, by whatever way."""
        if worker in self._parked:
            self._parked.remove(worker)

    def close(self) -> None:
        """Lets the parked workers go. Handlers that wait go on."""
        self._closed = True
        for worker in self._parked:
            worker.task.cancel()
        self._parked.clear()

    def _retire(self, worker: Worker) -> None:
        self._parked.remove(worker)
        worker.task.cancel()


def run_plain(
    loop: asyncio.AbstractEventLoop, handler: Callable[..., Any], arguments: list[Any], keywords: dict[str, Any] | None
) -> Any:
    """Calls what is no coroutine: in no task, even where that is done among handlers that have one, and in a context of
    its own, so that no other call sees which variables it sets."""
    run, named = contextvars.copy_context().run, keywords or {}
    task = asyncio.current_task(loop)
    if task is None:
        return run(handler, *arguments, **named)
    _leave_task(loop, task)
    try:
        return run(handler, *arguments, **named)
    finally:
        _enter_task(loop, task)


if sys.version_info >= (3, 12):

    class _Waiting(Suspended):
        """A task that outlived its first step."""

        __slots__ = ("_task",)

        def __init__(self, task: asyncio.Task[Any]) -> None:
            self._task = task

        def then(self, finish: Finish) -> None:
            def done(task: asyncio.Task[Any]) -> None:
                if task.cancelled():
                    finish(None, asyncio.CancelledError())
                elif (error := task.exception()) is not None:
                    finish(None, error)
                else:
                    finish(task.result(), None)

            self._task.add_done_callback(done)

        def cancel(self) -> None:
            self._task.cancel()

    class TaskRunner:
        """Runs handlers as eager tasks of asyncio."""

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self._loop = loop

        def start(self, coroutine: Handler, scope: Scope = None) -> Any:
            """Runs the coroutine's first step. Its result if that was all, its exception if it raised one, else a
            `Suspended`. `scope`: what `zcrpc.context` says inside of it."""
            token = SCOPE.set(scope)  # the task copies the context
            try:
                task = asyncio.Task(coroutine, loop=self._loop, eager_start=True)
            finally:
                SCOPE.reset(token)
            if task.done():
                return task.result()
            return _Waiting(task)

        def close(self) -> None:
            """Nothing is kept."""

    Runner: TypeAlias = TaskRunner
else:
    Runner: TypeAlias = WorkerRunner
