"""Litmus tests whose answers are known: what an explorer must say before it is believed about anything else.

`allowed` names the models under which the `weak` outcome is to be seen; it must be seen under these, and under no
other. Load buffering with relaxed accesses is the one case where `views` is stronger than C11 (and than ARM): it takes
promises, see docs/verification.md.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from zcrpc.lab.explore.program import (
    ACQ_REL,
    ACQUIRE,
    RELAXED,
    RELEASE,
    SEQ_CST,
    Fence,
    Load,
    Operation,
    Order,
    Program,
    Store,
    Thread,
    Update,
)

Run = Generator[Operation, int, object]


@dataclass(frozen=True, slots=True)
class Litmus:
    """A small program whose outcomes are known for each memory model."""

    name: str
    program: Program
    weak: tuple[object, ...]  # what the threads return, where the order of things shows
    allowed: frozenset[str]  # of SC, TSO, views


def _two(*threads: Thread) -> Program:
    return Program(threads, {"x": 0, "y": 0})


def _writes(*stores: tuple[str, int, Order]) -> Thread:
    def thread() -> Run:
        for word, value, order in stores:
            yield Store(word, value, order)
        return None

    return thread


def _reads(*loads: tuple[str, Order]) -> Thread:
    def thread() -> Run:
        values = []
        for word, order in loads:
            values.append((yield Load(word, order)))
        return tuple(values)

    return thread


def _store_then_load(store: str, load: str, order: Order, load_order: Order, fence: Order | None = None) -> Thread:
    def thread() -> Run:
        yield Store(store, 1, order)
        if fence is not None:
            yield Fence(fence)
        return (yield Load(load, load_order))

    return thread


def _store_buffering(order: Order, load_order: Order, fence: Order | None = None) -> Program:
    return _two(
        _store_then_load("x", "y", order, load_order, fence),
        _store_then_load("y", "x", order, load_order, fence),
    )


def _update_then_load(update: str, load: str, order: Order, load_order: Order) -> Thread:
    def thread() -> Run:
        yield Update(update, lambda value: value + 1, order)
        return (yield Load(load, load_order))

    return thread


def _load_then_store(load: str, store: str, load_order: Order, order: Order) -> Thread:
    def thread() -> Run:
        value = yield Load(load, load_order)
        yield Store(store, 1, order)
        return value

    return thread


def _message(store: Order, load: Order) -> Program:
    return _two(_writes(("x", 1, RELAXED), ("y", 1, store)), _reads(("y", load), ("x", RELAXED)))


def _fenced_message() -> Program:
    def writer() -> Run:
        yield Store("x", 1, RELAXED)
        yield Fence(RELEASE)
        yield Store("y", 1, RELAXED)
        return None

    def reader() -> Run:
        flag = yield Load("y", RELAXED)
        yield Fence(ACQUIRE)
        return flag, (yield Load("x", RELAXED))

    return _two(writer, reader)


def _release_sequence(middle: Order) -> Program:
    """A relaxed update between release and acquire carries the release on; a relaxed store does not."""

    def carries() -> Run:
        yield Update("y", lambda value: value + 1 if value else None, middle)
        return None

    return _two(_writes(("x", 1, RELAXED), ("y", 1, RELEASE)), carries, _reads(("y", ACQUIRE), ("x", RELAXED)))


def _independent_reads(store: Order, load: Order) -> Program:
    return _two(
        _writes(("x", 1, store)),
        _writes(("y", 1, store)),
        _reads(("x", load), ("y", load)),
        _reads(("y", load), ("x", load)),
    )


def _two_updates() -> Program:
    def thread() -> Run:
        return (yield Update("x", lambda value: value + 1, RELAXED))

    return _two(thread, thread)


def _two_plus_two_writes(order: Order) -> Program:
    """Two more threads tell each word's modification order."""
    return _two(
        _writes(("x", 1, order), ("y", 2, order)),
        _writes(("y", 1, order), ("x", 2, order)),
        _reads(("x", RELAXED), ("x", RELAXED)),
        _reads(("y", RELAXED), ("y", RELAXED)),
    )


