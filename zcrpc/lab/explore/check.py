"""What the explorer must find, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zcrpc.lab.explore.litmus import LITMUS, Litmus
from zcrpc.lab.explore.memory import SC, TSO, VIEWS, Memory
from zcrpc.lab.explore.protocols import PROTOCOLS, Protocol, Weakening
from zcrpc.lab.explore.search import explore

MODELS: tuple[Memory, ...] = (SC, TSO, VIEWS)


@dataclass(frozen=True, slots=True)
class Check:
    """One program under one model. `found`: the weak outcome of a litmus test, or what is wrong with a protocol; empty
    for nothing. `expected`: whether something had to be found. `weakened`: the order that was made weaker, with its new
    value."""

    program: str
    model: str
    states: int
    found: str
    expected: bool
    reached: bool = True
    weakened: str = ""
    fault: str = ""
    is_litmus: bool = False

    @property
    def as_expected(self) -> bool:
        return bool(self.found) == self.expected and self.reached

    @property
    def title(self) -> str:
        weakened = f" with {self.weakened}" if self.weakened else ""
        fault = f" ({self.fault})" if self.fault else ""
        return f"{self.program}{weakened}{fault} under {self.model}"


def check_litmus(litmus: Litmus, memory: Memory) -> Check:
    """The weak outcome shows where it is allowed, and nowhere else."""
    found = explore(litmus.program, memory)
    weak = f"outcome {litmus.weak}" if litmus.weak in found.outcomes else ""
    return Check(litmus.name, memory.name, found.states, weak, memory.name in litmus.allowed, is_litmus=True)


def check_protocol(protocol: Protocol, memory: Memory) -> Check:
    """As implemented: nothing wrong, and the protocol was seen at work."""
    found = explore(protocol.program(), memory)
    wrong = "\n  ".join([found.violation, *found.trace]) if found.violation else ""
    return Check(protocol.name, memory.name, found.states, wrong, False, reached=protocol.reached in found.outcomes)


def check_weakening(protocol: Protocol, weakening: Weakening, memory: Memory) -> Check:
    """With one order weakened the protocol goes wrong, in the models where it must."""
    found = explore(protocol.program(weakening), memory)
    weakened = f"{weakening.site} {weakening.order.value}"
    expected = memory.name in weakening.fails
    return Check(
        protocol.name, memory.name, found.states, found.violation or "", expected, True, weakened, weakening.fault
    )


def check_all() -> Iterator[Check]:
    """Litmus tests first: what fails there makes the rest worthless."""
    for litmus in LITMUS:
        for memory in MODELS:
            yield check_litmus(litmus, memory)
    for protocol in PROTOCOLS:
        for memory in MODELS:
            yield check_protocol(protocol, memory)
        for weakening in protocol.weakenings:
            for memory in MODELS:
                yield check_weakening(protocol, weakening, memory)
