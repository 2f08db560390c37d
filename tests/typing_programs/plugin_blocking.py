"""The blocking typed client: with the plugin it has the service's methods and their results, without it all is Any."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

import zcrpc


class Base(zcrpc.Service):
    @zcrpc.method
    async def version(self) -> int:
        return 1


class Store(Base):
    @zcrpc.method(name="set")
    async def put(self, key: str, value: memoryview, *, flag: bool = False) -> int:
        return len(value)

    @zcrpc.method
    def length(self, key: str) -> int:
        return len(key)

    @zcrpc.method
    async def tail(self, since: int) -> AsyncIterator[str]:
        yield str(since)

    @zcrpc.method
    async def load(self, rows: AsyncIterator[bytes], name: str = "") -> list[int]:
        return [len(row) async for row in rows]

    async def local(self) -> None: ...


class Probe(zcrpc.Service):
    @zcrpc.method
    async def ping(self, text: str) -> str:
        return text


def main(store: zcrpc.blocking.Typed[Store], probe: zcrpc.blocking.Typed[Probe]) -> None:
    assert_type(store.put("k", b"v"), int)  # accepted
    assert_type(store.put("k", bytearray(), flag=True, timeout=1.0, metadata={"a": "b"}), int)  # accepted
    store.put("k", b"", idempotent=True)
    assert_type(store.length("k"), int)  # accepted
    assert_type(store.version(timeout=None), int)  # accepted
    for each in store.tail(0, timeout=1.0):
        assert_type(each, str)  # accepted
    assert_type(store.tail(0), zcrpc.blocking.Items[str])  # accepted
    assert_type(store.load([b"a"], name="n"), list[int])  # accepted
    assert_type(store.load(b"a" for _ in range(3)), list[int])  # accepted
    assert_type(store.ping(), float)  # accepted
    assert_type(store.client, zcrpc.blocking.Client)  # accepted
    assert_type(store.stats(), zcrpc.Stats)  # accepted
    assert_type(probe.ping("a"), str)  # accepted
    store.put(5, b"v")  # error: Argument 1 to "put" of "Store" has incompatible type "int"; expected "str"
    store.put("k")  # error: Missing positional argument "value"
    store.load([5])  # error: List item 0 has incompatible type "int"; expected "bytes"
    store.tail(0, idempotent=True)  # error: Unexpected keyword argument "idempotent"
    store.local()  # error: "Store" has no method "local"
    store.puts("k")  # error: "Store" has no method "puts"
    text: str = store.length("k")  # error: Incompatible types in assignment
    print(text)


def generic(store: zcrpc.blocking.Typed[Any]) -> None:
    store.whatever(1)
