"""Who may call what: clients show a token when they connect, the server makes an identity of it, and an interceptor
decides about each method.

    python examples/authorisation.py
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

import zcrpc


@dataclass(frozen=True)
class User:
    name: str
    roles: frozenset[str]


# A service of your own would ask its identity provider here, or verify a signature.
USERS = {
    "token-of-alice": User("alice", frozenset({"reader", "writer"})),
    "token-of-bob": User("bob", frozenset({"reader"})),
}

# Every method that may be called at all: what is forgotten here is refused, not open.
ROLES = {"Notes.read": "reader", "Notes.write": "writer"}


def authenticate(peer: zcrpc.Credentials) -> User:
    """Called once for each connection."""
    found: User | None = None
    for token, user in USERS.items():  # all of them, and each in the same time, so that timing tells nothing
        if hmac.compare_digest(token.encode(), (peer.token or "").encode()):
            found = user
    if found is None:
        raise zcrpc.Unauthenticated("no such token")
    return found


async def authorise(call: zcrpc.IncomingCall, proceed: Any) -> Any:
    """Called for each call."""
    role = ROLES.get(call.method)
    if role is None or role not in call.identity.roles:
        raise zcrpc.PermissionDenied(f"{call.identity.name} may not call {call.method}()", details={"needs": role})
    return await proceed(call)


class Notes(zcrpc.Service):
    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    @zcrpc.method
    async def write(self, key: str, text: str) -> str:
        self.notes[key] = text
        return f"written by {zcrpc.context().identity.name}"

    @zcrpc.method
    async def read(self, key: str) -> str:
        return self.notes[key]

    @zcrpc.method
    async def forgotten(self) -> None:
        """Has no entry in ROLES."""


async def main() -> None:
    server = zcrpc.Server(Notes(), authenticate=authenticate, interceptors=[authorise])
    async with server.listen("tcp://127.0.0.1:0") as address:
        async with zcrpc.connect(address, Notes, token="token-of-alice") as notes:
            print(await notes.write("greeting", "hello"))
        async with zcrpc.connect(address, Notes, token="token-of-bob") as notes:
            print("bob reads", await notes.read("greeting"))
            for refused in (notes.write("greeting", "bye"), notes.forgotten()):
                try:
                    await refused
                except zcrpc.PermissionDenied as error:
                    print(error, error.details)
        try:
            await zcrpc.connect(address, Notes, token="a guess")
        except zcrpc.Unauthenticated as error:
            print("refused:", error)


if __name__ == "__main__":
    zcrpc.run(main())
