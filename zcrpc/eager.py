"""Handlers run at once, in the tick that received them; a task is made only for those that wait.

Most handlers return without ever suspending, and a task for each of them is the largest avoidable cost of a call. But
inside a handler `asyncio.current_task()`, `asyncio.timeout()`, `TaskGroup` and context variables must work from its
first line on, so the first step cannot simply be a bare `coroutine.send(None)`.

From Python 3.12 on asyncio has the answer: a task with `eager_start=True` runs its first step in its constructor
(`TaskRunner`).

On 3.11 `WorkerRunner` does the same with *parked workers*, tasks of our own that wait for work, each with a context of
its own:

  1. A parked worker is made the current task, and the handler's coroutine is sent its first None inside the worker's
     context.
  2. It returns or raises: the worker never noticed, and goes on being parked. It is used again only if the handler left
     no trace: its context still equals the template's (O(1) while untouched), and nobody asked it to cancel.
  3. It yields a future: coroutine and future are handed to the worker, which is woken, yields the *same* future to its
     own task (whose blocking flag is still set, so the task cannot tell the difference) and takes the coroutine to its
     end, as a task would.

Handlers of all calls that came in at once can be begun in one worker, one after the other (`work_through`): then it is
entered once for many, and when one suspends, another worker goes on with the rest.

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

    __slots__ = ("_finish", "cancelled", "coroutine", "token", "worker", "yielded")

    def __init__(self, worker: Worker, coroutine: Handler, yielded: Any, token: contextvars.Token[Scope]) -> None:
        self.worker: Worker | None = worker
        self.coroutine = coroutine
        self.yielded = yielded  # what it waits for
        self.token = token  # takes its scope away
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


class Worker:
    """A task that is parked, or works on one job."""

    __slots__ = (
        "context",
        "job",
        "lives",
        "parked",
        "run",
        "runner",
        "task",
    )

    def __init__(self, runner: WorkerRunner) -> None:
        self.runner = runner
        self.context = runner.template.copy()
        self.run = self.context.run
        self.job: _Job | None = None
        self.parked: asyncio.Future[None] | None = None
        self.start_task(None)

    def start_task(self, cancelled: asyncio.CancelledError | None) -> None:
        self.lives = False  # its task has taken its first step
        self.task = asyncio.Task(self._live(cancelled), loop=self.runner.loop, context=self.context)
        self.task.add_done_callback(self._ended)

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
            result: Any = None
            error: BaseException | None = None
            try:
                result = await _resume(job.coroutine, job.yielded, cancelled, job.cancelled)
            except (Exception, asyncio.CancelledError) as raised:
                error = raised
            SCOPE.reset(job.token)  # the context equals the template again, if the handler left it alone
            self.job = cancelled = None
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
    coroutine: Handler, yielded: Any, error: BaseException | None, cancelling: bool
) -> Generator[Any, Any, Any]:
    """Takes a coroutine that has yielded `yielded` to its end, inside the current task. `error`: what the task was
    cancelled with meanwhile. `cancelling`: it will be, at the next yield."""
    try:
        if error is None:
            if yielded is None and not cancelling:  # a bare yield: the tick that it asked for has passed
                return (yield from coroutine)
        elif yielded is not None and yielded.cancel():
            error = None
        while True:
            if error is None:
                try:
                    yield yielded
                except BaseException as caught:
                    error = caught
                else:
                    return (yield from coroutine)
            yielded = coroutine.throw(error)
            error = None
    except StopIteration as end:
        return end.value


def _first_step(coroutine: Handler, scope: Scope) -> tuple[Any, contextvars.Token[Scope]]:
    """What a coroutine yields first, and the token of its scope. StopIteration has the result if that was all."""
    token = SCOPE.set(scope)
    try:
        return coroutine.send(None), token
    except BaseException:
        SCOPE.reset(token)
        raise


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
        self,
        work: Callable[[Worker], tuple[Handler, Any, contextvars.Token[Scope]] | None],
        suspended: Callable[[Suspended], None],
    ) -> None:
        """Runs the first steps of many handlers: `work` begins one after the other, and is inside the worker all the
        time, so that none of them has to be entered and left.

        When one suspends, `work` returns its coroutine, what that has yielded and the token of its scope; its worker
        goes on with it, `suspended` is told, and `work` is called again for the rest. So it is if a handler left a
        trace; then it returns None, as it does when there are no more.
        """
        loop = self.loop
        while True:
            worker = self._parked.pop() if self._parked else Worker(self)
            task = worker.task
            _enter_task(loop, task)
            try:
                stopped = worker.run(work, worker)
            except BaseException:  # KeyboardInterrupt, SystemExit
                task.cancel()
                raise
            finally:
                _leave_task(loop, task)
            if stopped is not None:
                job = _Job(worker, *stopped)
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
        loop, task = self.loop, worker.task
        _enter_task(loop, task)
        try:
            yielded, token = worker.run(_first_step, coroutine, scope)
        except StopIteration as end:
            if not worker.untouched():
                self._retire(worker)
            return end.value
        except (Exception, asyncio.CancelledError):
            if not worker.untouched():
                self._retire(worker)
            raise
        except BaseException:  # KeyboardInterrupt, SystemExit
            self._retire(worker)
            raise
        finally:
            _leave_task(loop, task)
        self._parked.pop()
        job = _Job(worker, coroutine, yielded, token)
        worker.hand_over(job)
        return job

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
