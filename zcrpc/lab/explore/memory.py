"""Memory models: what a load may read. Each is a machine whose states are plain tuples, so that a search can put them
into a set.

`Interleaving(buffers=False)` is sequential consistency; with buffers it is x86's TSO: plain stores wait in a queue of
the thread's own, which drains in order, at any time. `Views` is C11's release/acquire fragment with relaxed and seq_cst
accesses and fences, as a promise-free view machine (Kang et al., POPL '17; RC11's subset without load buffering).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from zcrpc.lab.explore.program import (
    SEQ_CST,
    Enter,
    Fence,
    Leave,
    Load,
    Operation,
    Order,
    Program,
    Store,
    Update,
    Wait,
    Wake,
)

State = Any  # of a memory: hashable, and known to the memory alone
Step = tuple[int, State]  # an operation's result, and the memory after it; of Wait: 1 where the thread now sleeps


class Violation(Exception):
    """Something that must not happen did."""


class Memory(Protocol):
    """How a model takes part in a search."""

    name: str

    def start(self, program: Program) -> State: ...

    def steps(self, state: State, thread: int, operation: Operation) -> Iterator[Step]:
        """Every way in which a thread can take its next step now. Raises Violation."""

    def drains(self, state: State) -> Iterator[State]:
        """Steps that memory takes by itself."""

    def is_local(self, operation: Operation) -> bool:
        """The step commutes with all steps of others: it is taken together with the one before it."""


class Interleaving:
    """Sequential consistency, or TSO with `buffers`. State: values, a buffer per thread, and who is in which
    section."""

    def __init__(self, buffers: bool) -> None:
        self.buffers = buffers
        self.name = "TSO" if buffers else "SC"

    def start(self, program: Program) -> State:
        self._words = {word: index for index, word in enumerate(program.words)}
        self._sections = {section: index for index, section in enumerate(program.sections)}
        empty: tuple[tuple[int, int], ...] = ()
        return tuple(program.words.values()), (empty,) * len(program.threads), ((0, 0),) * len(program.sections)

    def steps(self, state: State, thread: int, operation: Operation) -> Iterator[Step]:
        values, buffers, sections = state
        buffer = buffers[thread]
        match operation:
            case Load(name, _, until):
                word = self._words[name]
                value = next((value for to, value in reversed(buffer) if to == word), values[word])
                if until is None or until(value):
                    yield value, state
            case Store(name, value, order) if self.buffers and order is not SEQ_CST:
                entry = (self._words[name], value)
                yield 0, (values, _put(buffers, thread, (*buffer, entry)), sections)
            case Enter(section, exclusive):
                yield 0, (values, buffers, self._change(sections, section, exclusive, 1))
            case Leave(section, exclusive):
                yield 0, (values, buffers, self._change(sections, section, exclusive, -1))
            case Fence(order) if order is not SEQ_CST:
                yield 0, state
            case _ if buffer:  # locked instructions, mfence and system calls wait for the buffer to drain
                return
            case Store(name, value, _):
                yield 0, (_put(values, self._words[name], value), buffers, sections)
            case Update(name, change, _):
                word = self._words[name]
                new = change(values[word])
                yield values[word], state if new is None else (_put(values, word, new), buffers, sections)
            case Wait(name, expected):
                yield int(values[self._words[name]] == expected), state
            case Fence() | Wake():
                yield 0, state

    def drains(self, state: State) -> Iterator[State]:
        values, buffers, sections = state
        for thread, buffer in enumerate(buffers):
            if buffer:
                word, value = buffer[0]
                yield _put(values, word, value), _put(buffers, thread, buffer[1:]), sections

    def is_local(self, operation: Operation) -> bool:
        return isinstance(operation, Enter)

    def _change(self, sections: State, section: str, exclusive: bool, by: int) -> State:
        index = self._sections[section]
        shared, alone = sections[index]
        shared, alone = (shared, alone + by) if exclusive else (shared + by, alone)
        if alone > 1 or (alone and shared):
            raise Violation(f"{alone} exclusive and {shared} shared at once in {section}")
        return _put(sections, index, (shared, alone))


# A view is how far someone has seen, word by word: an index into the word's history. Behind the words it has a clock
# per (section, thread, kind of access), and an access that another thread's view does not cover races with that
# thread's next.
View = tuple[int, ...]
# Value, view, and "written by the update that read the message before it": nothing gets in between.
Message = tuple[int, View, bool]
# What is seen, what an acquire fence would add, and what a release fence has published.
ThreadViews = tuple[View, View, View]


class Views:
    """State: each word's history in modification order, three views per thread, and the view that seq_cst accesses
    share.

    A seq_cst load reads nothing older than the last seq_cst store, or than what a seq_cst fence had seen; all seq_cst
    accesses take part in one order, that of execution.
    """

    name = "views"

    def start(self, program: Program) -> State:
        names = [*program.words, *(f"{word}.queue" for word in program.words)]
        self._words = {word: index for index, word in enumerate(names)}
        self._sections = {section: index for index, section in enumerate(program.sections)}
        self._threads = len(program.threads)
        zero: View = (0,) * (len(names) + 2 * len(program.sections) * self._threads)
        histories = tuple(((program.words.get(word, 0), zero, False),) for word in names)
        return histories, ((zero, zero, zero),) * self._threads, zero

    def steps(self, state: State, thread: int, operation: Operation) -> Iterator[Step]:
        match operation:
            case Load(name, order, until):
                yield from self._load(state, thread, self._words[name], order, until)
            case Store(name, value, order):
                yield from self._store(state, thread, self._words[name], value, order)
            case Update(name, change, order):
                yield from self._update(state, thread, self._words[name], change, order)
            case Fence(order):
                yield 0, self._fence(state, thread, order)
            case Enter(section, exclusive) | Leave(section, exclusive):
                yield 0, self._access(state, thread, self._sections[section], exclusive)
            case Wake(name):
                yield from self._queue(state, thread, name)
            case Wait(name, expected):
                for _, queued in self._queue(state, thread, name):
                    for value, read in self._load(queued, thread, self._words[name], Order.RELAXED, None):
                        yield int(value == expected), read

    def drains(self, state: State) -> Iterator[State]:
        return iter(())

    def is_local(self, operation: Operation) -> bool:
        return isinstance(operation, Enter | Leave) or (isinstance(operation, Fence) and operation.order is not SEQ_CST)

    def _queue(self, state: State, thread: int, name: str) -> Iterator[Step]:
        """The kernel's lock of a futex's bucket: whoever takes it has seen what those before saw."""
        return self._update(state, thread, self._words[f"{name}.queue"], lambda value: value, Order.ACQ_REL)

    def _load(self, state: State, thread: int, word: int, order: Order, until: Any) -> Iterator[Step]:
        histories, threads, sc = state
        seen = threads[thread][0][word]
        if order is SEQ_CST:
            seen = max(seen, sc[word])
        for index in range(seen, len(histories[word])):
            value = histories[word][index][0]
            if until is None or until(value):
                views = _read(threads[thread], word, index, histories[word][index][1], order)
                yield value, (histories, _put(threads, thread, views), sc)

    def _store(self, state: State, thread: int, word: int, value: int, order: Order) -> Iterator[Step]:
        histories, threads, sc = state
        seen = threads[thread][0][word]
        if order is SEQ_CST:
            seen = max(seen, sc[word])
        history = histories[word]
        for index in range(seen + 1, len(history) + 1):
            if index == len(history) or not history[index][2]:
                yield 0, _insert(state, thread, word, index, value, order, None)

    def _update(self, state: State, thread: int, word: int, change: Any, order: Order) -> Iterator[Step]:
        histories, threads, sc = state
        seen = threads[thread][0][word]
        if order is SEQ_CST:
            seen = max(seen, sc[word])
        history = histories[word]
        for index in range(seen, len(history)):
            value, message, _ = history[index]
            new = change(value)
            if new is None:
                views = _read(threads[thread], word, index, message, Order.RELAXED)
                yield value, (histories, _put(threads, thread, views), sc)
            elif index + 1 == len(history) or not history[index + 1][2]:
                views = _read(threads[thread], word, index, message, order)
                after = (histories, _put(threads, thread, views), sc)
                yield value, _insert(after, thread, word, index + 1, new, order, message)

    def _fence(self, state: State, thread: int, order: Order) -> State:
        histories, threads, sc = state
        seen, acquirable, published = threads[thread]
        if order.acquires:
            seen = acquirable
        if order is SEQ_CST:
            seen = sc = _join(seen, sc)
            acquirable = _join(acquirable, seen)
        if order.releases:
            published = seen
        return histories, _put(threads, thread, (seen, acquirable, published)), sc

    def _access(self, state: State, thread: int, section: int, exclusive: bool) -> State:
        histories, threads, sc = state
        seen, acquirable, published = threads[thread]
        base = len(histories) + 2 * section * self._threads
        for other in range(self._threads):
            for clock in (base + 2 * other, base + 2 * other + 1) if exclusive else (base + 2 * other + 1,):
                if other != thread and seen[clock] < threads[other][0][clock]:
                    name = next(name for name, index in self._sections.items() if index == section)
                    raise Violation(f"threads {thread} and {other} race in {name}")
        clock = base + 2 * thread + exclusive
        seen, acquirable = (_put(view, clock, seen[clock] + 1) for view in (seen, acquirable))
        return histories, _put(threads, thread, (seen, acquirable, published)), sc


def _read(views: ThreadViews, word: int, index: int, message: View, order: Order) -> ThreadViews:
    seen, acquirable, published = views
    if seen[word] < index:
        seen = _put(seen, word, index)
    if order.acquires:
        seen = _join(seen, message)
    return seen, _join(_join(acquirable, message), seen), published


def _insert(state: State, thread: int, word: int, index: int, value: int, order: Order, read: View | None) -> State:
    """A new message at an index of a word's history; `read`: the view of the message that the update read."""
    histories, threads, sc = state
    if index < len(histories[word]):
        histories = tuple(tuple((v, _shift(view, word, index), u) for v, view, u in history) for history in histories)
        threads = tuple(tuple(_shift(view, word, index) for view in views) for views in threads)
        sc = _shift(sc, word, index)
        read = None if read is None else _shift(read, word, index)
    seen, acquirable, published = threads[thread]
    seen, acquirable = _put(seen, word, index), _put(acquirable, word, index)
    message = seen if order.releases else _put(published, word, index)
    if read is not None:
        message = _join(message, read)
    if order is SEQ_CST:
        sc = _put(sc, word, max(sc[word], index))
    history = histories[word]
    history = (*history[:index], (value, message, read is not None), *history[index:])
    return _put(histories, word, history), _put(threads, thread, (seen, acquirable, published)), sc


def _shift(view: View, word: int, index: int) -> View:
    return _put(view, word, view[word] + 1) if view[word] >= index else view


def _join(one: View, other: View) -> View:
    return one if one == other else tuple(map(max, one, other))


def _put(values: Any, index: int, value: Any) -> Any:
    return (*values[:index], value, *values[index + 1 :])


SC = Interleaving(buffers=False)
TSO = Interleaving(buffers=True)
VIEWS = Views()
