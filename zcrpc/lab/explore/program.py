"""What threads are made of: generators that yield operations on shared words and get their results back.

A spin loop is one `Load(…, until=…)`: it waits for a value and reads no other. `Enter` and `Leave` say where a thread
believes that it has something to itself (`exclusive`) or shares it; whether that is so is what a search is about. A
broken assumption is an `AssertionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum


class Order(Enum):
    """C11's memory orders; what a model makes of them is its own affair."""

    RELAXED = "relaxed"
    ACQUIRE = "acquire"
    RELEASE = "release"
    ACQ_REL = "acq_rel"
    SEQ_CST = "seq_cst"

    @property
    def acquires(self) -> bool:
        return self in (Order.ACQUIRE, Order.ACQ_REL, Order.SEQ_CST)

    @property
    def releases(self) -> bool:
        return self in (Order.RELEASE, Order.ACQ_REL, Order.SEQ_CST)


RELAXED, ACQUIRE, RELEASE, ACQ_REL, SEQ_CST = Order


@dataclass(frozen=True, slots=True)
class Load:
    """Results in the value read; `until`: waits for a value that satisfies it."""

    word: str
    order: Order
    until: Callable[[int], bool] | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """A store to a word."""

    word: str
    value: int
    order: Order


@dataclass(frozen=True, slots=True)
class Update:
    """A read-modify-write: results in the old value. `change` gives the new one, or None for a compare that failed: a
    relaxed load."""

    word: str
    change: Callable[[int], int | None]
    order: Order


@dataclass(frozen=True, slots=True)
class Fence:
    """A fence that stands by itself."""

    order: Order


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleeps if the word is still `expected`, as a futex does: comparing and queueing are one step under the kernel's
    lock."""

    word: str
    expected: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Wakes all that sleep on the word."""

    word: str


@dataclass(frozen=True, slots=True)
class Enter:
    """Comes into a section, which is checked to be exclusive where it says so."""

    section: str
    exclusive: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Goes out of it."""

    section: str
    exclusive: bool


Operation = Load | Store | Update | Fence | Wait | Wake | Enter | Leave
Thread = Callable[[], Generator[Operation, int, object]]


def visit(section: str, *, exclusive: bool) -> Generator[Operation, int, None]:
    """Comes into a section and goes out again: what a lock is held for."""
    yield Enter(section, exclusive)
    yield Leave(section, exclusive)


@dataclass(frozen=True, slots=True)
class Program:
    """Threads, what their words hold before they start, and the sections that they enter."""

    threads: tuple[Thread, ...]
    words: dict[str, int]
    sections: tuple[str, ...] = ()
