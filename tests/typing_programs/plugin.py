"""What calls of typed clients take besides: accepted with the plugin zcrpc.mypy, and refused without it."""

from array import array
from collections.abc import AsyncIterator
from typing import assert_type

import zcrpc


class Base(zcrpc.Service):
    @zcrpc.method
    async def ping(self) -> str:
        return "pong"

    @zcrpc.method
    async def version(self) -> int:
        return 1


class Store(Base):
    @zcrpc.method(name="set")
    async def put(self, key: str, value: bytes = b"", *rest: int, flag: bool = False) -> int:
        return len(value)

    @zcrpc.method
    async def view(self, value: memoryview, other: memoryview | None = None) -> None: ...

    @zcrpc.method
    async def mark(self, **tags: str) -> None: ...

    @zcrpc.method
    async def tail(self, since: int) -> AsyncIterator[int]:
        yield since

    async def version(self) -> int:  # a method still, though it is not marked again
        return 2

    @zcrpc.method(blocking=True)
    def length(self, value: bytes) -> int:
        return len(value)

    def twice(self) -> int:
        return 2 * self.length(b"k")

    async def local(self, value: bytes) -> None: ...


async def main(address: str) -> None:
    async with zcrpc.connect(address, Store) as store:
        assert_type(await store.put("k", b"v", timeout=2.0), int)  # accepted
        await store.put("k", b"v", 1, 2, flag=True, timeout=None)  # accepted
        await store.put("k", timeout=1)  # accepted
        await store.mark(colour="red", timeout=2.0)  # accepted
        assert_type(await store.ping(timeout=1), str)  # accepted
        assert_type(await store.version(timeout=1), int)  # accepted
        async for number in store.tail(0, timeout=3.0):  # accepted
            assert_type(number, int)
        await store.put("k", metadata={"a": "b"})  # accepted
        await store.mark(colour="red", metadata={"a": b"b"}, timeout=1)  # accepted
        store.tail(0, metadata=None)  # accepted
        await store.put("k", wait_for_ready=True, idempotent=True)  # accepted
        store.tail(0, wait_for_ready=True)  # accepted
        store.tail(0, idempotent=True)  # error: Unexpected keyword argument "idempotent"
        await store.put("k", metadata={1: "b"})  # error: Dict entry 0 has incompatible type "int": "str"
        await store.put("k", bytearray(3))  # accepted
        await store.view(b"")  # accepted
        await store.view(array("d"), other=bytearray(3))  # accepted
        assert_type(await store.length(b"v", timeout=1), int)  # accepted
        assert_type(await store.length(bytearray(1)), int)  # accepted
        await store.twice()  # error: Incompatible types in "await"
        await store.length("v")  # error: Argument 1 to "length" of "Store" has incompatible type "str"
        await store.put("k", b"v", timeout="2")  # error: "timeout"
        await store.put(1, timeout=2.0)  # error: "put"
        await store.put("k", "v")  # error: Argument 2 to "put" of "Store" has incompatible type "str"
        await store.view(None)  # error: Argument 1 to "view" of "Store" has incompatible type "None"
        await store.tail(timeout=2.0)  # error: "tail"
        await store.local(b"", timeout=2.0)  # error: Unexpected keyword argument "timeout" for "local" of "Store"
        await store.local(bytearray())  # error: Argument 1 to "local" of "Store" has incompatible type "bytearray"
