"""The blocking client: untyped ones, and typed ones as far as they are checked without the plugin."""

from typing import assert_type

import zcrpc
from zcrpc.testing import pair


class Store(zcrpc.Service):
    @zcrpc.method
    async def put(self, key: str) -> int:
        return len(key)


with zcrpc.blocking.connect("tcp://h:1", timeout=2.0) as client:
    assert_type(client, zcrpc.blocking.Client)
    client.call("Store.put", "k", timuot=1)  # a keyword of the method's, for all that mypy can know
    client.call(5)  # error: Argument 1 to "call" of "Client" has incompatible type

with zcrpc.blocking.connect("tcp://h:1", Store) as blocked:
    assert_type(blocked, zcrpc.blocking.Typed[Store])
    size: int = blocked.put("k", timeout=2.0)
zcrpc.blocking.connect("tcp://h:1", timuot=1)  # error: No overload variant


async def tested() -> None:
    async with pair(Store()) as store:
        assert_type(store, Store)
        await store.put(5)  # error: Argument 1 to "put" of "Store" has incompatible type
