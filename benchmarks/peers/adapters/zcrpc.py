"""zcrpc's client, typed. Its server is that of the laboratory: `zcrpc.lab.service`."""

from __future__ import annotations

import zcrpc
from peers.connection import Connection
from peers.payloads import ITEM
from peers.runtimes import Tasks
from peers.workloads import Work
from zcrpc.lab.service import Bench

RUNTIME = Tasks(zcrpc.run)


class Client(Connection):
    def __init__(self, bench: Bench) -> None:
        self.echo = bench.echo  # type: ignore[method-assign, assignment]
        self.upload = bench.put  # type: ignore[method-assign, assignment]
        self.download = bench.get  # type: ignore[method-assign, assignment]
        self._bench = bench

    async def stream(self, count: int) -> int:
        right = 0
        async for item in self._bench.items(len(ITEM), count):
            right += bytes(item) == ITEM
        return right

    async def close(self) -> None:
        await self._bench.close()  # type: ignore[attr-defined]


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(await zcrpc.connect(f"tcp://127.0.0.1:{port}", Bench))
