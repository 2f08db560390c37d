"""Who may connect: tokens, the processes behind Unix sockets, and what refused clients get."""

import asyncio
import hmac
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import uvloop
from conftest import Serving, Waits, until
from raw_peer import ERROR, GOAWAY, HELLO, PING, PREFACE, REQUEST, RESPONSE, RawPeer, frame, hello

import zcrpc
from zcrpc.errors import Status

USERS = {"alice": "token-of-alice", "bob": "token-of-bob"}


class Who(Waits):
    @zcrpc.method
    async def am_i(self) -> Any:
        return zcrpc.context().identity


def check(peer: zcrpc.Credentials) -> str:
    for name, token in USERS.items():
        if peer.token is not None and hmac.compare_digest(peer.token.encode(), token.encode()):
            return name
    raise zcrpc.Unauthenticated("no such token")


async def check_later(peer: zcrpc.Credentials) -> str:
    await asyncio.sleep(0.01)
    return check(peer)


both = pytest.mark.parametrize("authenticate", [check, check_later])


@both
async def test_token_gives_an_identity(serving: Serving, authenticate: Any) -> None:
    async def made_later() -> str:
        await asyncio.sleep(0)
        return USERS["bob"]

    async with serving(Who(), authenticate=authenticate) as (server, address):
        tokens: list[Any] = [USERS["alice"], lambda: USERS["bob"], made_later]
        clients = [await zcrpc.connect(address, Who, token=token) for token in tokens]
        assert await asyncio.gather(*(who.am_i() for who in clients)) == ["alice", "bob", "bob"]
        for client in clients:
            await client.close()  # type: ignore[attr-defined]
        assert server.stats().unauthenticated == 0


@both
@pytest.mark.parametrize("token", [None, "", "wrong", "token-of-alic", "ä" * 100])
async def test_wrong_token_is_refused(
    serving: Serving, caplog: pytest.LogCaptureFixture, authenticate: Any, token: str | None
) -> None:
    async with serving(Who(), authenticate=authenticate) as (server, address):
        with pytest.raises(zcrpc.Unauthenticated, match="no such token"):
            await zcrpc.connect(address, Who, token=token)
        await until(lambda: not server.stats().connections)
        assert server.stats().unauthenticated == 1
        assert "not authenticated: no such token" in caplog.text
        assert not token or token not in caplog.text
        async with zcrpc.connect(address, Who, token=USERS["bob"]) as who:
            assert await who.am_i() == "bob"


@both
async def test_refused_peer_learns_no_methods_and_is_closed(serving: Serving, authenticate: Any) -> None:
    async with serving(Who(), authenticate=authenticate) as (_, address), await RawPeer.connect(address) as peer:
        peer.send(PREFACE + hello(token="nonsense"))
        greeting = await peer.read_hello()
        assert greeting.header["methods"] == {}
        frames = await peer.closed()
        assert [(each.kind, each.method, each.header) for each in frames] == [
            (GOAWAY, Status.UNAUTHENTICATED, ["no such token"])
        ]


async def test_server_says_hello_only_to_whom_it_knows(serving: Serving) -> None:
    gate = asyncio.Event()

    async def authenticate(peer: zcrpc.Credentials) -> str:
        await gate.wait()
        return check(peer)

    async with serving(Who(), authenticate=authenticate) as (_, address), await RawPeer.connect(address) as peer:
        assert await peer.reader.readexactly(8) == PREFACE
        peer.send(PREFACE + hello(token=USERS["alice"]))
        with pytest.raises(TimeoutError):
            await peer.frame(timeout=0.1)
        gate.set()
        greeting = await peer.frame()
        assert greeting.kind == HELLO
        peer.send(frame(REQUEST, [[]], method=greeting.header["methods"]["Who.am_i"], stream=1))
        answer = await peer.frame()
        assert (answer.kind, answer.header) == (RESPONSE, ["alice"])


