import asyncio
import random

from conftest import until

from zcrpc.deadlines import TICK_SECONDS, Deadlines


class Item:
    def __init__(self, deadlines: Deadlines, seconds: float, log: list[tuple["Item", float]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.due = self.loop.time() + seconds
        self.log = log
        self.tick = deadlines.add(seconds, self)

    def expire(self) -> None:
        self.log.append((self, self.loop.time()))


async def test_each_expires_once_in_time_and_never_early() -> None:
    deadlines, log = Deadlines(asyncio.get_running_loop()), []
    items = [Item(deadlines, random.Random(n).uniform(0, 0.1), log) for n in range(300)]
    assert len(deadlines) == 300
    await until(lambda: len(log) == 300)
    await asyncio.sleep(2 * TICK_SECONDS)
    assert {id(item) for item, _ in log} == {id(item) for item in items}
    assert len(log) == 300
    assert all(at >= item.due - 0.001 for item, at in log)
    assert len(deadlines) == 0


async def test_an_earlier_one_may_come_later() -> None:
    deadlines, log = Deadlines(asyncio.get_running_loop()), []
    late, early = Item(deadlines, 0.06, log), Item(deadlines, 0.01, log)
    await until(lambda: len(log) == 2)
    assert [item for item, _ in log] == [early, late]


async def test_discarded_ones_do_not_expire_and_leave_nothing() -> None:
    deadlines, log = Deadlines(asyncio.get_running_loop()), []
    keep = Item(deadlines, 0.02, log)
    for n in range(20_000):
        item = Item(deadlines, 1 + n * 0.01, log)
        deadlines.discard(item.tick, item)
        deadlines.discard(item.tick, item)
    assert len(deadlines) == 1
    assert len(deadlines._ticks) < 200
    await until(lambda: log)
    assert [item for item, _ in log] == [keep]


async def test_one_that_fails_does_not_hold_up_the_others() -> None:
    deadlines, log = Deadlines(asyncio.get_running_loop()), []

    class Bad(Item):
        def expire(self) -> None:
            raise RuntimeError("no")

    Bad(deadlines, 0.01, log)
    good = Item(deadlines, 0.012, log)
    await until(lambda: log)
    assert log[0][0] is good


async def test_expiring_may_add_and_discard() -> None:
    deadlines, log = Deadlines(asyncio.get_running_loop()), []

    class Again(Item):
        def expire(self) -> None:
            super().expire()
            if len(self.log) < 5:
                Again(deadlines, 0, self.log)

    Again(deadlines, 0, log)
    await until(lambda: len(log) >= 5)
    await asyncio.sleep(0.03)
    assert len(log) == 5


async def test_nothing_expires_after_close() -> None:
    deadlines, log = Deadlines(asyncio.get_running_loop()), []
    Item(deadlines, 0.01, log)
    deadlines.close()
    await asyncio.sleep(0.03)
    assert not log
