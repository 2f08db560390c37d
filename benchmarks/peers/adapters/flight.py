"""Arrow Flight: actions for echoes, put and get of one RecordBatch for bulk, a batch per item for streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
from pyarrow import flight

from peers.connection import Connection
from peers.payloads import ITEM, acknowledgement, items, summed
from peers.runtimes import Threads
from peers.workloads import Work

RUNTIME = Threads()
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a TCP connection for each client
_SCHEMA = pyarrow.schema([("body", pyarrow.uint8())])
_UPLOAD = flight.FlightDescriptor.for_path("upload")


def _batch(body: bytes) -> pyarrow.RecordBatch:
    column = pyarrow.Array.from_buffers(pyarrow.uint8(), len(body), [None, pyarrow.py_buffer(body)])
    return pyarrow.RecordBatch.from_arrays([column], schema=_SCHEMA)


def _body(batch: pyarrow.RecordBatch) -> memoryview:
    """Its bytes, where they are."""
    column = batch.column(0)
    return memoryview(column.buffers()[1])[column.offset :][: len(column)].cast("B")


class _Server(flight.FlightServerBase):  # type: ignore[misc]
    def __init__(self, download_bytes: int) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._download = _batch(summed(download_bytes))

    def do_action(self, context: Any, action: flight.Action) -> Iterator[flight.Result]:
        yield flight.Result(action.body)

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        writer.write(pyarrow.py_buffer(acknowledgement(_body(reader.read_chunk().data))))

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.FlightDataStream:
        count = int(ticket.ticket)
        batches = (_batch(item) for item in items(count)) if count else iter([self._download])
        return flight.GeneratorStream(_SCHEMA, batches)


async def serve(download_bytes: int, ready: Callable[[int], None]) -> None:
    server = _Server(download_bytes)
    ready(server.port)
    server.serve()


class Client(Connection):
    def __init__(self, client: flight.FlightClient) -> None:
        self._client = client

    async def echo(self, payload: bytes) -> memoryview:
        (result,) = self._client.do_action(flight.Action("echo", payload))
        return memoryview(result.body)

    async def upload(self, payload: bytes) -> memoryview:
        writer, acknowledgements = self._client.do_put(_UPLOAD, _SCHEMA)
        with writer:
            writer.write_batch(_batch(payload))
            writer.done_writing()
            return memoryview(acknowledgements.read())

    async def download(self, size: int) -> memoryview:
        return _body(self._client.do_get(flight.Ticket(b"0")).read_chunk().data)

    async def stream(self, count: int) -> int:
        return sum(bytes(_body(chunk.data)) == ITEM for chunk in self._client.do_get(flight.Ticket(b"%d" % count)))

    async def close(self) -> None:
        self._client.close()


async def connect(port: int, work: Work, payload: int) -> Client:
    return Client(flight.connect(f"grpc://127.0.0.1:{port}", generic_options=_OPTIONS))
