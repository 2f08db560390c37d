"""The path of a small call in C, beside the way that Python has written down: whatever comes, both do the same."""

import array
import asyncio
import ctypes
import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from by_hand import Ends, Frame, in_hand, request, response
from hypothesis import example, given, settings
from hypothesis import strategies as st
from raw_peer import ERROR, REQUEST, RESPONSE

import zcrpc
from zcrpc import _path
from zcrpc._path import Pending
from zcrpc.calling import ClientConnection
from zcrpc.codec import BYTES, COPY_BELOW, INLINE_BELOW, VIEWS, Codec
from zcrpc.serving import ServerConnection

_FROM_BYTES, _FROM_BUFFER = 1, 2


def _shown(value: Any) -> str:
    """Type and value; of views within it, that they are some."""
    if type(value) is memoryview:
        return f"memoryview {bytes(value)!r}"
    return f"{type(value).__name__} {re.sub('<memory at [^>]*>', 'view', repr(value))}"


class Shapes(zcrpc.Service):
    def __init__(self) -> None:
        self.result: Any = None

    @zcrpc.method
    async def as_bytes(self, data: bytes) -> list[Any]:
        return [type(data).__name__, bytes(data)]

    @zcrpc.method
    async def as_view(self, data: memoryview) -> list[Any]:
        return [type(data).__name__, bytes(data), data.readonly]

    @zcrpc.method
    async def with_default(self, data: bytes, more: int = 1) -> list[Any]:
        return [type(data).__name__, bytes(data), more]

    @zcrpc.method
    async def two(self, data: bytes, more: bytes) -> int:
        return len(data) + len(more)

    @zcrpc.method
    async def number(self, number: int) -> int:
        return number

    @zcrpc.method
    async def anything(self, value: Any) -> str:
        return _shown(value)

    @zcrpc.method
    def plain(self, data: bytes) -> int:
        return len(data)

    @zcrpc.method
    async def raises(self, data: bytes) -> None:
        raise zcrpc.NotFound(data.hex())

    @zcrpc.method
    async def give(self) -> Any:
        return self.result

    @zcrpc.method
    async def take(self, *values: Any) -> None: ...


_METHODS = ("as_bytes", "as_view", "with_default", "two", "number", "anything", "plain", "raises", "give", "absent")


