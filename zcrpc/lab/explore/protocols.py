"""The memory orders that zcrpc's locks rely on, one by one.

A protocol is a program as the C source has it, with every order under a name: a *site*. As implemented it must hold
under every model. With one site weakened, it must fail where the table says so: then that order is needed, and the
explorer is seen to find what is missing. Faults M1 and M11 of native/lock/faults.h are such weakenings.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from zcrpc.lab.explore.program import (
    ACQ_REL,
    ACQUIRE,
    RELAXED,
    RELEASE,
    SEQ_CST,
    Enter,
    Load,
    Operation,
    Order,
    Program,
    Store,
    Thread,
    Update,
    Wait,
    Wake,
    visit,
)

Run = Generator[Operation, int, object]
Orders = Mapping[str, Order]


@dataclass(frozen=True, slots=True)
class Weakening:
    """One site with a weaker order, and the models under which the protocol then fails. `fault`: its number among the
    seeded faults."""

    site: str
    order: Order
    fails: frozenset[str]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Protocol:
    """`source`: the C that it is taken from. `reached`: an outcome of some thread that shows that the protocol was
    really at work."""

    name: str
    source: str
    orders: Orders
    build: Callable[[Orders], Program]
    weakenings: tuple[Weakening, ...]
    reached: tuple[object, ...]

    def program(self, weakening: Weakening | None = None) -> Program:
        if weakening is None:
            return self.build(self.orders)
        if weakening.site not in self.orders:
            raise KeyError(weakening.site)
        return self.build({**self.orders, weakening.site: weakening.order})


VIEWS_ONLY = frozenset({"views"})
ALL_WEAK = frozenset({"TSO", "views"})
NOWHERE = frozenset[str]()

# ---- per-region ----

FLAG, LIMIT = 8, 7  # bit 30 and the most references, scaled down


def _enter(o: Orders, address: int) -> Run:
    """try_enter, and put where it refuses. True: entered."""
    if (yield Load("region.seq", RELAXED)) == (yield Load("map.seq", RELAXED)):
        return False
    refs = yield Update("refs", lambda refs: refs + 1 if 0 < refs < LIMIT else None, o["enter"])
    if not 0 < refs < LIMIT:
        return False
    seq = yield Load("map.seq", o["check"])
    if seq != (yield Load("region.seq", RELAXED)) and (yield Load("place", RELAXED)) == address:
        return True
    yield from _put(o)
    return False


def _put(o: Orders) -> Run:
    left = (yield Update("refs", lambda refs: refs - 1, o["put"])) - 1
    if left in (FLAG, FLAG + 1):
        yield Wake("refs")
    return None


def _drain(o: Orders, refs: int, drained: int) -> Run:
    while refs != drained:
        refs = yield Load("refs", o["drain"])
        if refs != drained:
            yield Wait("refs", refs)
    return None


def _region_write_lock(o: Orders, seq: int) -> Run:
    refs = yield Update("refs", lambda refs: refs + FLAG, o["flag"])
    yield from _drain(o, refs + FLAG, FLAG + 1)
    yield Store("region.seq", seq, RELAXED)
    yield Update("refs", lambda refs: refs - FLAG, o["unflag"])
    return None


def _reader(o: Orders, address: int = 1) -> Thread:
    def run() -> Run:
        if not (yield from _enter(o, address)):
            return "refused"
        yield from visit("region", exclusive=False)
        yield from _put(o)
        return "entered"

    return run


PER_REGION = {
    "enter": ACQUIRE,
    "check": ACQUIRE,
    "put": RELEASE,
    "flag": ACQUIRE,
    "drain": ACQUIRE,
    "unflag": RELEASE,
    "write_unlock": RELEASE,
}
REGION_WORDS = {"map.seq": 0, "region.seq": 6, "refs": 1, "place": 1}


def _per_region_write(o: Orders) -> Program:
    def writer() -> Run:
        yield Store("map.seq", 1, RELAXED)
        yield from _region_write_lock(o, 1)
        yield from visit("region", exclusive=True)
        yield Store("map.seq", 2, o["write_unlock"])
        return "written"

    return Program((writer, _reader(o), _reader(o)), dict(REGION_WORDS), ("region",))


def _per_region_attach(o: Orders) -> Program:
    """A free struct is described, put into the index and attached; its writer has it to itself until it unlocks the
    map."""

    def writer() -> Run:
        yield Store("map.seq", 3, RELAXED)
        yield Store("place", 1, RELAXED)
        yield Store("index", 1, o["index"])
        yield Store("region.seq", 3, RELAXED)
        yield Store("refs", 1, o["attach"])
        yield from visit("region", exclusive=True)
        yield Store("map.seq", 4, o["write_unlock"])
        return "attached"

    def reader() -> Run:
        if (yield Load("index", o["find"])) == 0:
            return "none"
        return (yield from _reader(o)())

    words = {"map.seq": 2, "region.seq": 1, "refs": 0, "place": 0, "index": 0}
    return Program((writer, reader), words, ("region",))


def _detach(o: Orders) -> Run:
    refs = (yield Update("refs", lambda refs: refs - 1, o["detach"])) - 1
    if refs != 0:
        refs = yield Update("refs", lambda refs: refs + FLAG, o["detach flag"])
        yield from _drain(o, refs + FLAG, FLAG)
        yield Store("refs", 0, RELAXED)
    return None


def _per_region_detach(o: Orders) -> Program:
    """Detaching by itself: what region/writes.c does after a region_write_lock, but strategy.h does not ask for."""

    def writer() -> Run:
        yield Store("map.seq", 1, RELAXED)
        yield from _detach(o)
        yield from visit("region", exclusive=True)
        return "detached"

    return Program((writer, _reader(o), _reader(o)), dict(REGION_WORDS), ("region",))


def _per_region_move(o: Orders) -> Program:
    """A region is detached and attached at another address while a reader has the struct from the index."""

    def writer() -> Run:
        yield Store("map.seq", 1, RELAXED)
        yield from _region_write_lock(o, 1)
        yield from _detach(o)
        yield Enter("region", exclusive=True)  # never left: address 1 is gone
        yield Store("place", 2, RELAXED)
        yield Store("region.seq", 1, RELAXED)
        yield Store("refs", 1, o["attach"])
        yield Store("map.seq", 2, o["write_unlock"])
        return "moved"

    return Program((writer, _reader(o)), dict(REGION_WORDS), ("region",))


# ---- the fair lock ----

FAIR = {
    "complete": SEQ_CST,
    "look for sleepers": SEQ_CST,
    "count oneself": SEQ_CST,
    "look again": SEQ_CST,
    "fast": ACQUIRE,
}


def _fair(o: Orders) -> Program:
    """A writer that leaves, and two readers with tickets of after it: one that looks once, at the end of its spin, and
    one that sleeps."""

    def writer() -> Run:
        yield from visit("map", exclusive=True)
        yield Update("completions", lambda word: word + 1, o["complete"])
        if (yield Load("sleepers", o["look for sleepers"])) != 0:
            yield Wake("completions")
            return "woke"
        return "nobody sleeps"

    def reader() -> Run:
        how = "fast"
        if (yield Load("completions", o["fast"])) != 1:
            how = "counted"
            yield Update("sleepers", lambda word: word + 1, o["count oneself"])
            while (seen := (yield Load("completions", o["look again"]))) != 1:
                slept = yield Wait("completions", seen)
                how = "slept" if slept else how
            yield Update("sleepers", lambda word: word - 1, RELAXED)
        yield from visit("map", exclusive=False)
        return how

    return Program((writer, reader, reader), {"completions": 0, "sleepers": 0}, ("map",))


def _fair_leave(o: Orders) -> Program:
    """Two readers that leave, and a writer that comes after both: it synchronises with the one through the other's
    update."""

    def reader() -> Run:
        yield from visit("map", exclusive=False)
        yield Update("completions", lambda word: word + 1, o["complete"])
        if (yield Load("sleepers", o["look for sleepers"])) != 0:
            yield Wake("completions")
        return "left"

    def writer() -> Run:
        yield Load("completions", o["fast"], until=lambda word: word == 2)
        yield from visit("map", exclusive=True)
        return "written"

    return Program((reader, reader, writer), {"completions": 0, "sleepers": 0}, ("map",))


# ---- marks: bravo, big reader ----

MARKS = {
    "mark": SEQ_CST,
    "look at flag": SEQ_CST,
    "unmark": RELEASE,
    "raise": SEQ_CST,
    "look at mark": SEQ_CST,
    "lower": RELEASE,
}


def _marked_reader(o: Orders, mark: str, plain: bool, raised: int) -> Thread:
    def run() -> Run:
        if plain:
            yield Store(mark, 1, RELEASE)
        else:
            yield Update(mark, lambda _: 1, o["mark"])
        if (yield Load("flag", o["look at flag"])) == raised:
            yield Store(mark, 0, o["unmark"])
            return "queued"
        yield from visit("map", exclusive=False)
        yield Store(mark, 0, o["unmark"])
        return "entered"

    return run


def _big_reader(o: Orders) -> Program:
    """A store in place of the exchange is what the weakening of "mark" to release means."""

    def writer() -> Run:
        yield Store("flag", 1, o["raise"])
        for mark in ("mark 0", "mark 1"):
            yield Load(mark, o["look at mark"], until=lambda value: value == 0)
        yield from visit("map", exclusive=True)
        yield Store("flag", 0, o["lower"])
        return "written"

    plain = o["mark"] is RELEASE
    readers = (_marked_reader(o, mark, plain, raised=1) for mark in ("mark 0", "mark 1"))
    return Program((writer, *readers), {"flag": 0, "mark 0": 0, "mark 1": 0}, ("map",))


BRAVO = {**{site: order for site, order in MARKS.items() if site != "lower"}, "bias": RELEASE}


def _bravo(o: Orders) -> Program:
    """A writer revokes the bias while a reader marks."""

    def writer() -> Run:
        yield Store("flag", 0, o["raise"])
        yield Load("mark 0", o["look at mark"], until=lambda value: value == 0)
        yield from visit("map", exclusive=True)
        return "written"

    plain = o["mark"] is RELEASE
    return Program((writer, _marked_reader(o, "mark 0", plain, raised=0)), {"flag": 1, "mark 0": 0}, ("map",))


def _bravo_again(o: Orders) -> Program:
    """A writer leaves, a reader behind it sets the bias, and another reader comes in by that."""

    def writer() -> Run:
        yield from visit("map", exclusive=True)
        yield Update("completions", lambda word: word + 1, SEQ_CST)
        return "written"

    def slow() -> Run:
        yield Load("completions", ACQUIRE, until=lambda word: word == 1)
        yield Store("flag", 1, o["bias"])
        return "slow"

    return Program(
        (writer, slow, _marked_reader(o, "mark 0", False, raised=0)),
        {"flag": 0, "completions": 0, "mark 0": 0},
        ("map",),
    )


# ---- speculative ----

SPECULATIVE = {
    "change": RELEASE,
    "even": RELEASE,
    "peek": ACQUIRE,
    "read": ACQUIRE,
}


def _speculative(o: Orders) -> Program:
    """Two fields that a writer changes from 0 to 1: a reader must not confirm one old and one new."""

    def writer() -> Run:
        changes = yield Load("changes", RELAXED)
        yield Store("changes", changes + 1, RELAXED)
        yield Store("first", 1, o["change"])
        yield Store("second", 1, o["change"])
        yield Store("changes", changes + 2, o["even"])
        return "written"

    def reader() -> Run:
        changes = yield Load("changes", o["peek"])
        if changes % 2 != 0:
            return "refused"
        first = yield Load("first", o["read"])
        second = yield Load("second", o["read"])
        if (yield Load("changes", RELAXED)) != changes:
            return "not confirmed"
        if first != second:
            raise AssertionError("confirmed what does not belong together")
        return first

    return Program((writer, reader, reader), {"changes": 0, "first": 0, "second": 0})


PROTOCOLS = (
    Protocol(
        "per-region: write",
        "per_region.c: try_enter, put, region_write_lock, write_unlock",
        PER_REGION,
        _per_region_write,
        (
            Weakening("put", RELAXED, VIEWS_ONLY, "M1"),
            Weakening("write_unlock", RELAXED, VIEWS_ONLY, "M1"),
            Weakening("check", RELAXED, VIEWS_ONLY, "M1"),
            Weakening("enter", RELAXED, VIEWS_ONLY),
            Weakening("flag", RELAXED, VIEWS_ONLY),
            Weakening("drain", RELAXED, VIEWS_ONLY),
            Weakening("unflag", RELAXED, VIEWS_ONLY),
        ),
        ("written", "entered", "entered"),
    ),
    Protocol(
        "per-region: attach",
        "per_region.c: attach; region/writes.c: zc_write_attach",
        {**PER_REGION, "index": RELEASE, "find": ACQUIRE, "attach": RELEASE},
        _per_region_attach,
        (
            Weakening("attach", RELAXED, VIEWS_ONLY),
            Weakening("enter", RELAXED, VIEWS_ONLY),
            Weakening("write_unlock", RELAXED, VIEWS_ONLY, "M1"),
            Weakening("check", RELAXED, VIEWS_ONLY, "M1"),
            Weakening("index", RELAXED, NOWHERE),
        ),
        ("attached", "entered"),
    ),
    Protocol(
        "per-region: detach",
        "per_region.c: detach",
        {**PER_REGION, "detach": ACQUIRE, "detach flag": ACQUIRE},
        _per_region_detach,
        (
            Weakening("detach", RELAXED, VIEWS_ONLY),
            Weakening("detach flag", RELAXED, VIEWS_ONLY),
            Weakening("drain", RELAXED, VIEWS_ONLY),
            Weakening("put", RELAXED, VIEWS_ONLY, "M1"),
        ),
        ("detached", "entered", "entered"),
    ),
    Protocol(
        "per-region: move",
        "per_region.c: detach, attach; region/writes.c",
        {**PER_REGION, "detach": ACQUIRE, "detach flag": ACQUIRE, "attach": RELEASE},
        _per_region_move,
        (
            Weakening("attach", RELAXED, VIEWS_ONLY),
            Weakening("enter", RELAXED, VIEWS_ONLY),
            Weakening("put", RELAXED, VIEWS_ONLY, "M1"),
            Weakening("detach", RELAXED, NOWHERE),
            Weakening("detach flag", RELAXED, NOWHERE),
        ),
        ("moved", "entered"),
    ),
    Protocol(
        "fair lock: sleepers",
        "fair_rwlock.c: wait_until; fair_rwlock.h: zc_fair_write_unlock",
        FAIR,
        _fair,
        (
            Weakening("complete", RELEASE, VIEWS_ONLY),
            Weakening("look for sleepers", ACQUIRE, VIEWS_ONLY),
            Weakening("count oneself", ACQ_REL, VIEWS_ONLY),
            Weakening("look again", ACQUIRE, VIEWS_ONLY),
            Weakening("fast", RELAXED, VIEWS_ONLY),
        ),
        ("woke", "slept", "slept"),
    ),
    Protocol(
        "fair lock: a writer after readers",
        "fair_rwlock.h: zc_fair_read_unlock, zc_fair_write_lock",
        FAIR,
        _fair_leave,
        (Weakening("complete", RELAXED, VIEWS_ONLY), Weakening("fast", RELAXED, VIEWS_ONLY)),
        ("left", "left", "written"),
    ),
    Protocol(
        "big reader",
        "global_big_reader.c, marks.h",
        MARKS,
        _big_reader,
        (
            Weakening("mark", RELEASE, ALL_WEAK, "M11"),
            Weakening("mark", ACQ_REL, VIEWS_ONLY),
            Weakening("look at flag", ACQUIRE, VIEWS_ONLY),
            Weakening("raise", RELEASE, ALL_WEAK, "M11"),
            Weakening("look at mark", ACQUIRE, VIEWS_ONLY),
            Weakening("unmark", RELAXED, VIEWS_ONLY),
            Weakening("lower", RELAXED, VIEWS_ONLY),
        ),
        ("written", "entered", "entered"),
    ),
    Protocol(
        "bravo: revoke",
        "global_bravo.c, marks.h",
        BRAVO,
        _bravo,
        (
            Weakening("mark", RELEASE, ALL_WEAK, "M11"),
            Weakening("mark", ACQ_REL, VIEWS_ONLY),
            Weakening("look at flag", ACQUIRE, VIEWS_ONLY),
            Weakening("raise", RELEASE, ALL_WEAK, "M11"),
            Weakening("look at mark", ACQUIRE, VIEWS_ONLY),
            Weakening("unmark", RELAXED, VIEWS_ONLY),
        ),
        ("written", "entered"),
    ),
    Protocol(
        "bravo: bias again",
        "global_bravo.c: lock_to_read",
        BRAVO,
        _bravo_again,
        (Weakening("bias", RELAXED, VIEWS_ONLY), Weakening("look at flag", RELAXED, VIEWS_ONLY)),
        ("written", "slow", "entered"),
    ),
    Protocol(
        "speculative",
        "speculative.c: peek, confirm; writers of a region's fields",
        SPECULATIVE,
        _speculative,
        (
            Weakening("change", RELAXED, VIEWS_ONLY),
            Weakening("even", RELAXED, VIEWS_ONLY),
            Weakening("peek", RELAXED, VIEWS_ONLY),
            Weakening("read", RELAXED, VIEWS_ONLY),
        ),
        ("written", 0, 1),
    ),
)
