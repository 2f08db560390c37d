"""Health: whether a server, and each of its services, is ready for calls; asked by load balancers and orchestrators.

    server.health.set("Store", serving=False)                             # at the server

    health = client.use(zcrpc.Health)                                     # at a client
    await health.check("Store")                                           # Serving.NOT_SERVING
    async for status in health.watch("Store"): ...                        # now, and whenever it changes

What the statuses mean, and which service name means the server as a whole (""), is as in grpc.health.v1
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Iterable

from zcrpc.errors import NotFound
from zcrpc.service import Service, method


class Serving(enum.Enum):
    """Whether a service is ready for calls. SERVICE_UNKNOWN, for those that watch: there is none of that name yet."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"


class Health(Service, name="zcrpc.Health"):
    """Whether the server, and each of its services, is ready for calls. Every `zcrpc.Server` has one."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._statuses = dict.fromkeys(("", *services), Serving.SERVING)
        self._watchers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._draining = False

    def set(self, service: str = "", *, serving: bool) -> None:
        """Says of a service, or of the server as a whole (""), whether it is ready for calls. Each for itself: the
        server may serve while one of its services does not. May be called from any thread; without effect once the
        server goes away."""
        if not self._draining:
            self._statuses[service] = Serving.SERVING if serving else Serving.NOT_SERVING
            self._tell()

    def drain(self) -> None:
        """The server goes away: nothing is served any more, and those that watch are told so for the last time."""
        self._draining = True
        self._statuses = dict.fromkeys(self._statuses, Serving.NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        for changed, loop in list(self._watchers.items()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

    @method
    async def check(self, service: str = "") -> Serving:
        """Whether a service, or the server as a whole (""), is ready for calls. NotFound if there is no such
        service."""
        status = self._statuses.get(service)
        if status is None:
            raise NotFound(f"there is no service {service!r}")
        return status

    @method
    async def watch(self, service: str = "") -> AsyncIterator[Serving]:
        """What `check` would say, at once and whenever it changes; SERVICE_UNKNOWN instead of an error. Changes that
        come faster than they are taken are told as one. Ends when the server goes away."""
        changed = asyncio.Event()
        self._watchers[changed] = asyncio.get_running_loop()
        told = None
        try:
            while True:
                changed.clear()
                draining, status = self._draining, self._statuses.get(service, Serving.SERVICE_UNKNOWN)
                if status is not told:
                    yield status
                    told = status
                if draining:
                    return
                await changed.wait()
        finally:
            del self._watchers[changed]

    @method
    async def list(self) -> dict[str, Serving]:
        """All services, and the server as a whole ("")."""
        return dict(self._statuses)