class Stand:
    """Both ends, in a loop that a synchronous test can turn."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.service = Shapes()
        self._opened = in_hand(self.service)
        self.ends: Ends = self.run(self._opened.__aenter__())

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._opened.__aexit__(None, None, None))
        self._runner.close()

    def serve(self, name: str, header: bytes, payload: bytes, *, long: bool, **more: Any) -> list[Frame]:
        """What a server answers."""
        hand, connection = self.ends.server, self.ends.server.connection
        assert isinstance(connection, ServerConnection)
        method = 999 if name == "absent" else self.ends.methods(name)
        connection.careful = long
        frames: list[Frame] = self.run(hand.deal(request(7, method, header, payload), **more))
        connection.be_careful()
        return frames

    def answer(self, header: bytes, payload: bytes, buffers: int, *, long: bool, **more: Any) -> Any:
        """What a caller gets: its type, and how it looks."""
        hand, connection = self.ends.client, self.ends.client.connection
        assert isinstance(connection, ClientConnection)
        connection.streams = None
        if long:
            connection.open_streams()

        async def turn() -> Pending:
            pending = connection.pending[7] = Pending(connection, 7, buffers)
            assert await hand.deal(response(7, header, payload), **more) == []
            return pending

        pending = self.run(turn())
        assert pending.done()
        assert not connection.pending
        try:
            value = pending.result()
        except zcrpc.ZcrpcError as error:
            return type(error), error.message
        return type(value), _shown(value)

    def send(self, *arguments: Any) -> list[Frame]:
        """What a call sends."""

        async def turn() -> list[Frame]:
            hand = self.ends.client
            hand.frames.clear()
            task = asyncio.ensure_future(self.ends.caller.call("Shapes.take", *arguments))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            found = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(found[0], asyncio.CancelledError):
                raise found[0]
            return [frame for frame in hand.frames if frame.kind == REQUEST]

        frames: list[Frame] = self.run(turn())
        return frames


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    stand = Stand()
    yield stand
    stand.close()


# ---- headers that come in


def _reference(code: int, offset: int, length: int) -> bytes:
    return b"\xd8" + bytes([code]) + offset.to_bytes(8, "little") + length.to_bytes(8, "little")


@st.composite
def _values(draw: st.DrawFn, length: int) -> bytes:
    """A value as msgpack, which may lie about its length."""
    data = draw(st.binary(max_size=40)) if draw(st.booleans()) else bytes(draw(st.sampled_from((255, 256, 511, 600))))
    claimed = max(0, len(data) + draw(st.sampled_from((0, 0, 0, -1, 1, 255))))
    kind = draw(st.sampled_from(("bin8", "bin16", "bin32", "reference", "reference", "reference", "str", "ext", "any")))
    if kind == "bin8":
        return b"\xc4" + bytes([claimed & 0xFF]) + data
    if kind == "bin16":
        return b"\xc5" + claimed.to_bytes(2, "big") + data
    if kind == "bin32":
        return b"\xc6" + claimed.to_bytes(4, "big") + data
    if kind == "str":
        return b"\xd9" + bytes([claimed & 0xFF]) + data
    if kind == "ext":
        return b"\xc7\x10" + _reference(draw(st.integers(0, 4)), 0, length)[1:]
    if kind == "any":
        return msgspec.msgpack.encode(draw(st.none() | st.booleans() | st.integers(-9, 1 << 40) | st.text(max_size=3)))
    offset = draw(st.sampled_from((0, 0, 0, 1, 64, 1 << 32, (1 << 64) - 1)))
    lies = draw(st.sampled_from((0, 0, 0, 1, -1, 1 << 32)))
    return _reference(draw(st.sampled_from((1, 2, 1, 2, 0, 3, 4))), offset, max(0, length + lies))


@st.composite
def _small(draw: st.DrawFn, openings: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Header and payload, near the commonest shapes."""
    payload = draw(st.binary(max_size=80)) if draw(st.booleans()) else b""
    values = draw(st.lists(_values(len(payload)), min_size=1, max_size=2 if draw(st.booleans()) else 1))
    header = draw(st.sampled_from(openings)) + b"".join(values)
    header += draw(st.sampled_from((b"", b"", b"", b"\xc0", b"\x00" * 16)))
    return header[: draw(st.sampled_from((None, None, None, -1, -16, 0, 1, 2, 3, 4)))], payload


_CALLS = (
    b"\x91\x91",
    b"\x91\x91",
    b"\x91\x92",
    b"\x91",
    b"\x92\x91",
    b"\x91\xdc\x00\x01",
    b"\xdc\x00\x01\x91",
    b"\x90",
)
_RESULTS = (b"\x91", b"\x91", b"\x92", b"\x90", b"", b"\x91\x91", b"\xdc\x00\x01")
_anything = st.tuples(st.binary(max_size=40), st.binary(max_size=40))


def test_calls_are_read_as_the_long_way_reads_them(stand: Stand) -> None:
    seen: set[int] = set()

    @settings(max_examples=1000, deadline=None)
    @given(st.sampled_from(_METHODS), _small(_CALLS) | _anything, st.booleans())
    def check(name: str, parts: tuple[bytes, bytes], header_last: bool) -> None:
        short = stand.serve(name, *parts, long=False, header_last=header_last)
        assert short == stand.serve(name, *parts, long=True, header_last=header_last)
        assert [frame.stream for frame in short] == [7]
        seen.add(short[0].kind)

    check()
    assert seen == {RESPONSE, ERROR}


def test_results_are_read_as_the_long_way_reads_them(stand: Stand) -> None:
    seen: set[type] = set()

    @settings(max_examples=1000, deadline=None)
    @given(_small(_RESULTS) | _anything, st.sampled_from((BYTES, VIEWS)), st.booleans())
    @example((b"\x91\xd8\x02" + bytes(8) + b"\x03" + bytes(7), b"abc"), BYTES, True)
    @example((b"\x91\xc4\x03abc", b""), BYTES, True)
    @example((b"", b""), BYTES, True)
    @example((b"\xc1", b""), BYTES, True)
    def check(parts: tuple[bytes, bytes], buffers: int, header_last: bool) -> None:
        short = stand.answer(*parts, buffers, long=False, header_last=header_last)
        assert short == stand.answer(*parts, buffers, long=True, header_last=header_last)
        seen.add(short[0])

    check()
    assert seen >= {bytes, memoryview, type(None), zcrpc.Internal}


