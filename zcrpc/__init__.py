"""zcrpc: RPC for asyncio, for services that move large payloads next to many small calls.

import zcrpc

class Store(zcrpc.Service):
    @zcrpc.method
    async def put(self, key: str, value: memoryview) -> int: ...

server = zcrpc.Server(Store())
async with server.listen("tcp://127.0.0.1:7000") as address:
    await server.serve_forever()

async with zcrpc.connect("tcp://127.0.0.1:7000", Store) as store:
    n = await store.put("k", array, timeout=2.0)
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from zcrpc import blocking, locks
from zcrpc.backoff import Backoff
from zcrpc.channel import State
from zcrpc.client import Client, connect
from zcrpc.context import Context, Outgoing, context, detached, outgoing
from zcrpc.conversion import Buffer, register
from zcrpc.credentials import Credentials, Process
from zcrpc.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Status,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
    ZcrpcError,
)
from zcrpc.health import Health, Serving
from zcrpc.interceptors import Call, IncomingCall, OutgoingCall
from zcrpc.reflection import Reflection
from zcrpc.regions import RegionMap
from zcrpc.retries import Retries
from zcrpc.server import Server
from zcrpc.service import Service, method
from zcrpc.stats import Stats
from zcrpc.streaming import Stream

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Backoff",
    "Buffer",
    "Call",
    "Cancelled",
    "Client",
    "Context",
    "Credentials",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Health",
    "IncomingCall",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "Outgoing",
    "OutgoingCall",
    "PermissionDenied",
    "Process",
    "Reflection",
    "RegionMap",
    "ResourceExhausted",
    "Retries",
    "Server",
    "Service",
    "Serving",
    "State",
    "Stats",
    "Status",
    "Stream",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "ZcrpcError",
    "blocking",
    "connect",
    "context",
    "detached",
    "locks",
    "method",
    "outgoing",
    "register",
    "run",
]

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result], *, debug: bool = False) -> _Result:
    """asyncio.run on uvloop, zcrpc's preferred event loop. Any other will do as well."""
    import uvloop

    return uvloop.run(main, debug=debug)
