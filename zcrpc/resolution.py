"""A name that stands for several servers, and keeps changing what it stands for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from zcrpc.address import Address, resolve
from zcrpc.channel import Channel, Dial
from zcrpc.errors import Unavailable

_log = logging.getLogger("zcrpc.client")

# When a server cannot be reached its name may have got other ones; it is not asked for more often than this, …
_LEAST_SECONDS: Final = 5.0
# … and when all are well, this often, for servers that were added.
_MOST_SECONDS: Final = 60.0

Found = tuple[int, Any]


class Resolution:
    """Keeps the endpoints of one name in line with what it resolves to."""

    def __init__(
        self,
        channel: Channel,
        address: Address,
        dial_at: Callable[[Address, Found], Dial],
        resolve: Callable[[Address], Awaitable[list[Found]]] = resolve,
        least: float = _LEAST_SECONDS,
    ) -> None:
        self._channel = channel
        self._address = address
        self._dial_at = dial_at
        self._resolve = resolve
        self._least = least
        self._names: set[str] = set()
        channel.unresolved[str(address)] = None

    async def run(self) -> None:
        """Until it is cancelled."""
        channel, failures = self._channel, 0
        while True:
            try:
                found = await self._resolve(self._address)
            except OSError as error:
                failures += 1
                self._failed(error)
                await asyncio.sleep(channel.backoff.delay(failures))
                continue
            failures = 0
            self._update({f"{self._address} ({where[0]})": (family, where) for family, where in found})
            await asyncio.sleep(self._least)
            channel.trouble.clear()
            channel.changed()  # there may be trouble still
            await self._trouble()

    async def _trouble(self) -> None:
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                await self._channel.trouble.wait()
        except TimeoutError:
            pass

    def _failed(self, error: OSError) -> None:
        _log.warning("%s: cannot be resolved: %s", self._address, error)
        if not self._names:
            self._channel.unresolved[str(self._address)] = Unavailable(f"{self._address}: {error}")
            self._channel.changed()

    def _update(self, found: dict[str, Found]) -> None:
        channel = self._channel
        for name in self._names - found.keys():
            channel.remove(name)
        for name, where in found.items():
            channel.add(name, self._dial_at(self._address, where))
        self._names = set(found)
        channel.unresolved.pop(str(self._address), None)
        channel.changed()
