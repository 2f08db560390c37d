"""The opening of a connection at the server: a hello has to come in time, and who sent it may have to be
authenticated."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from zcrpc.credentials import Authenticate, Credentials, identify
from zcrpc.eager import Suspended
from zcrpc.errors import Status, ZcrpcError

if TYPE_CHECKING:
    from zcrpc.serving import ServerConnection


class Opening:
    """What goes on until calls may come."""

    __slots__ = ("_authenticating", "_connection", "_tick")

    def __init__(self, connection: ServerConnection, seconds: float) -> None:
        """seconds: that the client has."""
        self._connection = connection
        self._authenticating: Suspended | None = None  # the server's hook, if it takes its time
        self._tick = connection.reactor.deadlines.add(seconds, self)

    def expire(self) -> None:
        """No hello came in time, or its sender was not authenticated in time."""
        self._tick = 0
        connection = self._connection
        what = "not authenticated" if connection.greeted else "no hello"
        connection.log.warning("%s: %s within %g s", connection, what, connection.server.hello_timeout)
        connection.reactor.timed_out += 1
        connection.abort(what)

    def end(self) -> None:
        """It is open, or closed: there is no hurry any more."""
        if self._tick:
            self._connection.reactor.deadlines.discard(self._tick, self)
            self._tick = 0

    def close(self) -> None:
        """The connection is gone."""
        self.end()
        if self._authenticating is not None:
            self._authenticating.cancel()

    def greeted(self, authenticate: Authenticate | None) -> None:
        """The client's hello has come."""
        if authenticate is None:
            self.end()
            return
        connection = self._connection
        caller = connection.caller
        credentials = Credentials(
            address=caller.address,
            token=connection.peer.token or None,
            process=caller.process,
            certificate=caller.certificate,
        )
        connection.peer = dataclasses.replace(connection.peer, token="")
        try:
            result = connection.start(identify(authenticate, credentials))
        except (Exception, asyncio.CancelledError) as error:
            self._authenticated(None, error)
            return
        if isinstance(result, Suspended):
            self._authenticating = result
            result.then(self._authenticated)
        else:
            self._authenticated(result, None)

    def _authenticated(self, identity: Any, error: BaseException | None) -> None:
        """The server's hook has decided. Only now does the client see a hello with methods, and begins to call."""
        connection = self._connection
        self._authenticating = None
        self.end()
        if connection.ended is not None:
            return
        if error is None:
            connection.caller.identity = identity
            if not connection.introduced:  # it is if the server is going away
                connection.introduce(connection.own)
            connection.be_careful()
            return
        connection.server.unauthenticated += 1
        if isinstance(error, ZcrpcError):
            status, message = error.status, error.message
            connection.log.warning("%s: not authenticated: %s", connection, message)
        else:
            status, message = Status.INTERNAL, "the server could not check the credentials"
            connection.log.error("%s: authenticate raised %s", connection, type(error).__name__, exc_info=error)
        connection.send_goaway(status, message)
        connection.disconnect("not authenticated")
