"""Compressed payloads: by themselves, through real sockets in every kind of call, and from peers that mean no good."""

import array
import asyncio
import gc
import random
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy
import pytest
import zstandard
from conftest import Serving, until
from hypothesis import given
from hypothesis import strategies as st
from raw_peer import (
    DATA,
    END,
    ERROR,
    GOAWAY,
    PREFACE,
    REQUEST,
    RESPONSE,
    STREAM_IN,
    RawPeer,
    RawServer,
    frame,
    hello,
)

import zcrpc
from zcrpc.compression import MOST, Compression, CompressionError, Packing
from zcrpc.errors import ResourceExhausted

COMPRESSED = 0x10
KIB, MIB = 1 << 10, 1 << 20
TEXT = b"a line that comes again and again\n" * 8192  # 272 KiB
NOISE = random.Random(4).randbytes(300_000)


class Store(zcrpc.Service):
    def __init__(self) -> None:
        self.kept: list[memoryview] = []
        self.gate = asyncio.Event()

    @zcrpc.method
    async def size(self, data: memoryview) -> int:
        return len(data)

    @zcrpc.method
    async def echo(self, data: memoryview) -> memoryview:
        return data

    @zcrpc.method
    async def fresh(self, data: memoryview) -> bytes:
        return bytes(data)

    @zcrpc.method
    async def large(self) -> bytes:
        return bytes(MOST + 1)

    @zcrpc.method
    async def keep(self, data: memoryview) -> None:
        self.kept.append(data)

    @zcrpc.method
    async def array_back(self, data: numpy.ndarray) -> numpy.ndarray:
        return data[1:]

    @zcrpc.method
    async def total(self, parts: AsyncIterator[memoryview]) -> int:
        return sum([len(part) async for part in parts])

    @zcrpc.method
    async def parts(self, size: int, count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            yield number.to_bytes(4, "big") * (size // 4)

    @zcrpc.method
    async def doubled(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            yield part * 2

    @zcrpc.method
    async def never(self, parts: AsyncIterator[bytes]) -> None:
        await self.gate.wait()
        async for _ in parts:
            pass


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def claiming(length: int, data: bytes) -> bytes:
    """A zstd frame whose header says something else of its contents' length, between 64 KiB and 4 GiB, than is true."""
    packed = compressed(data)
    at = packed.index(len(data).to_bytes(4, "little"), 4, 18)
    return packed[:at] + length.to_bytes(4, "little") + packed[at + 4 :]


def window_of(log: int) -> bytes:
    """A zstd frame with a window of 2^log bytes: a window descriptor, a content size of 4 bytes, one raw last block."""
    size = 70_000
    return b"\x28\xb5\x2f\xfd\x80" + bytes([log - 10 << 3]) + size.to_bytes(4, "little") + bytes([1, 0, 0])


MALFORMED = {
    "nothing": b"",
    "no frame": b"x" * 2000,
    "cut off": compressed(TEXT)[:-1],
    "cut in its header": compressed(TEXT)[:7],
    "something behind": compressed(TEXT) + b"x",
    "two frames": compressed(TEXT) * 2,
    "skippable": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",
    "no length": zstandard.ZstdCompressor(write_content_size=False).compress(TEXT),
    "empty": compressed(b""),
    "more than announced": claiming(70_000, TEXT),
    "less than announced": claiming(MIB, TEXT),
    "a wide window": window_of(27),
    "a dictionary": zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(TEXT[:999])).compress(TEXT),
    "damaged": compressed(NOISE)[:20] + bytes(50) + compressed(TEXT)[70:],
}
TOO_LONG = {"a bomb": compressed(bytes(MOST + 1)), "a lie": claiming((1 << 32) - 1, TEXT)}


def reference(length: int) -> Any:
    """A buffer of so many bytes, the first of a payload."""
    return msgspec.msgpack.Ext(2, bytes(8) + length.to_bytes(8, "little"))


def call(peer: RawPeer, name: str, payload: bytes, *, stream: int, flags: int = COMPRESSED, length: int = 0) -> bytes:
    """A call whose argument is a payload, of `length` bytes when decompressed; without payload, of no argument."""
    header = [[reference(length or len(payload))]] if payload or flags & COMPRESSED else [[]]
    return frame(REQUEST, header, payload, method=peer.methods[name], stream=stream, flags=flags)


def items(payload: bytes, *, stream: int) -> bytes:
    return frame(DATA, [reference(len(TEXT))], payload, stream=stream, flags=COMPRESSED)


async def wanting_zstd(address: str, receive_buffer: int = 0) -> RawPeer:
    peer = await RawPeer.connect(address, receive_buffer=receive_buffer)
    peer.send(PREFACE + hello(features=["zstd"]))
    assert (await peer.read_hello()).header["features"] == ["zstd"]
    return peer


# ---- by itself


def packing(**options: Any) -> Packing:
    return Packing(Compression(**options), 1 << 30)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 300))
