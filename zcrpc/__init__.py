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
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zcrpc.context import Context, Outgoing, context, detached, outgoing
from zcrpc.conversion import Buffer, register
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
from zcrpc.service import Service, method

if TYPE_CHECKING:
    from zcrpc import blocking, locks
    from zcrpc.backoff import Backoff
    from zcrpc.channel import State
    from zcrpc.client import Client, connect
    from zcrpc.compression import Compression
    from zcrpc.credentials import Credentials, Process
    from zcrpc.health import Health, Serving
    from zcrpc.interceptors import Call, IncomingCall, OutgoingCall
    from zcrpc.reflection import Reflection
    from zcrpc.regions import RegionMap
    from zcrpc.retries import Retries
    from zcrpc.server import Server
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
    "Compression",
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

# What describes a service and its errors is loaded at once, the rest when it is first asked for: asyncio, ssl and the
# core take most of the time, and who imports a module of services, or shows a command's help, needs none of them.
_HOMES: Final = {
    "Backoff": "zcrpc.backoff",
    "Call": "zcrpc.interceptors",
    "Client": "zcrpc.client",
    "Compression": "zcrpc.compression",
    "Credentials": "zcrpc.credentials",
    "Health": "zcrpc.health",
    "IncomingCall": "zcrpc.interceptors",
    "OutgoingCall": "zcrpc.interceptors",
    "Process": "zcrpc.credentials",
    "Reflection": "zcrpc.reflection",
    "RegionMap": "zcrpc.regions",
    "Retries": "zcrpc.retries",
    "Server": "zcrpc.server",
    "Serving": "zcrpc.health",
    "State": "zcrpc.channel",
    "Stats": "zcrpc.stats",
    "Stream": "zcrpc.streaming",
    "blocking": "zcrpc.blocking",
    "connect": "zcrpc.client",
    "locks": "zcrpc.locks",
}

if not TYPE_CHECKING:  # else every name would be there for mypy

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(_HOMES[name])
        found = globals()[name] = getattr(home, name, home)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result], *, debug: bool = False) -> _Result:
    """asyncio.run on uvloop, zcrpc's preferred event loop. Any other will do as well."""
    import uvloop

    return uvloop.run(main, debug=debug)
