"""For tests of services: a server and a client over a socketpair, and connections on which things go wrong.

    async with zcrpc.testing.pair(Store()) as store:                      # a typed client, all in this event loop
        assert await store.put("k", b"value") == 5

    cut = zcrpc.testing.Faults(cut_after=1000)
    async with zcrpc.testing.pair(Store(), to_server=cut) as store: ...   # lost after 1000 bytes of what it sends
    async with zcrpc.testing.Proxy(address, to_client=cut) as proxied:    # the same in front of any server
        client = await zcrpc.connect(proxied)

See docs/testing.md.
"""

from zcrpc.testing.faults import Faults, FaultsFor, Link
from zcrpc.testing.pairs import Pair, pair
from zcrpc.testing.proxy import Proxy

__all__ = ["Faults", "FaultsFor", "Link", "Pair", "Proxy", "pair"]