def test_what_is_packed_comes_back(data: bytes, times: int) -> None:
    here = packing()
    packed = here.pack([data, data[:7]] * times, (len(data) + len(data[:7])) * times)
    if packed is not None:
        assert here.unpack(packed) == (data + data[:7]) * times
        assert len(packed) < here.plain_out == here.plain_in
        assert here.used == 0


@given(st.binary(max_size=200), st.sampled_from([TEXT, NOISE[:9000]]), st.integers(0, 5000))
def test_damage_is_an_error_or_goes_unnoticed_but_is_never_longer(damage: bytes, data: bytes, at: int) -> None:
    packed = compressed(data)
    at %= len(packed)
    try:
        plain = packing().unpack(packed[:at] + damage + packed[at + len(damage) :])
    except (CompressionError, ResourceExhausted):
        return
    assert len(plain) <= MOST


@pytest.mark.parametrize("packed", MALFORMED.values(), ids=MALFORMED)
def test_malformed_payloads(packed: bytes) -> None:
    here = packing()
    with pytest.raises(CompressionError):
        here.unpack(packed)
    assert (here.failures, here.used, here.plain_in) == (1, 0, 0)


@pytest.mark.parametrize("packed", TOO_LONG.values(), ids=TOO_LONG)
def test_bombs(packed: bytes) -> None:
    with pytest.raises(ResourceExhausted, match="more than the 16777216"):
        packing().unpack(packed)


def test_memory_is_in_use_until_the_last_view_dies_in_any_thread() -> None:
    here = packing(max_memory=2 * len(TEXT))
    views = [here.unpack(compressed(TEXT)), here.unpack(compressed(TEXT))]
    with pytest.raises(ResourceExhausted, match="in use"):
        here.unpack(compressed(TEXT))
    kept = [numpy.frombuffer(views.pop()[5:], "u1")]
    assert here.used == 2 * len(TEXT)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert here.used == len(TEXT)
    assert views[0] == TEXT
    assert views[0].readonly