@pytest.mark.parametrize("length", [0, 1, 255, 256, INLINE_BELOW - 1])
@pytest.mark.parametrize("way", ["inline", _FROM_BYTES, _FROM_BUFFER])
def test_the_commonest_shapes_go_the_short_way(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, length: int, way: str | int
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the long way")

    data = bytes(range(256)) * 2
    data = data[:length]
    if isinstance(way, str):
        header, payload = msgspec.msgpack.encode([data]), b""
    else:
        header, payload = b"\x91" + _reference(way, 0, length), data
    monkeypatch.setattr(ServerConnection, "begin", refuse)
    monkeypatch.setattr(ClientConnection, "response", refuse)
    for name in ("as_bytes", "as_view", "with_default"):
        (answer,) = stand.serve(name, b"\x91" + header, payload, long=False)
        assert answer.kind == RESPONSE
        assert msgspec.msgpack.decode(answer.header)[0][:2] == ["bytes" if name != "as_view" else "memoryview", data]
    for buffers in (BYTES, VIEWS):
        view = way == _FROM_BUFFER or (way == _FROM_BYTES and buffers == VIEWS)
        kind, shown = stand.answer(header, payload, buffers, long=False)
        assert kind is (memoryview if view else bytes)
        assert shown == f"{kind.__name__} {data!r}"
    assert stand.answer(b"", b"", BYTES, long=False) == (type(None), "NoneType None")


# ---- frames that go out

_buffers = st.one_of(
    st.sampled_from((0, 1, 255, 256, 511, 512, 513, 4096, COPY_BELOW - 1)).map(
        lambda n: bytes(range(256)) * (n // 256) + bytes(n % 256)
    ),
    st.binary(max_size=600),
)
_views = st.one_of(
    _buffers.map(memoryview),
    _buffers.map(lambda data: memoryview(bytearray(data))),
    _buffers.map(lambda data: memoryview(data)[::2]),
    st.lists(st.floats(), min_size=1, max_size=20).map(lambda numbers: memoryview(array.array("d", numbers))),
    st.builds(lambda: memoryview(bytes(24)).cast("B", (4, 6))),
    st.builds(lambda: memoryview(ctypes.c_double(1.5))),
)
_plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(max_size=300),
    st.datetimes(timezones=st.just(datetime.UTC)), st.uuids(), st.decimals(allow_nan=False),
)  # fmt: skip
_nested = st.recursive(
    _plain | _buffers | _views,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=5,
)
_unsendable = st.sampled_from((1 << 64, -(1 << 63) - 1, "\ud800", object(), {1, 2}, [1 << 70], type))


def _expected(encode: Callable[[Any], Any], value: Any) -> tuple[bytes, bytes] | None:
    """Header and payload as the codec writes them. None: it does not."""
    try:
        header, buffers, _ = encode(value)
    except (TypeError, ValueError):
        return None
    return bytes(header), b"".join(buffers)


@settings(max_examples=600, deadline=None)
@given(arguments=st.lists(_nested | _unsendable, max_size=3).map(tuple) | (_buffers | _views).map(lambda one: (one,)))
def test_calls_are_written_as_the_codec_writes_them(stand: Stand, arguments: tuple[Any, ...]) -> None:
    expected = _expected(Codec().encode_arguments, arguments)
    if expected is not None and len(expected[1]) >= COPY_BELOW:
        return  # goes by reference
    if expected is None:
        with pytest.raises((TypeError, ValueError)):
            stand.send(*arguments)
        return
    (frame,) = stand.send(*arguments)
    assert (frame.header, frame.payload) == expected
    assert (frame.flags, frame.deadline_ms, frame.method) == (0, 0, stand.ends.methods("take"))


@settings(max_examples=600, deadline=None)
@given(result=_nested | _unsendable)
def test_results_are_written_as_the_codec_writes_them(stand: Stand, result: Any) -> None:
    expected = _expected(Codec().encode_result, result)
    if expected is not None and len(expected[1]) >= COPY_BELOW:
        return
    stand.service.result = result
    (frame,) = stand.serve("give", b"", b"", long=False)
    assert frame.kind == (ERROR if expected is None else RESPONSE)
    assert expected is None or (frame.header, frame.payload) == expected


def test_both_ways_put_the_same_bytes_into_headers() -> None:
    assert _path.INLINE_BELOW == INLINE_BELOW
