"""Threads for handlers that block: `@method(blocking=True)`.

Arguments, their views included, belong to the call until its thread is done with them, and what `context()` says is
true there too. A thread cannot be cancelled: when nobody waits for a call any more, it runs on, and its result is
thrown away; `context().cancelled()` tells it so. One that waits for a thread is never begun then.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from zcrpc.errors import ResourceExhausted

_log = logging.getLogger("zcrpc.server")


class Threads:
    """The threads of a server, made when they are needed.

    count: at most. max_waiting: calls that wait for one of them at most; more is RESOURCE_EXHAUSTED.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self.count = count
        self.max_waiting = max_waiting
        self.refused = 0  # calls, because too many wait
        self._unfinished = 0  # calls that wait or run. Of the event loop, as is all here
        self._executor: ThreadPoolExecutor | None = None

    @property
    def running(self) -> int:
        """Handlers that run, those included that nobody waits for any more."""
        return min(self._unfinished, self.count)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return max(0, self._unfinished - self.count)

    def wrap(self, handler: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A coroutine function that runs `handler` in a thread. `name`: of the method."""

        async def run(*arguments: Any, **keywords: Any) -> Any:
            return await self._run(name, partial(handler, *arguments, **keywords))

        return run

    async def _run(self, name: str, work: Callable[[], Any]) -> Any:
        if self.waiting >= self.max_waiting:
            self.refused += 1
            raise ResourceExhausted(f"{self.max_waiting} calls wait for a thread, the server's limit")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.count, "zcrpc")
        loop = asyncio.get_running_loop()
        waits = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(self._finished, name, waits, result, error)

        # The executor's own future keeps no result: it would be in a reference cycle with the callbacks that asyncio
        # adds to it, and views in it would be held until the next garbage collection.
        begins = self._executor.submit(_in_thread, contextvars.copy_context(), work, finish)
        del work  # from now on the thread alone decides how long the arguments live
        self._unfinished += 1
        try:
            return await waits
        except asyncio.CancelledError:
            if begins.cancel():
                self._unfinished -= 1
            raise

    def _finished(self, name: str, waits: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._unfinished -= 1
        if waits.done():  # cancelled. An error that no caller is told must not get lost
            if error is not None:
                kind = type(error).__name__
                _log.error("%s() raised %s when nobody waited for it any more", name, kind, exc_info=error)
        elif error is None:
            waits.set_result(result)
        elif isinstance(error, StopIteration):  # which no future takes
            waits.set_exception(RuntimeError(f"{name}() raised StopIteration"))
        else:
            waits.set_exception(error)

    def abandon(self) -> None:
        """This process was forked from theirs: there are none here."""
        self._executor = None
        self._unfinished = 0

    def close(self) -> None:
        """What waits is not begun; what runs goes on."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _in_thread(
    context: contextvars.Context, work: Callable[[], Any], finish: Callable[[Any, BaseException | None], Any]
) -> None:
    result = failure = None
    try:
        result = context.run(work)
    except BaseException as error:
        failure = error
    del work
    try:
        finish(result, failure)
    except RuntimeError:  # the loop is closed
        _log.warning("a blocking call ended after its server", exc_info=failure)
    finally:
        del failure  # its traceback has this frame
