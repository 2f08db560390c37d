"""TLS: that it works, and what those get who speak it wrongly or not at all."""

import asyncio
import datetime
import gc
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trustme
from conftest import Waits, until
from raw_peer import PREFACE, RawPeer, hello

import zcrpc
from zcrpc import tls

MIB = 1 << 20


class Store(Waits):
    @zcrpc.method
    async def echo(self, value: memoryview) -> memoryview:
        return value

    @zcrpc.method
    async def digest(self, value: memoryview) -> bytes:
        return hashlib.sha256(value).digest()

    @zcrpc.method
    async def make(self, size: int) -> bytes:
        return bytes(size)

    @zcrpc.method
    def add(self, a: int, b: int) -> int:
        return a + b


@pytest.fixture(scope="module", name="authority")
def _authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1", "localhost")), **options).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def serving(
    context: ssl.SSLContext, *, address: str = "tcp://127.0.0.1:0", **options: Any
) -> AsyncIterator[tuple[zcrpc.Server, str, Store]]:
    service = Store()
    server = zcrpc.Server(service, **options)
    async with server.listen(address, ssl=context) as bound:
        yield server, bound, service
        gc.collect()
        await until(lambda: not server.regions.stats().leases)
        server_tunnels = server._tunnels
    assert not server_tunnels
    assert not server._handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_calls_of_every_size(authority: trustme.CA, version: ssl.TLSVersion) -> None:
    context = client_context(authority)
    context.maximum_version = version
    async with serving(server_context(authority)) as (server, address, _):
        async with zcrpc.connect(address, Store, ssl=context) as store:
            for size in (0, 1, 1000, 16_384, 100_000, 5 * MIB + 3):
                data = os.urandom(size)
                assert await store.echo(memoryview(data)) == data
            assert server.stats().payload_bytes_mapped == 0
        await until(lambda: not server.stats().connections)
        assert not server._tunnels


async def test_over_a_unix_socket(authority: trustme.CA, tmp_path: Any) -> None:
    async with serving(server_context(authority, "store"), address=f"unix://{tmp_path}/s") as (_, address, _service):
        async with zcrpc.connect(address, Store, ssl=client_context(authority), server_hostname="store") as store:
            assert await store.add(1, 2) == 3


async def test_many_calls_at_once_both_ways(authority: trustme.CA) -> None:
    async with serving(server_context(authority)) as (_, address, _service):
        context = client_context(authority)
        async with zcrpc.connect(address, Store, ssl=context) as one, zcrpc.connect(address, Store, ssl=context) as two:
            blocks = [os.urandom(n * 40_000) for n in range(1, 40)]
            echoes = await asyncio.gather(*((one, two)[n % 2].echo(memoryview(b)) for n, b in enumerate(blocks)))
            assert [bytes(echo) for echo in echoes] == blocks
            assert await asyncio.gather(*(one.add(n, 1) for n in range(500))) == list(range(1, 501))


async def test_mutual(authority: trustme.CA) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    ours = client_context(authority)
    authority.issue_cert("alice@example.org").configure_cert(ours)
    async with serving(context) as (server, address, _):
        async with zcrpc.connect(address, Store, ssl=ours) as store:
            assert await store.add(1, 2) == 3
            (connection,) = server._connections
            assert connection.caller.certificate is not None
            assert ("email", "alice@example.org") in connection.caller.certificate["subjectAltName"]


async def test_the_server_is_told_of_no_certificate_where_none_was_asked_for(authority: trustme.CA) -> None:
    async with serving(server_context(authority)) as (server, address, _):
        async with zcrpc.connect(address, Store, ssl=client_context(authority)):
            (connection,) = server._connections
            assert connection.caller.certificate is None


async def test_certificate_among_the_credentials(authority: trustme.CA) -> None:
    def check(credentials: zcrpc.Credentials) -> str:
        assert credentials.certificate is not None
        names = dict(credentials.certificate["subjectAltName"])
        if names["email"] != "alice@example.org":
            raise zcrpc.Unauthenticated("only alice")
        return "alice"

    class Who(zcrpc.Service):
        @zcrpc.method
        def am_i(self) -> str:
            return str(zcrpc.context().identity)

    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    server = zcrpc.Server(Who(), authenticate=check)
    async with server.listen("tcp://127.0.0.1:0", ssl=context) as address:
        alice, bob = client_context(authority), client_context(authority)
        authority.issue_cert("alice@example.org").configure_cert(alice)
        authority.issue_cert("bob@example.org").configure_cert(bob)
        async with zcrpc.connect(address, Who, ssl=alice) as who:
            assert await who.am_i() == "alice"
        with pytest.raises(zcrpc.Unauthenticated, match="only alice"):
            await zcrpc.connect(address, ssl=bob)
        assert server.stats().unauthenticated == 1


