"""Counters and gauges: fields of dataclasses that say once what they count. `zcrpc.prometheus`, `zcrpc top` and the
reference read it there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple


class Counted(NamedTuple):
    """A counter or a gauge: `grows` tells them apart. `text`: what it counts, a sentence."""

    name: str
    grows: bool
    text: str


def counter(text: str) -> Any:
    """A field that counts from the start on; for dataclasses whose fields are given by name."""
    return dataclasses.field(default=0, metadata={"grows": True, "text": text})


def gauge(text: str) -> Any:
    """A field that says how many or how much there is of something now."""
    return dataclasses.field(default=0, metadata={"grows": False, "text": text})


@functools.cache
def counted(kind: type) -> tuple[Counted, ...]:
    """The counters and gauges of a dataclass."""
    return tuple(
        Counted(each.name, each.metadata["grows"], each.metadata["text"])
        for each in dataclasses.fields(kind)
        if "grows" in each.metadata
    )


def counters(kind: type) -> tuple[str, ...]:
    """The names of those that only grow."""
    return tuple(each.name for each in counted(kind) if each.grows)


def gauges(kind: type) -> tuple[str, ...]:
    """The names of the others."""
    return tuple(each.name for each in counted(kind) if not each.grows)
