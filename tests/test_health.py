"""Health, asked through real sockets."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Serving, Waits, until

import zcrpc
from zcrpc.health import Serving as Status


class Store(zcrpc.Service):
    @zcrpc.method
    async def get(self) -> int:
        return 1


async def take(stream: AsyncIterator[Any], count: int) -> list[Any]:
    """The next items."""
    async with asyncio.timeout(5):
        return [await anext(stream) for _ in range(count)]


async def test_a_server_and_its_services_serve_until_somebody_says_otherwise(serving: Serving) -> None:
    async with serving(Store(), Waits()) as (server, address), zcrpc.connect(address, zcrpc.Health) as health:
        assert await health.check() is Status.SERVING
        assert await health.check("Store") is Status.SERVING
        server.health.set("Store", serving=False)
        assert await health.check("Store") is Status.NOT_SERVING
        assert await health.check() is Status.SERVING, "each for itself"
        server.health.set(serving=False)
        assert await health.list() == {
            "": Status.NOT_SERVING,
            "Store": Status.NOT_SERVING,
            "Waits": Status.SERVING,
        }


async def test_check_of_a_service_that_there_is_not(serving: Serving) -> None:
    async with serving(Store()) as (_, address), zcrpc.connect(address, zcrpc.Health) as health:
        with pytest.raises(zcrpc.NotFound, match="no service 'Nobody'"):
            await health.check("Nobody")


async def test_watch_tells_now_and_every_change(serving: Serving) -> None:
    async with serving(Store()) as (server, address), zcrpc.connect(address, zcrpc.Health) as health:
        watch = aiter(health.watch("Store"))
        assert await take(watch, 1) == [Status.SERVING]
        server.health.set("Store", serving=True)  # no change
        server.health.set("Store", serving=False)
        assert await take(watch, 1) == [Status.NOT_SERVING]
        threading.Thread(target=server.health.set, args=("Store",), kwargs={"serving": True}).start()
        assert await take(watch, 1) == [Status.SERVING]
        await watch.aclose()  # type: ignore[attr-defined]
        await until(lambda: not server.health._watchers)


async def test_watch_of_a_service_that_comes_later(serving: Serving) -> None:
    async with serving(Store()) as (server, address), zcrpc.connect(address, zcrpc.Health) as health:
        watch = aiter(health.watch("Later"))
        assert await take(watch, 1) == [Status.SERVICE_UNKNOWN]
        server.health.set("Later", serving=True)
        assert await take(watch, 1) == [Status.SERVING]
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_server_that_goes_away_says_so_and_is_not_held_up_by_those_that_watch() -> None:
    service = Waits()
    server = zcrpc.Server(service)
    address = await server.listen("tcp://127.0.0.1:0")
    async with zcrpc.connect(address) as client:
        watch = aiter(client.use(zcrpc.Health).watch())
        assert await take(watch, 1) == [Status.SERVING]
        call = asyncio.ensure_future(client.call("Waits.wait"))
        await until(lambda: service.began)
        closing = asyncio.ensure_future(server.close(grace=5))
        assert await take(watch, 1) == [Status.NOT_SERVING]
        with pytest.raises(StopAsyncIteration):
            await take(watch, 1)
        server.health.set(serving=True)
        assert await server.health.check() is Status.NOT_SERVING, "it stays so"
        service.gate.set()
        assert await call == "waited"
        async with asyncio.timeout(3):
            await closing


async def test_only_watched_it_closes_at_once() -> None:
    server = zcrpc.Server(Store())
    address = await server.listen("tcp://127.0.0.1:0")
    async with zcrpc.connect(address) as client:
        watches = [aiter(client.use(zcrpc.Health).watch()), client.stream("zcrpc.Stats.watch", 60.0)]
        for watch in watches:
            await take(watch, 1)
        async with asyncio.timeout(3):
            await server.close(grace=60)


def test_reserved_names() -> None:
    class Pretender(zcrpc.Service, name="zcrpc.Health"):
        @zcrpc.method
        async def check(self) -> int:
            return 1

    with pytest.raises(ValueError, match="reserved"):
        zcrpc.Server(Pretender())