def test_on_uvloop(authority: trustme.CA) -> None:
    async def main() -> None:
        async with serving(server_context(authority)) as (_, address, _service):
            async with zcrpc.connect(address, Store, ssl=client_context(authority)) as store:
                blocks = [os.urandom(n * 300_000) for n in range(1, 12)]
                echoes = await asyncio.gather(*(store.echo(memoryview(block)) for block in blocks))
                assert [bytes(echo) for echo in echoes] == blocks
                del echoes

    zcrpc.run(main())


# ---- those who are refused


async def test_client_without_certificate(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    async with serving(context) as (server, address, _):
        with pytest.raises(zcrpc.Unavailable, match="certificate required"):
            await zcrpc.connect(address, ssl=client_context(authority))
        await until(lambda: server.stats().handshakes_failed == 1)
        assert "peer did not return a certificate" in caplog.text


async def test_client_of_an_unknown_authority(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    ours = client_context(authority)
    trustme.CA().issue_cert("mallory@example.org").configure_cert(ours)
    async with serving(context) as (server, address, _):
        with pytest.raises(zcrpc.Unavailable, match=r"TLS: .*(unknown ca|certificate)"):
            await zcrpc.connect(address, ssl=ours)
        await until(lambda: server.stats().handshakes_failed == 1)
        assert "certificate does not verify" in caplog.text


def expired(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(authority, not_after=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1))


def elsewhere(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(authority, "example.org")


def stranger(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(trustme.CA())


@pytest.mark.parametrize(
    ("make", "words"),
    [(expired, "expired"), (elsewhere, "IP address mismatch"), (stranger, "unable to get local issuer")],
)
async def test_server_that_does_not_verify(
    authority: trustme.CA, make: Callable[[trustme.CA], ssl.SSLContext], words: str
) -> None:
    async with serving(make(authority)) as (server, address, _):
        with pytest.raises(zcrpc.Unavailable, match=f"certificate does not verify: .*{words}"):
            await zcrpc.connect(address, ssl=client_context(authority))
        await until(lambda: server.stats().handshakes_failed == 1)
        async with zcrpc.connect(address, Store, ssl=ssl._create_unverified_context()) as store:
            assert await store.add(1, 2) == 3


async def test_plain_client_at_a_tls_server(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(server_context(authority)) as (server, address, _):
        with pytest.raises(zcrpc.Unavailable, match=r"does not speak zcrpc|reset"):
            await zcrpc.connect(address)
        assert server.stats().handshakes_failed == 1
        assert "does the peer speak TLS?" in caplog.text


async def test_tls_client_at_a_plain_server(authority: trustme.CA) -> None:
    server = zcrpc.Server(Store())
    async with server.listen("tcp://127.0.0.1:0") as address:
        with pytest.raises(zcrpc.Unavailable, match="does the peer speak TLS"):
            await zcrpc.connect(address, ssl=client_context(authority))


async def test_client_that_never_shakes_hands(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(server_context(authority), hello_timeout=0.1) as (server, address, _):
        async with await RawPeer.connect(address) as peer:
            await peer.closed()
        assert server.stats().handshakes_failed == 1
        assert "none within 0.1 s" in caplog.text


async def test_server_that_never_shakes_hands(authority: trustme.CA) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(zcrpc.DeadlineExceeded):
            await zcrpc.connect(
                f"tcp://127.0.0.1:{listener.getsockname()[1]}", ssl=client_context(authority), timeout=0.1
            )


async def test_handshakes_count_as_connections(authority: trustme.CA) -> None:
    async with serving(server_context(authority), max_connections=2, hello_timeout=5) as (server, address, _):
        async with await RawPeer.connect(address), await RawPeer.connect(address):
            await until(lambda: len(server._handshakes) == 2)
            with pytest.raises(zcrpc.Unavailable):
                await zcrpc.connect(address, ssl=client_context(authority))
            assert server.stats().refused == 1


async def secured(address: str, context: ssl.SSLContext) -> RawPeer:
    """A peer inside TLS whose every byte the test decides about."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return RawPeer(*await asyncio.open_connection(host, int(port), ssl=context, limit=1 << 24))


async def test_bad_frames_inside_tls(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(server_context(authority)) as (server, address, _):
        peer = await secured(address, client_context(authority))
        peer.send(PREFACE + hello() + b"\xff" * 100)
        await peer.closed()
        await peer.close()
        await until(lambda: not server.stats().connections)
        assert "unknown kind of frame" in caplog.text


async def test_garbage_inside_the_tls_stream(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(server_context(authority)) as (server, address, _):
        peer = await secured(address, client_context(authority))
        peer.send(PREFACE + hello())
        await peer.read_hello()
        os.write(peer.writer.get_extra_info("socket").fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: not server.stats().connections)
        assert "TLS: decryption failed or bad record mac" in caplog.text
        peer.writer.transport.abort()
        await asyncio.sleep(0)


async def test_peer_that_is_gone_without_a_word(authority: trustme.CA) -> None:
    async with serving(server_context(authority)) as (server, address, service):
        peer = await secured(address, client_context(authority))
        peer.send(PREFACE + hello())
        await peer.read_hello()
        peer.call("Store.wait")
        await until(lambda: service.began == 1)
        peer.writer.transport.abort()
        await until(lambda: service.cancelled == 1 and not server.stats().connections)


# ---- backpressure, closing


async def test_server_that_does_not_read_stops_the_client(authority: trustme.CA) -> None:
    async with serving(server_context(authority), budget=4 * MIB, max_message=2 * MIB) as (server, address, _):
        async with zcrpc.connect(address, ssl=client_context(authority)) as client:
            held = [await client.call("Store.echo", bytes(MIB), returns=memoryview) for _ in range(3)]
            assert len(held) == 3
            tasks = [asyncio.ensure_future(client.call("Store.digest", bytes(2 * MIB))) for _ in range(20)]
            digest = hashlib.sha256(bytes(2 * MIB)).digest()
            assert await asyncio.gather(*tasks) == [digest] * 20
            assert server.stats().regions <= 4


async def test_client_that_does_not_read_is_dropped(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(server_context(authority), stall_timeout=0.5) as (server, address, _):
        peer = await secured(address, client_context(authority))
        peer.send(PREFACE + hello())
        await peer.read_hello()
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for stream in range(1, 9):
            peer.call("Store.make", 8 * MIB, stream=stream)
        await until(lambda: server.stats().connections == 1 and server.stats().requests == 8)
        await until(lambda: not server.stats().connections)
        assert "does not read" in caplog.text
        peer.writer.transport.abort()


async def test_close_lets_calls_in_flight_finish(authority: trustme.CA) -> None:
    async with serving(server_context(authority)) as (server, address, service):
        async with zcrpc.connect(address, Store, ssl=client_context(authority)) as store:
            call = asyncio.ensure_future(store.wait())
            large = asyncio.ensure_future(store.make(20 * MIB))
            await until(lambda: service.began == 1)
            closing = asyncio.ensure_future(server.close(grace=5))
            await asyncio.sleep(0.02)
            service.gate.set()
            assert await call == "waited"
            assert len(await large) == 20 * MIB
            await closing


async def test_client_close_leaves_nothing_behind(authority: trustme.CA) -> None:
    async with serving(server_context(authority)) as (server, address, service):
        client = await zcrpc.connect(address, ssl=client_context(authority))
        call = asyncio.ensure_future(client.call("Store.wait"))
        await until(lambda: service.began == 1)
        await client.close()
        with pytest.raises(zcrpc.Unavailable):
            await call
        assert not client._dialer._tunnels
        await until(lambda: service.cancelled == 1 and not server._tunnels)


async def test_listening_ends_while_hands_are_shaken(authority: trustme.CA) -> None:
    async with serving(server_context(authority)) as (server, address, _):
        async with await RawPeer.connect(address):
            await until(lambda: server._handshakes)
            await server.close()
        assert not server._handshakes


def test_contexts_of_the_wrong_side(authority: trustme.CA) -> None:
    with pytest.raises(ValueError, match="server's context at a client"):
        zcrpc.connect("tcp://127.0.0.1:1", ssl=server_context(authority))
    with pytest.raises(TypeError, match="SSLContext"):
        zcrpc.connect("tcp://127.0.0.1:1", ssl=True)  # type: ignore[call-overload]
    server = zcrpc.Server(Store())
    with pytest.raises(ValueError, match="client's context at a server"):
        server.listen("tcp://127.0.0.1:0", ssl=client_context(authority))


async def test_no_hostname_to_check(authority: trustme.CA, tmp_path: Any) -> None:
    async with serving(server_context(authority), address=f"unix://{tmp_path}/s") as (_, address, _service):
        with pytest.raises(zcrpc.Unavailable, match="check_hostname"):
            await zcrpc.connect(address, ssl=client_context(authority))


# ---- the tunnel by itself


async def test_tunnel_carries_any_pieces(authority: trustme.CA) -> None:
    """Both ends of a tunnel in one loop, with a reader that is slower than the writer."""
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    ours = client_context(authority)
    one, other = await asyncio.gather(
        tls.open_tunnel(loop, left, ours, server_side=False, server_hostname="localhost"),
        tls.open_tunnel(loop, right, server_context(authority), server_side=True),
    )
    ended: list[OSError | None] = []
    other.on_end = ended.append
    one.start()
    other.start()
    reader, writer = await asyncio.open_connection(sock=other.inner)
    _, sender = await asyncio.open_connection(sock=one.inner)
    data = os.urandom(3 * MIB)
    sender.write(data)
    sender.write_eof()
    received = bytearray()
    while piece := await reader.read(100_000):
        received += piece
        await asyncio.sleep(0.001)
    assert received == data
    assert ended == [None]
    writer.close()
    sender.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
        await sender.wait_closed()
    await until(lambda: one.closed and other.closed)
