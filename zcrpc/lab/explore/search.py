"""Every execution of a program under a memory model: its outcomes, or a way to what must not happen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from zcrpc.lab.explore.memory import Memory, State, Violation
from zcrpc.lab.explore.program import Operation, Program, Thread, Wait, Wake

T = TypeVar("T")


@dataclass(slots=True)
class Exploration:
    """What a search found. `outcomes`: what the threads returned, in each execution that ended. `violation`: the first
    one, and `trace`, the steps that lead to it."""

    states: int = 0
    depth: int = 0
    outcomes: set[tuple[object, ...]] = field(default_factory=set)
    violation: str | None = None
    trace: list[str] = field(default_factory=list)


class _Place:
    """Where a thread is: after one history of results. Threads are generators, which cannot be copied, so each place is
    reached by a replay, once."""

    __slots__ = ("after", "ended", "history", "operation", "result", "thread", "wrong")

    def __init__(self, thread: Thread, history: tuple[int, ...]) -> None:
        self.thread, self.history = thread, history
        self.after: dict[int, _Place] = {}
        self.operation: Operation | None = None
        self.result: object = None
        self.wrong: str | None = None
        run = thread()
        try:
            self.operation = next(run)
            for result in history:
                self.operation = run.send(result)
        except StopIteration as end:
            self.operation, self.result = None, end.value
        except AssertionError as error:
            self.operation, self.wrong = None, str(error) or "assertion failed"

    def then(self, result: int) -> _Place:
        place = self.after.get(result)
        if place is None:
            place = self.after[result] = _Place(self.thread, (*self.history, result))
        return place


# Where the threads are, which word each sleeps on ("" if awake), and the memory.
_State = tuple[tuple[_Place, ...], tuple[str, ...], State]


def explore(program: Program, memory: Memory, limit: int = 3_000_000) -> Exploration:
    """Depth first, every state once. A violation ends it. Raises RuntimeError after `limit` states."""
    found = Exploration()
    first: _State = (
        tuple(_Place(thread, ()) for thread in program.threads),
        ("",) * len(program.threads),
        memory.start(program),
    )
    came_from: dict[_State, tuple[_State | None, str]] = {first: (None, "")}
    stack: list[tuple[_State, int]] = [(first, 0)]
    while stack:
        state, depth = stack.pop()
        found.depth = max(found.depth, depth)
        try:
            ended = all(place.operation is None for place in state[0])
            moved = False
            for step, following in _following(memory, state):
                moved = True
                if following not in came_from:
                    came_from[following] = (state, step)
                    stack.append((following, depth + 1))
            if ended and not moved:
                found.outcomes.add(tuple(place.result for place in state[0]))
            elif not moved:
                raise Violation("stuck: " + ", ".join(_where(state)))
        except Violation as violation:
            found.violation = str(violation)
            found.trace = _trace(came_from, state)
            break
        if len(came_from) > limit:
            raise RuntimeError(f"more than {limit} states")
    found.states = len(came_from)
    return found


def _following(memory: Memory, state: _State) -> Iterator[tuple[str, _State]]:
    places, asleep, words = state
    for drained in memory.drains(words):
        yield "a buffer drains", (places, asleep, drained)
    for thread, place in enumerate(places):
        operation = place.operation
        if operation is None or asleep[thread]:
            continue
        for result, after in memory.steps(words, thread, operation):
            step = f"{thread}: {_show(operation)} = {result}"
            if isinstance(operation, Wait) and result == 1:
                yield step, (places, _put(asleep, thread, operation.word), after)
                continue
            now, sleepers = _put(places, thread, place.then(result)), asleep
            if isinstance(operation, Wake):
                woken = [i for i, word in enumerate(asleep) if word == operation.word]
                now = tuple(p.then(1) if i in woken else p for i, p in enumerate(now))
                sleepers = tuple("" if i in woken else word for i, word in enumerate(asleep))
            yield step, _settle(memory, thread, (now, sleepers, after))


def _settle(memory: Memory, thread: int, state: _State) -> _State:
    """Takes the thread's steps that nobody else can tell the time of."""
    places, asleep, words = state
    while True:
        place = places[thread]
        if place.wrong is not None:
            raise Violation(f"thread {thread}: {place.wrong}")
        if place.operation is None or not memory.is_local(place.operation):
            return places, asleep, words
        ((result, words),) = memory.steps(words, thread, place.operation)
        places = _put(places, thread, place.then(result))


def _put(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _show(operation: Operation) -> str:
    details = [str(getattr(operation, name)) for name in operation.__slots__]
    return f"{type(operation).__name__}({', '.join(d for d in details if not d.startswith('<'))})"


def _where(state: _State) -> Iterator[str]:
    for thread, (place, word) in enumerate(zip(state[0], state[1], strict=True)):
        if place.operation is not None:
            yield f"thread {thread} " + (f"sleeps on {word}" if word else f"waits in {_show(place.operation)}")


def _trace(came_from: dict[_State, tuple[_State | None, str]], state: _State | None) -> list[str]:
    steps = []
    while state is not None:
        state, step = came_from[state]
        steps.append(step)
    return steps[-2::-1]
