"""The region map by itself: regions, both locks, misuse, and what is left when it is closed."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from zcrpc import locks
from zcrpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from zcrpc.regions import Misuse, NoRegion, Region, RegionMap

UNIT = 2 << 20


@pytest.fixture(params=locks.names())
def regions(request: pytest.FixtureRequest) -> Iterator[RegionMap]:
    with RegionMap(locks=request.param, budget=32 * UNIT, retain=0) as made:
        yield made


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, threading.Event]:
    """Starts `action` in a thread of its own; the event says that it has returned."""
    done = threading.Event()

    def run() -> None:
        action()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, done


# ---- regions


@pytest.mark.parametrize(("length", "units"), [(1, 1), (UNIT, 1), (UNIT + 1, 2), (5 * UNIT, 5)])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_region_is_whole_units(regions: RegionMap, length: int, units: int, mapped: bool) -> None:
    region = regions.attach(length, mapped=mapped)
    assert len(region) == units * UNIT
    assert region.start % UNIT == 0
    assert region.mapped is mapped
    assert region.start in region
    assert region.end not in region
    stats = regions.stats()
    assert (stats.regions, stats.arena_bytes, stats.attaches) == (1, units * UNIT, 1)
    regions.detach(region)
    stats = regions.stats()
    assert (stats.regions, stats.arena_bytes, stats.detaches) == (0, 0, 1)


def test_every_address_leads_to_its_region(regions: RegionMap) -> None:
    attached = [regions.attach(units * UNIT) for units in (1, 2, 3)]
    assert len({region.start for region in attached}) == 3
    for region in attached:
        for address in (region.start, region.start + 1, region.end - 1):
            with regions.read(address) as found:
                assert found == region
    lock = regions.stats().lock
    assert (lock.read_locks, lock.misses, lock.fallbacks, lock.waits) == (9, 0, 0, 0)
    assert lock.write_locks == 3


def test_no_region_is_an_error_that_leaves_nothing_locked(regions: RegionMap) -> None:
    region = regions.attach(1)
    regions.detach(region)
    for address in (0, 1, region.start, region.end, (1 << 64) - 1, 1 << 64, -1):
        with pytest.raises(NoRegion) as raised, regions.read(address):
            pass
        assert isinstance(raised.value, LookupError)
        assert isinstance(raised.value, NotFound)
    with regions.write():
        pass
    assert regions.stats().lock.misses == 5  # two are no addresses at all


def test_a_region_is_gone_after_detach(regions: RegionMap) -> None:
    region = regions.attach(1)
    regions.detach(region)
    for use in (regions.detach, regions.recycle, lambda gone: regions.write(gone).__enter__()):
        with pytest.raises(NoRegion):
            use(region)
    with RegionMap() as other:
        foreign = other.attach(1)
        with pytest.raises(NoRegion):
            regions.detach(foreign)


def test_recycle_keeps_the_region(regions: RegionMap) -> None:
    region = regions.attach(3 * UNIT)
    regions.recycle(region)
    with regions.read(region.start + UNIT) as found:
        assert found == region
    assert regions.stats().recycles == 1


def test_the_budget_is_kept(regions: RegionMap) -> None:
    half = regions.attach(16 * UNIT)
    regions.attach(16 * UNIT, mapped=True)
    for length in (1, 33 * UNIT, (1 << 64) - 1):
        with pytest.raises(ResourceExhausted):
            regions.attach(length)
    assert regions.stats().arena_bytes == 32 * UNIT
    regions.detach(half)
    regions.attach(1)


@pytest.mark.parametrize("length", [0, -1, 1 << 64])
def test_lengths_that_make_no_sense(regions: RegionMap, length: int) -> None:
    with pytest.raises(InvalidArgument):
        regions.attach(length)


@pytest.mark.parametrize("sizes", [{"budget": 0}, {"budget": -1}, {"budget": 1 << 64}, {"retain": -1}])
def test_sizes_that_make_no_sense(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        RegionMap(**sizes)


def test_an_unknown_strategy() -> None:
    with pytest.raises(locks.UnknownStrategy):
        RegionMap(locks="no such lock")


# ---- locks between threads


def test_a_reader_keeps_a_writer_out(regions: RegionMap) -> None:
    region = regions.attach(1)

    def write() -> None:
        with regions.write(region):
            pass

    with regions.read(region.start):
        thread, done = in_thread(write)
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()
    assert regions.stats().lock.waits == 1


def test_a_writer_keeps_a_reader_out(regions: RegionMap) -> None:
    region = regions.attach(1)

    def read() -> None:
        with regions.read(region.start) as found:
            assert found == region

    with regions.write(region, region):
        thread, done = in_thread(read)
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()


def test_a_writer_of_one_region_lets_readers_of_others_in_only_with_a_lock_per_region(regions: RegionMap) -> None:
    mine, theirs = regions.attach(1), regions.attach(1)
    waits = regions.locks.startswith("global") or regions.locks == "region-rwlock"  # whose regions are found under one

    def read() -> None:
        with regions.read(theirs.start) as found:
            assert found == theirs

    with regions.write(mine):
        thread, done = in_thread(read)
        assert done.wait(0.2 if waits else 10) is not waits
    assert done.wait(10)
    thread.join()


def test_detach_waits_for_the_reader_inside(regions: RegionMap) -> None:
    region = regions.attach(1)
    with regions.read(region.start):
        thread, done = in_thread(lambda: regions.detach(region))
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()


def test_many_threads_at_once(regions: RegionMap) -> None:
    shared = [regions.attach(1) for _ in range(4)]
    counts = dict.fromkeys(shared, 0)

    def work(number: int) -> int:
        found = 0
        for step in range(300):
            region = shared[(number + step) % 4]
            if step % 10 == 0:
                with regions.write(region):
                    before = counts[region]
                    time.sleep(0)
                    counts[region] = before + 1
            elif step % 25 == 1:
                own = regions.attach(UNIT)
                with regions.read(own.end - 1) as at:
                    found += at == own
                regions.detach(own)
            else:
                with regions.read(region.start + step) as at:
                    found += at == region
        return found

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [270] * 8
    assert sum(counts.values()) == 8 * 30
    stats = regions.stats()
    assert stats.lock.read_locks == 8 * 270
    assert stats.lock.write_locks == stats.attaches + stats.detaches + 8 * 30
    assert stats.regions == 4


# ---- misuse


def test_what_would_wait_for_itself_raises(regions: RegionMap) -> None:
    region, other = regions.attach(1), regions.attach(1)

    def uses() -> Iterator[Callable[[], object]]:
        yield lambda: regions.read(other.start).__enter__()
        yield lambda: regions.write(other).__enter__()
        yield lambda: regions.attach(1)
        yield lambda: regions.detach(other)
        yield lambda: regions.recycle(other)
        yield regions.close

    for lock in (regions.read(region.start), regions.write(region)):
        with lock:
            for use in uses():
                with pytest.raises(Misuse) as raised:
                    use()
                assert isinstance(raised.value, FailedPrecondition)
    with regions.read(other.start), RegionMap() as second:  # another map is another matter
        second.attach(1)
    regions.detach(other)


def test_an_exception_inside_unlocks(regions: RegionMap) -> None:
    region = regions.attach(1)
    for lock in (regions.read(region.start), regions.write(region)):
        with pytest.raises(ZeroDivisionError), lock:
            raise ZeroDivisionError
    regions.detach(region)


def test_a_refused_write_unlocks(regions: RegionMap) -> None:
    region = regions.attach(1)
    with pytest.raises(NoRegion), regions.write(region, Region(0, UNIT, False)):
        pass
    regions.detach(region)


def test_close_waits_for_no_one(regions: RegionMap) -> None:
    region = regions.attach(1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with regions.read(region.start):
            entered.set()
            leave.wait(10)

    thread, done = in_thread(hold)
    assert entered.wait(10)
    with pytest.raises(Misuse):
        regions.close()
    leave.set()
    assert done.wait(10)
    thread.join()


def test_a_closed_map(regions: RegionMap) -> None:
    region = regions.attach(1)
    before = regions.stats()
    regions.close()
    regions.close()
    assert regions.closed
    assert regions.stats() == before
    for use in (
        lambda: regions.attach(1),
        lambda: regions.detach(region),
        lambda: regions.recycle(region),
        lambda: regions.read(region.start).__enter__(),
        lambda: regions.write(region).__enter__(),
        regions.__enter__,
    ):
        with pytest.raises(Misuse):
            use()


# ---- what stays


def _mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum(1 for _ in maps)


def test_a_map_leaves_nothing_behind() -> None:
    def use(closing: bool) -> None:
        regions = RegionMap(budget=8 * UNIT)
        region = regions.attach(1, mapped=True)
        regions.attach(UNIT)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: regions.recycle(region), range(8)))
        if closing:
            regions.close()

    use(True)
    gc.collect()
    before = _mappings()
    for round_ in range(20):
        use(round_ % 2 == 0)  # the other half is left to the garbage collector
    gc.collect()
    assert _mappings() <= before + 4
