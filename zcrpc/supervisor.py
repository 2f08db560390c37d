"""Keeps a number of worker processes serving on the same addresses.

    supervisor   holds the listening sockets, starts workers, replaces those that die
      → slot     a listening socket with SO_REUSEPORT per TCP address; the kernel deals connections out to the slots
        → worker a fresh interpreter that inherits the slot's sockets and accepts from them

The sockets, and with them the connections that wait in their queues, are the slot's: they outlive the worker. So a
worker that dies or is replaced loses no connection that it had not accepted, and the next one goes on with them. Where
workers die again and again, nobody should wait for the next: then the slot's sockets are shut down, which resets what
is in their queues and leaves new connections to the other slots, until a worker listens again. A Unix socket cannot be
had more than once, so its one queue is everybody's.

A rolling restart goes slot by slot: another worker is started, and when it is ready the old one stops accepting, tells
its clients, finishes what is in flight and ends. Then comes the next slot. If the new worker does not start, the old
one stays, and so do those of the other slots.

Between the two is a socketpair. The worker sends one byte over it when it is ready, and goes away in good order when it
is closed, so that nobody outlives a supervisor that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from zcrpc.address import Address
from zcrpc.backoff import Backoff
from zcrpc.signals import STOPPING, heeded
from zcrpc.sockets import bind, bind_shares

_log = logging.getLogger("zcrpc.supervisor")

READY: Final = b"r"
"""What a worker says when it listens."""

# Before a worker that died is replaced; after it had lived for so long, the next one counts as the first.
BACKOFF: Final = Backoff(initial=0.1, factor=2.0, jitter=0.1, limit=10.0)
_STABLE_SECONDS: Final = 10.0
# How long a worker may take to import what it serves, and to listen.
START_SECONDS: Final = 60.0
# What closing may take beyond the grace: cleaning up, last words, and the interpreter's end.
_END_SECONDS: Final = 5.0


class DidNotStart(Exception):
    """A worker ended, or took too long, before it was ready."""


class Worker:
    """A process that serves."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.process = process
        self.control = control
        self.since = asyncio.get_running_loop().time()
        self.exit = asyncio.create_task(process.wait())
        self.exit.add_done_callback(lambda _: control.close())

    def __str__(self) -> str:
        return f"worker {self.process.pid}"

    async def ready(self) -> None:
        """Raises DidNotStart."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(START_SECONDS):
                if await loop.sock_recv(self.control, 1) == READY:
                    return
                await asyncio.shield(self.exit)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            raise DidNotStart(f"{self} was not ready within {START_SECONDS:g} s") from None
        raise DidNotStart(f"{self} {self.fate} before it was ready")

    @property
    def fate(self) -> str:
        """How it ended."""
        status = self.process.returncode
        if status is None:
            return "is alive"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if it is still alive."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def end(self, within: float) -> None:
        """Waits for its end, which it was asked for, and kills it if that takes too long."""
        done, _ = await asyncio.wait([self.exit], timeout=within)
        if not done:
            _log.error("%s did not end within %g s, and is killed", self, within)
            self.signal(signal.SIGKILL)
            await asyncio.wait([self.exit])


class Slot:
    """A place for one worker, and the sockets that it accepts from."""

    def __init__(self, supervisor: Supervisor, number: int, sockets: Sequence[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.worker: Worker | None = None
        self._supervisor = supervisor
        self._failures = 0
        self._changing = asyncio.Lock()  # held by who starts a worker

    async def start(self) -> None:
        """Raises DidNotStart."""
        self.worker = await self._supervisor.spawn(self.sockets)
        _log.info("slot %d: %s is ready", self.number, self.worker)

    async def start_first(self) -> None:
        """As `start`, but a failure is for `keep` to deal with."""
        try:
            await self.start()
        except DidNotStart as error:
            _log.error("slot %d: %s", self.number, error)

    async def keep(self) -> None:
        """Replaces the worker whenever it has died."""
        while True:
            worker = self.worker
            if worker is not None:
                await asyncio.wait([worker.exit])
            async with self._changing:
                if worker is self.worker:
                    await self._revive(worker)

    async def _revive(self, worker: Worker | None) -> None:
        loop = asyncio.get_running_loop()
        lived = 0.0
        if worker is not None:
            lived = loop.time() - worker.since
            _log.error("slot %d: %s %s", self.number, worker, worker.fate)
        self._failures = 1 if lived >= _STABLE_SECONDS else self._failures + 1
        while True:
            if self._failures > 1:  # nobody should wait here any more
                self._supervisor.withdraw(self)
            delay = BACKOFF.delay(self._failures)
            _log.warning("slot %d: another worker is started in %.1f s", self.number, delay)
            await asyncio.sleep(delay)
            try:
                await self.start()
                return
            except DidNotStart as error:
                _log.error("slot %d: %s", self.number, error)
                self._failures += 1

    async def replace(self, grace: float) -> None:
        """Starts another worker, then lets the old one go. Raises DidNotStart, and then the old one stays."""
        async with self._changing:
            old = self.worker
            await self.start()
            self._failures = 0
        if old is not None:
            old.signal(signal.SIGTERM)
            await old.end(grace + _END_SECONDS)
            _log.info("slot %d: %s has gone", self.number, old)


class Supervisor:
    """Workers on addresses.

    command: starts a worker; `--listen fd://N` for each of its sockets and `--control N` are added.
    sources: what is listened on: addresses, or numbers of inherited sockets.
    workers: how many.
    grace: seconds that calls in flight have when a worker goes.
    """

    def __init__(self, command: Sequence[str], sources: Sequence[Address | int], workers: int, grace: float) -> None:
        self._command = tuple(command)
        self._sources = sources
        self._count = workers
        self._grace = grace
        self._addresses: list[Address] = []
        self._slots: list[Slot] = []
        self._alive: set[Worker] = set()
        self._stop = asyncio.Event()
        self._restart = asyncio.Event()

    async def run(self, started: Callable[[list[str]], None]) -> None:
        """Serves until SIGTERM or SIGINT, then lets the workers finish; a second one hurries them. SIGHUP restarts them
        one after the other. `started` is told the addresses once all is up. Raises OSError for an address that cannot
        be had, DidNotStart if the first worker does not start."""
        with heeded((*STOPPING, signal.SIGHUP), self._react):
            supervising = asyncio.create_task(self._supervise(started))
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait([supervising, stopping], return_when=asyncio.FIRST_COMPLETED)
                if supervising.done():
                    supervising.result()
            finally:
                for task in (supervising, stopping):
                    task.cancel()
                await asyncio.wait([supervising, stopping])
                await self._end()

    def _react(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            _log.info("SIGHUP: the workers are restarted, one after the other")
            self._restart.set()
            return
        _log.info("%s: going away%s", number.name, " now" if self._stop.is_set() else "")
        if self._stop.is_set():
            self._signal_all(signal.SIGTERM)  # their second
        self._stop.set()

    async def _supervise(self, started: Callable[[list[str]], None]) -> None:
        await self._bind()
        # The first one shows whether the others can start: a wrong name is complained of once.
        await self._slots[0].start()
        async with asyncio.TaskGroup() as group:
            for slot in self._slots[1:]:
                group.create_task(slot.start_first())
        started([str(address) for address in self._addresses])
        async with asyncio.TaskGroup() as group:
            for slot in self._slots:
                group.create_task(slot.keep())
            group.create_task(self._roll())

    async def _bind(self) -> None:
        shares: list[list[socket.socket]] = []
        for source in self._sources:
            if isinstance(source, Address) and not source.is_unix:
                sockets, address = await bind_shares(source, self._count)
            else:
                sock, address = await bind(source)
                sockets = [sock] * self._count
            shares.append(sockets)
            self._addresses.append(address)
        self._slots = [Slot(self, number, each) for number, each in enumerate(zip(*shares, strict=True))]

    async def spawn(self, sockets: Sequence[socket.socket]) -> Worker:
        """A worker that is ready. Raises DidNotStart."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        listens = [word for sock in sockets for word in ("--listen", f"fd://{sock.fileno()}")]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *listens,
                "--control",
                str(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=[sock.fileno() for sock in (*sockets, theirs)],
                # Ctrl-C at a terminal is for the supervisor; a worker would take it for a second signal.
                process_group=0,
            )
        except OSError as error:  # no memory, too many processes
            ours.close()
            raise DidNotStart(f"a worker cannot be started: {error}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = Worker(process, ours)
        self._alive.add(worker)
        worker.exit.add_done_callback(lambda _: self._alive.discard(worker))
        await worker.ready()
        return worker

    def withdraw(self, slot: Slot) -> None:
        """A slot's workers keep dying: connections are dealt out among the others until one of them listens again."""
        others = [other for other in self._slots if other is not slot]
        if any(other.worker is not None and not other.worker.exit.done() for other in others):
            shared = {sock for other in others for sock in other.sockets}
            for sock in slot.sockets:
                if sock not in shared:
                    with contextlib.suppress(OSError):  # it does not listen
                        sock.shutdown(socket.SHUT_RDWR)

    async def _roll(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            try:
                for slot in self._slots:
                    await slot.replace(self._grace)
            except DidNotStart as error:
                _log.error("%s; the restart is given up, and the workers that are there go on", error)
            else:
                _log.info("all workers have been restarted")

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._alive:
            worker.signal(number)

    async def _end(self) -> None:
        for slot in self._slots:  # first, so that nobody waits in a queue that nobody serves
            for sock in slot.sockets:
                sock.close()
        for source in self._sources:
            if isinstance(source, Address) and source.is_unix and source in self._addresses:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(source.path)
        self._signal_all(signal.SIGTERM)
        await asyncio.gather(*(worker.end(self._grace + _END_SECONDS) for worker in list(self._alive)))
