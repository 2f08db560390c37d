"""Typed clients: arguments and results."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import assert_type

import numpy as np
import numpy.typing as npt

import zcrpc


@dataclasses.dataclass
class Entry:
    key: str
    size: int = 0


class Base(zcrpc.Service):
    @zcrpc.method
    async def version(self) -> str:
        return "1"


class Store(Base, name="kv"):
    @zcrpc.method
    async def put(self, key: str, value: zcrpc.Buffer, *, overwrite: bool = False) -> int:
        return memoryview(value).nbytes

    @zcrpc.method(name="fetch")
    async def get(self, key: str) -> memoryview:
        return memoryview(b"")

    @zcrpc.method
    async def entries(self, keys: Sequence[str] = ()) -> dict[str, Entry]:
        return {}

    @zcrpc.method
    async def scale(self, values: npt.NDArray[np.float32], factor: float) -> npt.NDArray[np.float32]:
        return values * np.float32(factor)

    @zcrpc.method
    def length(self, key: str) -> int:
        return len(key)

    def local(self) -> int:
        return self.length("a") + 1

    async def inside(self) -> int:
        return await self.put("k", b"")


async def accepted(address: str) -> None:
    async with zcrpc.connect(address, Store, timeout=5.0) as store:
        assert_type(store, Store)
        assert_type(await store.put("k", b"bytes"), int)
        assert_type(await store.put(key="k", value=bytearray(3), overwrite=True), int)
        await store.put("k", memoryview(b""))
        assert_type(await store.get("k"), memoryview)
        assert_type((await store.entries(["a"]))["a"].size, int)
        assert_type(await store.scale(np.zeros(3, np.float32), 2.5), npt.NDArray[np.float32])
        assert_type(await store.version(), str)
    store = await zcrpc.connect(address, Store)
    assert_type(store, Store)
    async with zcrpc.connect(address) as client:
        assert_type(client, zcrpc.Client)
        assert_type(client.use(Store), Store)
        await client.call("kv.put", "k", b"", timeout=1.0, returns=int)


async def refused(address: str, numbers: npt.NDArray[np.int32]) -> None:
    async with zcrpc.connect(address, Store) as store:
        await store.put(1, b"")  # error: Argument 1 to "put" of "Store" has incompatible type "int"; expected "str"
        await store.put("k", "text")  # error: Argument 2 to "put" of "Store" has incompatible type "str"
        await store.put("k")  # error: Missing positional argument "value" in call to "put"
        await store.put("k", b"", True)  # error: Too many positional arguments for "put"
        await store.put("k", b"", over=True)  # error: Unexpected keyword argument "over" for "put" of "Store"
        await store.get("k", 1)  # error: arguments for "get"
        await store.nothing()  # error: "Store" has no attribute "nothing"
        await store.scale(numbers, 1)  # error: incompatible type "ndarray
        text: str = await store.put("k", b"")  # error: Incompatible types in assignment
        print(text)
    async with zcrpc.connect(address, int) as wrong:  # error: Value of type variable "S" of "connect" cannot be "int"
        print(wrong)
    async with zcrpc.connect(address, Store, timout=1) as misspelt:  # error: No overload variant of "connect"
        print(misspelt)


class Streams(zcrpc.Service):
    @zcrpc.method
    async def tail(self, since: int) -> AsyncIterator[Entry]:
        yield Entry("k")

    @zcrpc.method
    async def load(self, rows: AsyncIterator[bytes], *, name: str = "") -> int:
        return len([row async for row in rows])

    @zcrpc.method
    async def exchange(self, items: AsyncIterator[int]) -> AsyncIterator[str]:
        async for item in items:
            yield str(item)


async def rows() -> AsyncIterator[bytes]:
    yield b""


async def streams(log: Streams) -> None:
    async for entry in log.tail(0):
        assert_type(entry, Entry)
    async for _ in log.tail("0"):  # error: Argument 1 to "tail" of "Streams" has incompatible type "str"
        break
    assert_type(await log.load(rows(), name="n"), int)
    await log.load([b""])  # error: Argument 1 to "load" of "Streams" has incompatible type "list[bytes]"
    async for text in log.exchange(rows()):  # error: expected "AsyncIterator[int]"
        assert_type(text, str)
    await log.tail(0)  # error: Incompatible types in "await"
