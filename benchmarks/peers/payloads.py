"""What is sent, and what an answer must be. Every stack's server and client use the same functions."""

from __future__ import annotations

import os
from collections.abc import Iterator

from zcrpc.lab.service import page_sum, summed

__all__ = ["ITEM", "acknowledgement", "is_whole", "items", "random_payloads", "summed"]

ITEM = bytes(range(64))  # of a stream
_SMALL = 64 << 10  # bytes; of larger payloads there are fewer
_SUM = 8  # bytes


def random_payloads(size: int) -> list[bytes]:
    """Contents that requests take in turn."""
    return [os.urandom(size) for _ in range(8 if size <= _SMALL else 2)]


def acknowledgement(payload: bytes | memoryview) -> bytes:
    """A handler's answer to an upload, every page of which it touches: 16 bytes, the last 8 of them the page sum."""
    return bytes(_SUM) + page_sum(payload).to_bytes(_SUM, "little")


def is_whole(payload: bytes | memoryview, size: int) -> bool:
    """Whether a download is as `summed` makes it; touches every page."""
    return len(payload) == size and page_sum(payload) == int.from_bytes(payload[-_SUM:], "little")


def items(count: int) -> Iterator[bytes]:
    """A stream's items."""
    for _ in range(count):
        yield ITEM
