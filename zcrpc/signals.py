"""Signals, as far as a server heeds them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def heeded(signals: Sequence[signal.Signals], react: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Within, signals call `react` in the running loop. Afterwards they do what they did before. RuntimeError outside
    of the main thread, which is the only one that Python gives signals to."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("signals are heeded in the main thread only")
    loop = asyncio.get_running_loop()
    before = {}
    try:
        for each in signals:
            before[each] = signal.getsignal(each)
            loop.add_signal_handler(each, react, each)
        yield
    finally:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            if handler is not None:  # not one of Python's
                signal.signal(each, handler)