def test_options() -> None:
    for wrong in ({"level": 23}, {"compress_from": 0}, {"max_memory": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Compression(**wrong)
    for unknown in ("gzip", 3, True):
        with pytest.raises(ValueError, match="compression="):
            zcrpc.Server(Store(), compression=unknown)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="compression="):
            zcrpc.connect("tcp://127.0.0.1:1", compression=unknown)  # type: ignore[arg-type]


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zcrpc\[zstd\]'"):
        zcrpc.Server(Store(), compression="zstd")
    zcrpc.Server(Store())


# ---- through real sockets


@pytest.mark.parametrize("size", [1000, 1024, 20_000, 100_000, len(TEXT), 3 * MIB, MOST])
async def test_calls_both_ways(serving: Serving, size: int) -> None:
    data = (TEXT * 64)[:size]
    async with serving(Store(), compression="zstd") as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            assert await store.size(data) == size
            assert bytes(await store.fresh(data)) == data
            here, there = store.stats(), server.stats()
    if size >= KIB:
        assert here.uncompressed_bytes_out == there.decompressed_bytes_in == 2 * size
        assert there.uncompressed_bytes_out == here.decompressed_bytes_in == size
        assert here.compressed_bytes_out == there.compressed_bytes_in < size // 4
        assert there.bytes_in < size // 2 + 1000
    else:
        assert there.compressed_bytes_in == there.compressed_bytes_out == 0


async def test_streams_both_ways(serving: Serving) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield TEXT

    async with serving(Store(), compression="zstd") as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            assert await store.total(parts()) == 40 * len(TEXT)
            sizes = [len(part) async for part in store.parts(100_000, 50)]
            assert sizes == [100_000] * 50
            small = [part async for part in store.parts(64, 5000)]
            assert small == [number.to_bytes(4, "big") * 16 for number in range(5000)]
            assert [part == TEXT * 2 async for part in store.doubled(parts())] == [True] * 40
            here, there = store.stats(), server.stats()
        assert there.decompressed_bytes_in == here.uncompressed_bytes_out == 80 * len(TEXT)
        assert here.decompressed_bytes_in == there.uncompressed_bytes_out >= 80 * len(TEXT) + 5_000_000
        await until(lambda: not server.stats().decompressed_bytes)


async def test_a_slow_consumer_holds_what_came_compressed(serving: Serving) -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield NOISE[:100_000] + bytes(900_000)
            sent += 1

    service = Store()
    async with serving(service, compression="zstd") as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            call = asyncio.ensure_future(store.never(parts()))
            await until(lambda: store.stats().credit_stalls)
            assert sent <= 12  # about 100 kB each, so a window of 1 MiB
            assert server.stats().decompressed_bytes == 0
            call.cancel()
            await asyncio.wait([call])


@pytest.mark.parametrize("side", ["server", "client"])
async def test_one_side_that_wants_it_is_not_enough(serving: Serving, side: str) -> None:
    mine, theirs = ("zstd", None) if side == "server" else (None, "zstd")
    async with serving(Store(), compression=mine) as (server, address):
        async with zcrpc.connect(address, Store, compression=theirs) as store:
            assert bytes(await store.fresh(TEXT)) == TEXT
            assert store.stats().compressed_bytes_out == server.stats().compressed_bytes_out == 0
            assert server.stats().bytes_in > len(TEXT)


async def test_what_does_not_become_smaller_is_sent_as_it_is(serving: Serving) -> None:
    async with serving(Store(), compression="zstd") as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            assert bytes(await store.fresh(NOISE)) == NOISE
            assert await store.size(bytes(MOST + 1)) == MOST + 1
            assert server.stats().compressed_bytes_in == server.stats().compressed_bytes_out == 0


async def test_views_over_regions_are_compressed_only_if_asked(serving: Serving) -> None:
    """A client that does not compress large payloads sends them, so they lie in regions; passed on, they stay plain."""
    plain, numbers = zcrpc.Compression(compress_from=MOST), numpy.arange(50_000)
    for views in (False, True):
        async with serving(Store(), compression=zcrpc.Compression(views=views)) as (server, address):
            async with zcrpc.connect(address, Store, compression=plain) as store:
                assert await store.echo(TEXT) == TEXT
                assert bool(server.stats().compressed_bytes_out) == views
                assert await store.size(array.array("d", bytes(100_000))) == 100_000
                assert (await store.array_back(numbers) == numbers[1:]).all()
                assert server.stats().uncompressed_bytes_out == (len(TEXT) + 49_999 * 8 if views else 0)
                assert bytes(await store.fresh(TEXT)) == TEXT
                assert server.stats().compressed_bytes_out


@pytest.mark.parametrize("values", [numpy.arange(9000.0), array.array("d", bytes(72_000))], ids=["numpy", "array"])
async def test_arrays(serving: Serving, values: Any) -> None:
    async with serving(Store(), compression="zstd") as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            assert (await store.array_back(values) == numpy.asarray(values)[1:]).all()
            assert server.stats().decompressed_bytes_in == 72_000


async def test_what_came_compressed_is_passed_on_compressed(serving: Serving) -> None:
    async with serving(Store(), compression="zstd") as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            assert await store.echo(TEXT) == TEXT
        assert server.stats().uncompressed_bytes_out == len(TEXT)


async def test_decompressed_memory_has_a_limit(serving: Serving) -> None:
    service = Store()
    limited = zcrpc.Compression(max_memory=3 * len(TEXT))
    async with serving(service, compression=limited) as (server, address):
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            for _ in range(3):
                await store.keep(TEXT)
            with pytest.raises(zcrpc.ResourceExhausted, match="in use"):
                await store.keep(TEXT)
            assert server.stats().exhausted["decompressed"] == server.stats().decompressions_failed == 1
            assert server.stats().decompressed_bytes == 3 * len(TEXT)
            service.kept.pop()
            gc.collect()
            await store.keep(TEXT)
        service.kept.clear()


async def test_calls_that_wait_are_decompressed_when_they_begin(serving: Serving) -> None:
    """The peer does not take its first result, so its other calls are put off."""
    async with serving(Store(), compression="zstd", max_unsent=0) as (server, address):
        async with await wanting_zstd(address, receive_buffer=65536) as peer:
            peer.send(call(peer, "Store.large", b"", stream=1, flags=0))
            await until(lambda: server.stats().requests == 1 and server.stats().bytes_out > 10_000)
            peer.send(call(peer, "Store.size", compressed(TEXT), stream=2, length=len(TEXT)))
            peer.send(call(peer, "Store.size", b"x" * 2000, stream=3))
            await until(lambda: server.stats().queued == 2)
            assert server.stats().decompressed_bytes_in == 0
            assert (await peer.frame()).payload == bytes(MOST + 1)
            assert (await peer.frame()).header == [len(TEXT)]
            refused = await peer.frame()
            assert (refused.kind, refused.method, refused.stream) == (ERROR, zcrpc.Status.INVALID_ARGUMENT, 3)


# ---- peers that mean no good


@pytest.mark.parametrize("packed", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_payloads_of_a_client(
    serving: Serving, packed: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call fails, and nothing else."""
    if not packed:
        return  # no payload at all: see below
    async with serving(Store(), compression="zstd") as (server, address):
        async with await wanting_zstd(address) as peer:
            peer.send(call(peer, "Store.size", packed, stream=1))
            peer.send(call(peer, "Store.total", packed, stream=3, flags=COMPRESSED | STREAM_IN))
            peer.send(call(peer, "Store.total", b"", stream=5, flags=STREAM_IN))
            peer.send(items(packed, stream=5))
            peer.send(items(packed, stream=3) + frame(END, stream=3) + frame(END, stream=5))
            answers = {each.stream: each for each in [await peer.frame() for _ in range(3)]}
            for answer in answers.values():
                assert (answer.kind, answer.method) == (ERROR, zcrpc.Status.INVALID_ARGUMENT), answer
                assert "decompress" in answer.header[0]
            assert answers.keys() == {1, 3, 5}
            peer.send(call(peer, "Store.size", compressed(TEXT), stream=7, length=len(TEXT)))
            assert (await peer.frame()).header == [len(TEXT)]
            assert server.stats().decompressions_failed == 3
            assert server.stats().violations == 0
    assert caplog.text.count("does not decompress") == 3


async def test_a_compressed_payload_of_no_bytes(serving: Serving) -> None:
    async with serving(Store(), compression="zstd") as (_server, address):
        async with await wanting_zstd(address) as peer:
            peer.send(call(peer, "Store.size", b"", stream=1))
            answer = await peer.frame()
            assert (answer.kind, answer.method) == (ERROR, zcrpc.Status.INVALID_ARGUMENT)


@pytest.mark.parametrize("packed", TOO_LONG.values(), ids=TOO_LONG)
async def test_bombs_of_a_client(serving: Serving, packed: bytes) -> None:
    async with serving(Store(), compression="zstd") as (server, address):
        async with await wanting_zstd(address) as peer:
            peer.send(call(peer, "Store.size", packed, stream=1))
            peer.send(call(peer, "Store.total", b"", stream=5, flags=STREAM_IN))
            peer.send(items(packed, stream=5) + frame(END, stream=5))
            for answer in [await peer.frame() for _ in range(2)]:
                assert (answer.kind, answer.method) == (ERROR, zcrpc.Status.RESOURCE_EXHAUSTED), answer
            assert server.stats().exhausted["decompressed"] == 1
            assert server.stats().decompressions_failed == 2


async def test_a_decompressed_payload_over_max_message(serving: Serving) -> None:
    async with serving(Store(), compression="zstd", max_message=100_000) as (_server, address):
        async with await wanting_zstd(address) as peer:
            peer.send(call(peer, "Store.size", compressed(TEXT), stream=1, length=len(TEXT)))
            answer = await peer.frame()
            assert (answer.kind, answer.method) == (ERROR, zcrpc.Status.RESOURCE_EXHAUSTED)
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            with pytest.raises(zcrpc.ResourceExhausted):
                await store.size(TEXT)
            assert await store.size(TEXT[:100_000]) == 100_000


@pytest.mark.parametrize("kind", [REQUEST, DATA])
async def test_a_client_that_compresses_without_having_asked(
    serving: Serving, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Store(), compression="zstd") as (server, address):
        async with await RawPeer.greeted(address) as peer:
            packed = compressed(TEXT)
            peer.send(call(peer, "Store.total", b"", stream=1, flags=STREAM_IN))
            peer.send(call(peer, "Store.size", packed, stream=3) if kind == REQUEST else items(packed, stream=1))
            frames = await peer.closed()
            assert frames[-1].kind == GOAWAY
            assert "not agreed on" in frames[-1].header[0]
        assert server.stats().violations == 1
    assert "not agreed on" in caplog.text


async def test_a_compressed_call_on_a_stream_in_use(serving: Serving) -> None:
    async with serving(Store(), compression="zstd") as (server, address):
        async with await wanting_zstd(address) as peer:
            peer.send(call(peer, "Store.never", b"", stream=1, flags=STREAM_IN))
            peer.send(call(peer, "Store.size", compressed(TEXT), stream=1, length=len(TEXT)))
            assert (await peer.closed())[-1].kind == GOAWAY
        assert server.stats().decompressed_bytes_in == 0


async def test_flags_of_frames_without_payload_mean_nothing(serving: Serving) -> None:
    async with serving(Store(), compression="zstd") as (_server, address):
        async with await RawPeer.greeted(address) as peer:
            peer.send(frame(7, "ping", flags=COMPRESSED))
            assert (await peer.frame()).header == "ping"


async def answering(peer: RawPeer, packed: bytes, features: list[str]) -> None:
    """Answers a call with a payload, and a stream with items."""
    peer.send(PREFACE + hello(features=features, methods={"Store.fresh": 1, "Store.parts": 2}))
    await peer.read_hello()
    asked = await peer.frame()
    header = [reference(len(TEXT))]
    kind = DATA if asked.method == 2 else RESPONSE
    peer.send(frame(kind, header, packed, stream=asked.stream, flags=COMPRESSED))
    await peer.reader.read()


async def first(stream: Any) -> Any:
    return await anext(aiter(stream))


@pytest.mark.parametrize("packed", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("method", ["fresh", "parts"])
async def test_malformed_payloads_of_a_server(packed: bytes, method: str) -> None:
    async with RawServer(lambda peer: answering(peer, packed, ["zstd"])) as address:
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            with pytest.raises(zcrpc.Internal, match="decompress"):
                await (store.fresh(b"") if method == "fresh" else first(store.parts(1, 1)))
            assert store.stats().decompressions_failed == 1


@pytest.mark.parametrize("packed", TOO_LONG.values(), ids=TOO_LONG)
@pytest.mark.parametrize("method", ["fresh", "parts"])
async def test_bombs_of_a_server(packed: bytes, method: str) -> None:
    async with RawServer(lambda peer: answering(peer, packed, ["zstd"])) as address:
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            with pytest.raises(zcrpc.ResourceExhausted, match="when decompressed"):
                await (store.fresh(b"") if method == "fresh" else first(store.parts(1, 1)))


async def test_a_server_that_compresses_without_having_asked() -> None:
    async with RawServer(lambda peer: answering(peer, compressed(TEXT), [])) as address:
        async with zcrpc.connect(address, Store, compression="zstd", retries=None) as store:
            with pytest.raises(zcrpc.Unavailable, match="not agreed on"):
                await store.fresh(b"")


async def test_a_server_of_another_make() -> None:
    async with RawServer(lambda peer: answering(peer, compressed(TEXT), ["zstd", "more"])) as address:
        async with zcrpc.connect(address, Store, compression="zstd") as store:
            assert bytes(await store.fresh(b"")) == TEXT
