"""The weak-memory explorer: right about the litmus tests, silent about the locks, and not where an order is missing."""

import pytest

from zcrpc.lab.explore.check import MODELS, check_litmus, check_protocol, check_weakening
from zcrpc.lab.explore.litmus import LITMUS, Litmus
from zcrpc.lab.explore.memory import SC, TSO, VIEWS, Memory
from zcrpc.lab.explore.program import (
    ACQUIRE,
    RELAXED,
    RELEASE,
    SEQ_CST,
    Enter,
    Leave,
    Load,
    Program,
    Store,
    Update,
    Wait,
    Wake,
)
from zcrpc.lab.explore.protocols import PROTOCOLS, Protocol, Run, Weakening
from zcrpc.lab.explore.search import explore

each_model = pytest.mark.parametrize("memory", MODELS, ids=lambda memory: memory.name)


@each_model
@pytest.mark.parametrize("litmus", LITMUS, ids=lambda litmus: litmus.name)
def test_litmus_outcomes_are_the_known_ones(litmus: Litmus, memory: Memory) -> None:
    check = check_litmus(litmus, memory)
    assert check.as_expected, check.title


def test_litmus_families_are_complete() -> None:
    assert {litmus.name.split()[0].rstrip(",") for litmus in LITMUS} >= {"SB", "MP", "LB", "IRIW", "CoRR"}


@each_model
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_protocols_hold_as_implemented(protocol: Protocol, memory: Memory) -> None:
    check = check_protocol(protocol, memory)
    assert not check.found, check.found
    assert check.reached, f"never {protocol.reached}"


@each_model
@pytest.mark.parametrize(
    ("protocol", "weakening"),
    [
        pytest.param(protocol, weakening, id=f"{protocol.name}, {weakening.site} {weakening.order.value}")
        for protocol in PROTOCOLS
        for weakening in protocol.weakenings
    ],
)
def test_missing_orders_are_found(protocol: Protocol, weakening: Weakening, memory: Memory) -> None:
    assert check_weakening(protocol, weakening, memory).as_expected


@pytest.mark.parametrize("fault", ["M1", "M11"])
def test_seeded_ordering_faults_are_among_them(fault: str) -> None:
    seeded = [weakening for protocol in PROTOCOLS for weakening in protocol.weakenings if weakening.fault == fault]
    assert seeded
    assert all(weakening.fails for weakening in seeded)


def test_protocols_are_of_a_size_that_can_be_searched() -> None:
    assert all(len(protocol.program().threads) <= 3 for protocol in PROTOCOLS)


# ---- the search itself ----


def test_a_lost_wake_up_is_found() -> None:
    def sleeper() -> Run:
        yield Wait("word", 0)
        return "woken"

    def waker() -> Run:
        yield Wake("word")  # without having changed the word: too early, and nobody wakes the sleeper any more
        return None

    found = explore(Program((sleeper, waker), {"word": 0}), SC)
    assert found.violation == "stuck: thread 0 sleeps on word"
    assert found.trace == ["1: Wake(word) = 0", "0: Wait(word, 0) = 1"]


@each_model
def test_changing_the_word_first_loses_no_wake_up(memory: Memory) -> None:
    def sleeper() -> Run:
        slept = yield Wait("word", 0)
        return "slept" if slept else "refused"

    def waker() -> Run:
        yield Update("word", lambda value: value + 1, RELEASE)
        yield Wake("word")
        return None

    found = explore(Program((sleeper, waker), {"word": 0}), memory)
    assert found.violation is None
    assert found.outcomes == {("slept", None), ("refused", None)}


@each_model
def test_a_section_that_two_are_in_is_found(memory: Memory) -> None:
    def thread() -> Run:
        yield Load("word", SEQ_CST)
        yield Enter("section", exclusive=True)
        yield Leave("section", exclusive=True)
        return None

    assert explore(Program((thread, thread), {"word": 0}, ("section",)), memory).violation


@each_model
def test_a_section_may_be_shared(memory: Memory) -> None:
    def thread() -> Run:
        yield Enter("section", exclusive=False)
        yield Leave("section", exclusive=False)
        return "shared"

    found = explore(Program((thread, thread), {"word": 0}, ("section",)), memory)
    assert found.violation is None
    assert found.outcomes == {("shared", "shared")}


def test_a_race_is_found_though_nobody_is_inside_at_once() -> None:
    """The second comes later in every execution, but nothing orders what it sees."""

    def first() -> Run:
        yield Enter("section", exclusive=True)
        yield Leave("section", exclusive=True)
        yield Store("done", 1, RELAXED)
        return None

    def second() -> Run:
        yield Load("done", ACQUIRE, until=lambda value: value == 1)
        yield Enter("section", exclusive=True)
        yield Leave("section", exclusive=True)
        return None

    program = Program((first, second), {"done": 0}, ("section",))
    assert explore(program, TSO).violation is None
    assert explore(program, VIEWS).violation == "threads 1 and 0 race in section"


@each_model
def test_a_broken_assumption_is_found(memory: Memory) -> None:
    def thread() -> Run:
        if (yield Load("word", RELAXED)) != 0:
            raise AssertionError("it is 1")
        return None

    def other() -> Run:
        yield Store("word", 1, RELAXED)
        return None

    assert explore(Program((thread, other), {"word": 0}), memory).violation == "thread 0: it is 1"


def test_a_search_that_does_not_end_is_cut_off() -> None:
    def thread() -> Run:
        while True:
            yield Update("word", lambda value: value + 1, RELAXED)

    with pytest.raises(RuntimeError, match="more than 1000 states"):
        explore(Program((thread,), {"word": 0}), SC, limit=1000)


def test_an_order_that_a_protocol_does_not_have_cannot_be_weakened() -> None:
    with pytest.raises(KeyError, match="no such site"):
        PROTOCOLS[0].program(Weakening("no such site", RELAXED, frozenset()))