@pytest.mark.parametrize(
    "early",
    [
        frame(REQUEST, [[]], method=1, stream=1),
        frame(REQUEST, [[]], method=1, stream=1, flags=4),
        frame(REQUEST, [[]], method=1, stream=1, payload_length=1 << 40),
        frame(PING, b"x"),
    ],
    ids=["request", "stream", "too large", "ping"],
)
async def test_nothing_is_served_before_authentication(
    serving: Serving, caplog: pytest.LogCaptureFixture, early: bytes
) -> None:
    service = Who()
    async with serving(service, authenticate=check_later) as (server, address), await RawPeer.connect(address) as peer:
        peer.send(PREFACE + hello(token=USERS["alice"]) + early)
        greeting = await peer.read_hello()
        assert greeting.header["methods"] == {}
        (goodbye,) = await peer.closed()
        assert (goodbye.kind, goodbye.method) == (GOAWAY, Status.INVALID_ARGUMENT)
        assert "before it was answered with a hello" in goodbye.header[0]
        assert "before it was answered with a hello" in caplog.text
        await until(lambda: not server.stats().connections)


async def test_authentication_that_takes_too_long(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[bool] = []

    async def never(peer: zcrpc.Credentials) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "nobody"

    async with serving(Who(), authenticate=never, hello_timeout=0.1) as (server, address):
        with pytest.raises(zcrpc.Unavailable):
            await zcrpc.connect(address)
        await until(lambda: cancelled)
        assert "not authenticated within 0.1 s" in caplog.text
        assert server.stats().timed_out == 1
        await until(lambda: not server.stats().connections)


async def test_client_that_leaves_meanwhile(serving: Serving) -> None:
    begun: list[str | None] = []
    cancelled: list[bool] = []

    async def slow(peer: zcrpc.Credentials) -> str:
        begun.append(peer.token)
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(True)
        return "late"

    async with serving(Who(), authenticate=slow) as (server, address):
        peer = await RawPeer.connect(address)
        peer.send(PREFACE + hello())
        await until(lambda: begun)
        assert begun == [None]
        await peer.close()
        await until(lambda: cancelled)
        await until(lambda: not server.stats().connections)
        assert server.stats().unauthenticated == 0


async def test_server_that_closes_meanwhile(serving: Serving) -> None:
    begun: list[bool] = []

    async def slow(peer: zcrpc.Credentials) -> str:
        begun.append(True)
        await asyncio.sleep(0.05)
        return "late"

    async with serving(Who(), authenticate=slow) as (server, address):
        connecting = asyncio.ensure_future(zcrpc.connect(address).__aenter__())
        await until(lambda: begun)
        await server.close()
        with pytest.raises(zcrpc.Unavailable, match="going away"):
            await connecting


@pytest.mark.parametrize("gives", [None, False])
async def test_hook_that_gives_nothing_lets_nobody_in(serving: Serving, gives: Any) -> None:
    async with serving(Who(), authenticate=lambda peer: gives) as (server, address):
        with pytest.raises(zcrpc.Unauthenticated, match="not accepted"):
            await zcrpc.connect(address)
        assert server.stats().unauthenticated == 1


@pytest.mark.parametrize(
    ("raised", "caught", "says"),
    [
        (zcrpc.PermissionDenied("not from there"), zcrpc.PermissionDenied, "not from there"),
        (zcrpc.Unavailable("the directory is down"), zcrpc.Unavailable, "the directory is down"),
        (LookupError("token-of-alice"), zcrpc.Internal, "could not check"),
    ],
)
async def test_hook_that_raises(
    serving: Serving, caplog: pytest.LogCaptureFixture, raised: Exception, caught: type[Exception], says: str
) -> None:
    def authenticate(peer: zcrpc.Credentials) -> str:
        raise raised

    async with serving(Who(), authenticate=authenticate) as (server, address):
        with pytest.raises(caught, match=says):
            await zcrpc.connect(address)
        assert server.stats().unauthenticated == 1
        assert any(record.levelno >= logging.WARNING for record in caplog.records)


async def test_process_behind_a_unix_socket(serving: Serving, tmp_path: Path) -> None:
    seen: list[zcrpc.Credentials] = []

    def only_me(peer: zcrpc.Credentials) -> str:
        seen.append(peer)
        if peer.process is None or peer.process.uid != os.getuid():
            raise zcrpc.Unauthenticated("only for the owner")
        return f"process {peer.process.pid}"

    async with serving(Who(), authenticate=only_me, address=f"unix://{tmp_path}/s") as (_, address):
        async with zcrpc.connect(address, Who) as who:
            assert await who.am_i() == f"process {os.getpid()}"
    assert seen[0].process == zcrpc.Process(os.getpid(), os.getuid(), os.getgid())
    assert (seen[0].address, seen[0].token, seen[0].certificate) == (address, None, None)
    async with serving(Who(), authenticate=only_me) as (_, address):
        with pytest.raises(zcrpc.Unauthenticated, match="only for the owner"):
            await zcrpc.connect(address)


async def test_tokens_are_not_kept_or_shown(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[zcrpc.Credentials] = []

    def authenticate(peer: zcrpc.Credentials) -> str:
        seen.append(peer)
        return check(peer)

    async with serving(Who(), authenticate=authenticate) as (server, address):
        async with zcrpc.connect(address, token=USERS["alice"]) as client:
            (connection,) = server._connections
            assert connection.peer.token == ""
            assert client._connection.own.token == ""
            assert USERS["alice"] not in repr(seen[0]) + caplog.text


@pytest.mark.parametrize("token", ["x" * 8193, 5, ["a"]])
async def test_token_that_cannot_be_one(serving: Serving, caplog: pytest.LogCaptureFixture, token: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        zcrpc.connect("tcp://127.0.0.1:1", token=token)
    async with serving(Who(), authenticate=check) as (server, address):
        with pytest.raises((TypeError, ValueError)):
            await zcrpc.connect(address, token=lambda: token)
        with pytest.raises(TypeError):
            await zcrpc.connect(address, token=lambda: None)
        async with await RawPeer.connect(address) as peer:
            peer.send(PREFACE + hello(token=token))
            await peer.read_hello()
            assert [each.kind for each in await peer.closed()] == [GOAWAY]
        assert "hello: " in caplog.text
        assert "xxx" not in caplog.text
        await until(lambda: not server.stats().connections)


async def test_longest_token_arrives(serving: Serving) -> None:
    async with serving(Who(), authenticate=lambda peer: len(peer.token)) as (_, address):
        async with zcrpc.connect(address, Who, token="x" * 8192) as who:
            assert await who.am_i() == 8192


async def test_token_without_a_hook_is_ignored(serving: Serving) -> None:
    async with serving(Who()) as (_, address), zcrpc.connect(address, Who, token="any") as who:
        assert await who.am_i() is None


def test_hook_must_be_a_function() -> None:
    with pytest.raises(TypeError, match="authenticate is a function"):
        zcrpc.Server(Who(), authenticate="secret")  # type: ignore[arg-type]


async def test_full_server_does_not_authenticate(serving: Serving) -> None:
    asked: list[bool] = []

    def authenticate(peer: zcrpc.Credentials) -> bool:
        asked.append(True)
        return True

    async with serving(Who(), authenticate=authenticate, max_connections=1) as (_, address):
        async with zcrpc.connect(address):
            with pytest.raises(zcrpc.ResourceExhausted):
                await zcrpc.connect(address)
            assert asked == [True]


@pytest.mark.parametrize("test", [test_token_gives_an_identity, test_refused_peer_learns_no_methods_and_is_closed])
@both
def test_on_uvloop(serving: Serving, test: Any, authenticate: Any) -> None:
    uvloop.run(test(serving, authenticate))


async def test_with_receiving_threads(serving: Serving) -> None:
    async with serving(Who(), authenticate=check_later, receive_threads=2) as (_, address):
        async with zcrpc.connect(address, Who, token=USERS["alice"]) as who:
            assert await who.am_i() == "alice"
        with pytest.raises(zcrpc.Unauthenticated):
            await zcrpc.connect(address, token="wrong")
        async with await RawPeer.connect(address) as peer:
            peer.send(PREFACE + hello(token=USERS["bob"]))
            await peer.read_hello()
            peer.send(frame(REQUEST, [[5]], method=peer.methods["Who.am_i"], stream=1))
            assert (await peer.frame()).kind == ERROR
