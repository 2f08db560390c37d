"""How concurrent calls run: as tasks, threads or greenlets.

Adapters and what measures them are coroutines throughout. Those of stacks that block never suspend, so a thread or
greenlet runs each to its end in one step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from threading import Thread
from typing import Any, Protocol, TypeVar

import uvloop

T = TypeVar("T")
Work = Coroutine[Any, Any, T]


class Runtime(Protocol):
    """Of a stack."""

    def run(self, main: Work[T]) -> T:
        """To its end."""

    async def together(self, *works: Work[Any]) -> None:
        """All of them, concurrently."""


class Tasks:
    """asyncio; on uvloop unless another loop is asked for. `around` is entered in the loop, before anything else."""

    def __init__(
        self,
        runner: Callable[[Any], Any] = uvloop.run,
        around: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self._runner = runner
        self._around = around

    def run(self, main: Work[T]) -> T:
        return self._runner(self._within(main))  # type: ignore[no-any-return]

    async def _within(self, main: Awaitable[T]) -> T:
        async with self._around():
            return await main

    async def together(self, *works: Work[Any]) -> None:
        await asyncio.gather(*works)


class Threads:
    """A thread for each."""

    def run(self, main: Work[T]) -> T:
        return finish(main)

    async def together(self, *works: Work[Any]) -> None:
        threads = [Thread(target=finish, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Greenlets:
    """A greenlet of gevent's for each."""

    def run(self, main: Work[T]) -> T:
        return finish(main)

    async def together(self, *works: Work[Any]) -> None:
        import gevent  # only stacks that bring it run in greenlets

        gevent.joinall([gevent.spawn(finish, work) for work in works], raise_error=True)


def finish(work: Work[T]) -> T:
    """Runs a coroutine that does not suspend. Raises RuntimeError if it does."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise RuntimeError(f"{work} waits for an event loop")
