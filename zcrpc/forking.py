"""What becomes of servers, clients and region maps in a process that is forked from theirs: they stay the parent's.

A fork copies the memory and shares the sockets: both processes would read from the same connections, wait with the same
epoll set, and of all threads only the one that called fork() lives on. So in the child each of them is abandoned: its
copies of the sockets are closed, without a word to the peers, and whoever uses it is told. Payloads that were received
before can be read on. The child makes servers and clients of its own, in an event loop of its own.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Final, Protocol

_log = logging.getLogger("zcrpc")

MESSAGE: Final = "was made in another process; a process that is forked makes its own"


class Forkable(Protocol):
    """What must not be used in a child of its process."""

    def abandon(self) -> None:
        """It is in a child now."""


_living: weakref.WeakSet[Forkable] = weakref.WeakSet()
_callbacks: list[Callable[[], None]] = []


def remember(each: Forkable) -> None:
    """It is to be abandoned in every child that is forked while it lives."""
    _living.add(each)


def in_child(callback: Callable[[], None]) -> None:
    """To be called in every child."""
    _callbacks.append(callback)


def _forked() -> None:
    abandoned = [each.abandon for each in _living]
    _living.clear()
    for act in (*abandoned, *_callbacks):
        try:
            act()
        except Exception:
            _log.exception("after a fork")


os.register_at_fork(after_in_child=_forked)