def _cases() -> list[Litmus]:
    weak, never = frozenset({"TSO", "views"}), frozenset[str]()
    views = frozenset({"views"})
    message = (None, (1, 0))
    independent = (None, None, (1, 0), (1, 0))
    return [
        Litmus("SB relaxed", _store_buffering(RELAXED, RELAXED), (0, 0), weak),
        Litmus("SB release/acquire", _store_buffering(RELEASE, ACQUIRE), (0, 0), weak),
        Litmus("SB seq_cst", _store_buffering(SEQ_CST, SEQ_CST), (0, 0), never),
        Litmus("SB seq_cst stores, acquire loads", _store_buffering(SEQ_CST, ACQUIRE), (0, 0), views),
        Litmus("SB relaxed, seq_cst fences", _store_buffering(RELAXED, RELAXED, SEQ_CST), (0, 0), never),
        Litmus("SB relaxed, acq_rel fences", _store_buffering(RELAXED, RELAXED, ACQ_REL), (0, 0), weak),
        Litmus(
            "SB acq_rel updates",
            _two(_update_then_load("x", "y", ACQ_REL, ACQUIRE), _update_then_load("y", "x", ACQ_REL, ACQUIRE)),
            (0, 0),
            views,
        ),
        Litmus(
            "SB seq_cst updates",
            _two(_update_then_load("x", "y", SEQ_CST, SEQ_CST), _update_then_load("y", "x", SEQ_CST, SEQ_CST)),
            (0, 0),
            never,
        ),
        Litmus("MP relaxed", _message(RELAXED, RELAXED), message, views),
        Litmus("MP release/relaxed", _message(RELEASE, RELAXED), message, views),
        Litmus("MP relaxed/acquire", _message(RELAXED, ACQUIRE), message, views),
        Litmus("MP release/acquire", _message(RELEASE, ACQUIRE), message, never),
        Litmus("MP relaxed, fences", _fenced_message(), message, never),
        Litmus("MP through a relaxed update", _release_sequence(RELAXED), (None, None, (2, 0)), never),
        Litmus(
            "LB relaxed",
            _two(_load_then_store("x", "y", RELAXED, RELAXED), _load_then_store("y", "x", RELAXED, RELAXED)),
            (1, 1),
            never,
        ),
        Litmus(
            "LB acquire/release",
            _two(_load_then_store("x", "y", ACQUIRE, RELEASE), _load_then_store("y", "x", ACQUIRE, RELEASE)),
            (1, 1),
            never,
        ),
        Litmus("IRIW relaxed", _independent_reads(RELAXED, RELAXED), independent, views),
        Litmus("IRIW release/acquire", _independent_reads(RELEASE, ACQUIRE), independent, views),
        Litmus("IRIW seq_cst", _independent_reads(SEQ_CST, SEQ_CST), independent, never),
        Litmus(
            "CoRR",
            _two(_writes(("x", 1, RELAXED)), _reads(("x", RELAXED), ("x", RELAXED))),
            (None, (1, 0)),
            never,
        ),
        Litmus(
            "CoRR, two writers",
            _two(
                _writes(("x", 1, RELAXED)),
                _writes(("x", 2, RELAXED)),
                _reads(("x", RELAXED), ("x", RELAXED)),
                _reads(("x", RELAXED), ("x", RELAXED)),
            ),
            (None, None, (1, 2), (2, 1)),
            never,
        ),
        Litmus("2+2W relaxed", _two_plus_two_writes(RELAXED), (None, None, (2, 1), (2, 1)), views),
        Litmus("2+2W seq_cst", _two_plus_two_writes(SEQ_CST), (None, None, (2, 1), (2, 1)), never),
        Litmus("two updates", _two_updates(), (0, 0), never),
    ]


LITMUS = _cases()
