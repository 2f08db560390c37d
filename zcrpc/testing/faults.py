"""A link: two sockets, and what goes wrong with the bytes between them.

    left ⇄ Link ⇄ right

Each direction is read, damaged and written by itself. What is counted in bytes happens at exactly that byte, however
the bytes are sliced on their way; what is random is drawn from a generator of the direction's own, made from the seed.
So a run is repeated with its seed, as far as the two ends do the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

_READ: Final = 64 << 10
# Pieces on their way when there is a delay: 4 MiB, more than what 10 ms of loopback hold.
_ON_THEIR_WAY: Final = 64
CUT, END, STALL = "cut", "end", "stall"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True, frozen=True, kw_only=True)
class Faults:
    """What goes wrong in one direction of a connection; by default, nothing.

    delay: seconds that every byte is late. jitter: seconds, up to which more are drawn for each piece; order is kept.
    rate: bytes per second. piece: bytes that are written at once at most, with a turn of the loop after each.
    corrupt_at: the byte at this offset has one bit flipped. cut_after: when so many bytes have passed, the connection
    is reset, both ways. end_after: when so many have passed, this direction ends in good order, as if its sender had
    shut it down, and the other goes on. stall_after: when so many have passed, nothing passes any more and nobody is
    told: the connection is half-open.
    """

    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    piece: int | None = None
    corrupt_at: int | None = None
    cut_after: int | None = None
    end_after: int | None = None
    stall_after: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("delay", self.delay, 0.0),
            ("jitter", self.jitter, 0.0),
            ("rate", self.rate, 1e-3),
            ("piece", self.piece, 1),
            ("corrupt_at", self.corrupt_at, 0),
            ("cut_after", self.cut_after, 0),
            ("end_after", self.end_after, 0),
            ("stall_after", self.stall_after, 0),
        ):
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value}: must be at least {least:g}")

    def last(self) -> tuple[float, str]:
        """After how many bytes this direction is over, and how: CUT, END or STALL."""
        ends = ((self.cut_after, CUT), (self.end_after, END), (self.stall_after, STALL))
        return min(((after, how) for after, how in ends if after is not None), default=(math.inf, END))


FaultsFor: TypeAlias = Faults | Callable[[int], Faults]
"""Those of every connection, or a function that gives them by its number, from 0 on."""

NONE: Final = Faults()


def faults_of(faults: FaultsFor, number: int) -> Faults:
    """Those of one connection, the `number`th from 0 on."""
    return faults(number) if callable(faults) else faults


class Link:
    """Two connected sockets, non-blocking, with bytes carried between them. They belong to it.

    `passed`: bytes that went from left to right, and from right to left.
    """

    def __init__(
        self, left: socket.socket, right: socket.socket, rightwards: Faults, leftwards: Faults, seed: str
    ) -> None:
        self._sockets = (left, right)
        self.passed = [0, 0]
        self._flows = asyncio.Event()
        self._flows.set()
        self._loop = asyncio.get_running_loop()
        self._directions = [
            _Direction(self, 0, left, right, rightwards, random.Random(f"{seed}→")),
            _Direction(self, 1, right, left, leftwards, random.Random(f"{seed}←")),
        ]
        self._task = self._loop.create_task(self._run())

    @property
    def is_closed(self) -> bool:
        return self._task.done()

    def pause(self) -> None:
        """Nothing passes until `resume`: what is sent waits."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """The connection is reset, both ways, now."""
        self._reset()
        self._task.cancel()

    async def close(self) -> None:
        """Ends it, if it has not ended."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def flows(self) -> None:
        await self._flows.wait()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for direction in self._directions:
                    for work in direction.work():
                        group.create_task(work)
        except* OSError:  # one of the two is gone, and so is the other
            self._reset()
        finally:
            for sock in self._sockets:
                sock.close()

    def _reset(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # closed; or a Unix socket, which knows no such thing
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


class _Direction:
    """One direction of a link: reads, damages, and writes when it is time."""

    def __init__(
        self,
        link: Link,
        index: int,
        source: socket.socket,
        target: socket.socket,
        faults: Faults,
        draw: random.Random,
    ) -> None:
        self._link = link
        self._index = index
        self._source = source
        self._target = target
        self._faults = faults
        self._draw = draw
        self._loop = asyncio.get_running_loop()
        # When it is to be written, and what; at the end, how it ends.
        self._pieces: asyncio.Queue[tuple[float, bytes | str]] = asyncio.Queue(_ON_THEIR_WAY)

    def work(self) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        return self._read(), self._write()

    async def _read(self) -> None:
        offset, due, piece, faults = 0, 0.0, b"more", self._faults
        last, how = faults.last()
        while offset < last:
            piece = await self._loop.sock_recv(self._source, int(min(_READ, last - offset)))
            due = max(due, self._loop.time() + faults.delay + self._draw.uniform(0, faults.jitter))
            if not piece:
                how = END
                break
            if faults.rate is not None:
                due += len(piece) / faults.rate
            await self._pieces.put((due, self._damaged(piece, offset)))
            offset += len(piece)
        await self._pieces.put((due, how))
        while how == END and piece:  # its sender need not notice
            piece = await self._loop.sock_recv(self._source, _READ)

    def _damaged(self, piece: bytes, offset: int) -> bytes:
        at = self._faults.corrupt_at
        if at is None or not offset <= at < offset + len(piece):
            return piece
        damaged = bytearray(piece)
        damaged[at - offset] ^= 1 << self._draw.randrange(8)
        return bytes(damaged)

    async def _write(self) -> None:
        while True:
            due, piece = await self._pieces.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._link.flows()
            if isinstance(piece, str):
                self._end(piece)
                return
            size = self._faults.piece or len(piece)
            for start in range(0, len(piece), size):
                part = piece[start : start + size]
                await self._loop.sock_sendall(self._target, part)
                self._link.passed[self._index] += len(part)
                if size < len(piece):
                    await asyncio.sleep(0)

    def _end(self, how: str) -> None:
        if how == CUT:
            self._link.cut()
        elif how == END:
            self._target.shutdown(socket.SHUT_WR)
