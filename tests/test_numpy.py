"""Arrays: through real sockets, through the codec, and what a peer can make up."""

import array
import dataclasses
import gc
import math
import mmap
import os
import struct
import subprocess
import sys
import types
from typing import Any, Literal, TypeVar, Union

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from conftest import Serving, until
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst
from msgspec.msgpack import Ext
from raw_peer import ERROR, PREFACE, RESPONSE, RawPeer, RawServer, frame, hello

import zcrpc
from zcrpc import arrays, conversion
from zcrpc.codec import FROM_ARRAY, VIEWS, Codec, HeaderError
from zcrpc.conversion import converter

MIB = 1 << 20
Floats = npt.NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


@dataclasses.dataclass
class Frame:
    name: str
    pixels: npt.NDArray[np.uint8]
    mask: np.ndarray | None = None


class Record(msgspec.Struct):
    raw: memoryview
    table: dict[str, Floats]


class Maths(zcrpc.Service):
    def __init__(self) -> None:
        self.kept: list[Any] = []

    @zcrpc.method
    async def echo(self, value: np.ndarray) -> np.ndarray:
        assert type(value) is np.ndarray
        return value

    @zcrpc.method
    async def twice(self, value: Floats) -> Floats:
        return value * 2

    @zcrpc.method
    async def frames(self, frames: list[Frame]) -> dict[str, Frame]:
        return {frame.name: frame for frame in frames}

    @zcrpc.method
    async def record(self, record: Record) -> Record:
        return Record(memoryview(record.raw), {key: value + 1 for key, value in record.table.items()})

    @zcrpc.method
    async def maybe(self, value: np.ndarray | None = None, *, other: Floats | None = None) -> list[str]:
        return [type(value).__name__, type(other).__name__]

    @zcrpc.method
    async def view(self, value: memoryview) -> str:
        return f"{value.format} {value.ndim} {value.nbytes} {value.readonly}"

    @zcrpc.method
    async def copy(self, value: bytes) -> bytes:
        return value

    @zcrpc.method
    async def anything(self, value: Any) -> Any:
        return value

    @zcrpc.method
    async def plane(self, value: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
        return float(value.sum())

    @zcrpc.method
    async def numbers(self, value: "array.array") -> "array.array":  # type: ignore[type-arg]
        value.append(1.5)
        return value

    @zcrpc.method
    async def keep(self, value: np.ndarray) -> int:
        self.kept.append(value[1:])
        return int(value.nbytes)

    @zcrpc.method
    async def mixed(self, first: np.ndarray, second: Any, **others: Any) -> list[str]:
        return [type(value).__name__ for value in (first, second, *others.values())]

    @zcrpc.method
    async def lie(self) -> Floats:
        return np.zeros(3)  # type: ignore[return-value]


def same(left: Any, right: Any) -> bool:
    """Elements compared by their bytes, so that NaN and NaT equal themselves."""
    return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())


STRUCTURED = np.dtype(
    [("id", "<u4"), ("at", "<M8[us]"), ("place", [("x", ">f8"), ("y", "<f4", (2, 3))]), ("name", "S5"), ("text", "<U3")]
)
ALIGNED = np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True)

ARRAYS = [
    np.arange(12, dtype="<i4").reshape(3, 4),
    np.arange(24, dtype=">f8").reshape(2, 3, 4),
    np.array(7),
    np.array(2.5, dtype=">f4"),
    np.zeros((0,)),
    np.zeros((3, 0, 5), "c16"),
    np.array([True, False]),
    np.array([1 + 2j], "c8"),
    np.array([1.5, np.nan], "f2"),
    np.array(["2024-01-02", "NaT"], "M8[D]"),
    np.array([5, 6], "m8[25us]"),
    np.array([b"abc", b""]),
    np.array(["ä", "ßß"]),
    np.frombuffer(b"abcdefgh", "V4"),
    np.zeros(5, STRUCTURED),
    np.zeros((2, 2), ALIGNED),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(100)[::-3],
    np.broadcast_to(np.arange(3), (4, 3)),
    np.arange(40_000, dtype="i8").reshape(200, 200).T,
    np.random.default_rng(1).random((700, 300)),
]


@pytest.mark.parametrize("receive", ["copy", "zerocopy"])
async def test_arrays_of_all_kinds_come_back_as_they_went(serving: Serving, receive: Any) -> None:
    async with serving(Maths(), receive=receive) as (_, address):
        async with zcrpc.connect(address, Maths, receive=receive) as maths, zcrpc.connect(address) as client:
            for value in ARRAYS:
                back = await maths.echo(value)
                assert type(back) is np.ndarray
                assert same(back, value), value.dtype
                assert not back.flags.writeable
                assert back.flags.c_contiguous
                assert same(await client.call("Maths.echo", value, returns=np.ndarray), value)
                del back


async def test_subclasses_that_add_nothing_arrive_as_plain_arrays(serving: Serving, tmp_path: Any) -> None:
    (tmp_path / "mapped").write_bytes(bytes(range(200)))
    values = [
        np.memmap(tmp_path / "mapped", dtype="u1", mode="r"),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ]
    async with serving(Maths()) as (_, address), zcrpc.connect(address, Maths) as maths:
        for value in values:
            assert same(await maths.echo(value), value)


async def test_arrays_nested_in_arguments_and_results(serving: Serving) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (300, 400, 3), "u1")
    async with serving(Maths()) as (_, address), zcrpc.connect(address, Maths) as maths:
        back = await maths.frames([Frame("a", pixels), Frame("b", pixels[0], np.ones(3, bool))])
        assert same(back["a"].pixels, pixels)
        assert back["a"].mask is None
        assert same(back["b"].pixels, pixels[0])
        assert back["b"].mask is not None
        assert back["b"].mask.all()
        # A view where a view is annotated, though an array was sent, next to arrays where those are.
        record = await maths.record(Record(pixels[1], {"x": np.ones(5, "f4")}))
        assert record.raw == pixels[1].tobytes()
        assert same(record.table["x"], np.full(5, 2, "f4"))
        assert await maths.maybe() == ["NoneType", "NoneType"]
        assert await maths.maybe(None, other=np.ones(3, "f4")) == ["NoneType", "ndarray"]
        del back, record


async def test_array_next_to_parameters_without_annotation(serving: Serving) -> None:
    value = np.ones(1000)
    async with serving(Maths()) as (_, address), zcrpc.connect(address, Maths) as maths:
        assert await maths.mixed(value, value, a=bytes(1000), b=bytearray(1000)) == [
            "ndarray",
            "memoryview",
            "bytes",
            "memoryview",
        ]


@pytest.mark.parametrize("count", [0, 10, 100_000])
async def test_annotation_decides_what_an_array_arrives_as(serving: Serving, count: int) -> None:
    value = np.arange(count, dtype="f8").reshape(-1, 2)
    async with serving(Maths()) as (_, address), zcrpc.connect(address) as client:
        assert await client.call("Maths.view", value) == f"B 1 {value.nbytes} True"
        assert await client.call("Maths.copy", value) == value.tobytes()
        untyped = await client.call("Maths.anything", value)
        assert type(untyped) is memoryview
        assert untyped.format == "B"
        assert untyped == value.tobytes()
        del untyped


@pytest.mark.parametrize("count", [0, 3, 100, 70_000])
@pytest.mark.parametrize("sent", [bytes, bytearray, lambda n: memoryview(bytes(n))], ids=["bytes", "array", "view"])
async def test_buffers_that_are_no_arrays_arrive_as_arrays_of_bytes(serving: Serving, count: int, sent: Any) -> None:
    async with serving(Maths()) as (_, address), zcrpc.connect(address) as client:
        back = await client.call("Maths.echo", sent(count), returns=npt.NDArray[np.uint8])
        assert same(back, np.zeros(count, "u1"))
        del back


async def test_array_module(serving: Serving) -> None:
    async with serving(Maths()) as (_, address), zcrpc.connect(address, Maths) as maths:
        assert await maths.numbers(array.array("d", [0.5])) == array.array("d", [0.5, 1.5])
        assert await maths.numbers(np.zeros(2, "f4")) == array.array("f", [0, 0, 1.5])  # type: ignore[arg-type]
        sent: Any = array.array("i", range(1000))
        assert same(await maths.echo(sent), np.arange(1000, dtype="i4"))
        for wrong, says in [
            (np.zeros((2, 2)), "one dimension"),
            (np.zeros(2, ">f8"), "elements"),
        ]:
            with pytest.raises(zcrpc.InvalidArgument, match=rf"numbers\(\): 'value': .*{says}"):
                await maths.numbers(wrong)  # type: ignore[arg-type]
        text: Any = "w" if sys.version_info >= (3, 13) else "u"  # which is deprecated then
        with pytest.raises(TypeError, match=f"type code '{text}'"):
            await maths.numbers(array.array(text, "text"))


@pytest.mark.parametrize(
    ("method", "value", "says"),
    [
        ("twice", np.zeros(3), "'value': Expected `ndarray` of float32, got float64"),
        ("twice", np.zeros(3, "i4"), "float32, got int32"),
        ("twice", [1.5], "Expected `ndarray`, got `list`"),
        ("twice", b"1234", "float32, got uint8"),
        ("twice", None, "got `NoneType`"),
        ("echo", 3, "got `int`"),
        ("echo", "text", "got `str`"),
        ("plane", np.zeros(3), "2 dimensions, got 1"),
        ("plane", np.zeros((3, 3), "f4"), "float64, got float32"),
        ("frames", [{"name": "a", "pixels": np.zeros(3, "i1")}], r"'frames': .*uint8, got int8 - at `\$\[0\]\.pixels`"),
        ("record", {"raw": b"", "table": {"x": np.zeros(1)}}, r"'record': .*float64 - at `\$\.table\[\.\.\.\]`"),
    ],
)
async def test_wrong_arrays_are_named(serving: Serving, method: str, value: Any, says: str) -> None:
    async with serving(Maths()) as (_, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.InvalidArgument, match=says) as caught:
            await client.call(f"Maths.{method}", value)
        assert caught.value.message.startswith(f"Maths.{method}(): '")


async def test_wrong_result_is_told_to_the_caller(serving: Serving) -> None:
    async with serving(Maths()) as (_, address), zcrpc.connect(address, Maths) as maths:
        with pytest.raises(zcrpc.Internal, match=r"lie\(\) is not as announced: .*float32, got float64"):
            await maths.lie()


class Unit(np.ndarray):
    """Elements with a meaning that is not in them."""


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["x", 1, None], dtype=object),
        np.zeros(2, [("a", "i4"), ("b", "O")]),
        np.zeros(3, np.longdouble),
        np.zeros(3, []),
        np.zeros(3, "V0"),
        np.zeros(3, np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})),
        np.zeros(3, np.dtype([(("title", "name"), "i4")])),
        np.ma.masked_array([1, 2], [True, False]),
        np.zeros(2).view(Unit),
        np.longdouble(1),
        np.datetime64("2024-01-02", "ns"),
        np.timedelta64("NaT", "s"),
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)
async def test_arrays_that_mean_nothing_elsewhere_are_not_sent(serving: Serving, value: Any) -> None:
    async with serving(Maths()) as (server, address), zcrpc.connect(address) as client:
        for whole in (value, [{"deep": value}]):
            with pytest.raises(TypeError, match="cannot be sent"):
                await client.call("Maths.anything", whole)
        assert server.stats().requests == 0


DTYPES = (
    nst.boolean_dtypes()
    | nst.integer_dtypes(endianness="?")
    | nst.unsigned_integer_dtypes(endianness="?")
    | nst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | nst.complex_number_dtypes(endianness="?", sizes=(64, 128))
    | nst.datetime64_dtypes(endianness="?")
    | nst.timedelta64_dtypes(endianness="?")
    | nst.byte_string_dtypes(min_len=1)
    | nst.unicode_string_dtypes(endianness="?", min_len=1)
)


@settings(deadline=None)
@given(st.data(), st.one_of(DTYPES, nst.array_dtypes(DTYPES, allow_subarrays=True), nst.nested_dtypes(DTYPES)))
def test_any_array_arrives_as_it_was(data: st.DataObject, dtype: np.dtype[Any]) -> None:
    shape = data.draw(nst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
    value = np.ndarray(shape, dtype, bytes(range(256)) * (math.prod(shape) * dtype.itemsize // 256 + 1))
    value = data.draw(st.sampled_from([value, value.T, value[::-1] if shape else value]))
    try:
        header, pieces, _ = Codec().encode([value])
    except TypeError:
        assert has_no_place(dtype)
        return
    assert same(arrays.unpack(np.ndarray, Codec().decode(header, b"".join(pieces), VIEWS)[0]), value)


def has_no_place(dtype: np.dtype[Any]) -> bool:
    """Whether it has fields without bytes, or with titles."""
    fields = (dtype.base.fields or {}).values()
    return not dtype.itemsize or any(len(field) > 2 or has_no_place(field[0]) for field in fields)


class Integers(array.array):  # type: ignore[type-arg]
    """Likewise."""


async def test_scalars_arrive_as_numbers_and_times(serving: Serving) -> None:
    moment, day = np.datetime64("2024-01-02T03:04:05", "us"), np.datetime64("2024-01-02")
    values = [
        np.float32(0.5),
        np.int64(-1),
        np.bool_(True),
        np.str_("s"),
        np.bytes_(b"b"),
        moment,
        day,
        np.timedelta64(5, "s"),
    ]
    async with serving(Maths()) as (_, address), zcrpc.connect(address) as client:
        back = await client.call("Maths.anything", values)
        assert back == [0.5, -1, True, "s", b"b", moment.item().isoformat(), "2024-01-02", "PT5S"]


async def test_classes_of_arrays_can_be_registered(serving: Serving) -> None:
    def unit(values: np.ndarray) -> Unit:
        return values.view(Unit)

    with pytest.raises(TypeError, match="can be sent as it is"):
        zcrpc.register(np.ndarray, encode=list, decode=np.array)
    async with serving(Maths()) as (_, address), zcrpc.connect(address) as client:
        with pytest.raises(TypeError, match="Integers cannot be sent"):
            await client.call("Maths.anything", Integers("i"))
        zcrpc.register(Unit, encode=lambda value: value.view(np.ndarray), decode=unit)
        try:
            back = await client.call("Maths.echo", np.arange(3).view(Unit), returns=Unit)
            assert type(back) is Unit
            assert same(back, np.arange(3))
        finally:
            del conversion._registered[Unit]


# ---- memory


async def test_array_is_a_view_over_the_region_and_holds_its_lease(serving: Serving) -> None:
    service = Maths()
    async with serving(service, receive="copy") as (server, address), zcrpc.connect(address, Maths) as maths:
        sent = np.random.default_rng(3).random(MIB // 8)
        assert await maths.keep(sent) == MIB
        (part,) = service.kept
        gc.collect()
        assert server.regions.stats().leases == 1
        assert np.array_equal(part, sent[1:])
        assert not part.flags.owndata
        again = part[::2].reshape(-1, 1)
        service.kept.clear()
        del part
        gc.collect()
        assert server.regions.stats().leases == 1
        assert again[3, 0] == sent[7]
        del again
        await until(lambda: not server.regions.stats().leases)


async def test_array_in_an_error_holds_nothing(serving: Serving) -> None:
    async with serving(Maths()) as (server, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.InvalidArgument):
            await client.call("Maths.twice", np.zeros(MIB))
        await until(lambda: not server.regions.stats().leases)


def test_large_contiguous_arrays_are_sent_by_reference() -> None:
    value = np.zeros((1000, 100))
    _, pieces, length = Codec().encode([value])
    value[0, 0] = 1
    assert length == value.nbytes
    assert np.frombuffer(pieces[0], "f8")[0] == 1
    _, pieces, _ = Codec().encode([value.T])  # made contiguous once
    value[0, 0] = 2
    assert np.frombuffer(pieces[0], "f8")[0] == 1


def test_what_is_known_of_a_view_is_forgotten_with_it() -> None:
    header, pieces, _ = Codec().encode([np.zeros(10), np.zeros(20)])
    before = len(arrays._arrived)
    first, second = Codec().decode(header, b"".join(pieces), VIEWS)
    assert len(arrays._arrived) == before + 2
    ndarray = arrays.unpack(np.ndarray, first)
    del first, second
    assert ndarray.shape == (10,)
    assert len(arrays._arrived) == before


def test_more_than_two_gigabytes() -> None:
    """Of memory that is never touched."""
    size = (2 << 30) + 16
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as memory:
        value = np.frombuffer(memory, "f8").reshape(2, -1)
        header, pieces, length = Codec().encode([value])
        assert length == size
        payload = pieces[0]
        assert type(payload) is memoryview
        back = arrays.unpack(np.ndarray, Codec().decode(header, payload, VIEWS)[0])
        assert back.shape == value.shape
        assert np.shares_memory(back, value)
        del value, payload, pieces, back


# ---- what a peer can make up


def description(shape: tuple[int, ...], element: Any) -> bytes:
    return struct.pack(f"<B{len(shape)}Q", len(shape), *shape) + msgspec.msgpack.encode(element)


def arrive(described: bytes, payload: bytes, annotation: Any = np.ndarray) -> Any:
    header = msgspec.msgpack.encode([Ext(FROM_ARRAY, struct.pack("<QQ", 0, len(payload)) + described)])
    value = Codec().decode(header, payload, VIEWS)[0]
    found = converter("it", annotation)
    assert found is not None
    return found.convert(value)


HUGE = 1 << 62
DEEP: Any = "<f4"
for _ in range(9):
    DEEP = [["a", DEEP]]


@pytest.mark.parametrize(
    ("described", "payload"),
    [
        (description((3,), "<f4"), bytes(11)),
        (description((3,), "<f4"), bytes(13)),
        (description((), "<f4"), b""),
        (description((1 << 63,), "|u1"), b""),
        (description((2**64 - 1,), "|u1"), bytes(1)),
        (description((2**64 - 1, 0), "<f4"), b""),
        (description((HUGE, 4), "<f4"), bytes(16)),
        (description((HUGE, 4, 0), "<f8"), b""),
        (description((2**32, 2**32), "|u1"), b""),
        (description((1,) * 64 + (0,), "|u1")[:-1], b""),
        (description((2,), "O"), bytes(16)),
        (description((2,), "|O"), bytes(16)),
        (description((2,), "|O8"), bytes(16)),
        (description((2,), "<f16"), bytes(32)),
        (description((2,), "f4"), bytes(8)),
        (description((2,), "<f4,<f4"), bytes(16)),
        (description((2,), "(2,)<f4"), bytes(16)),
        (description((2,), "float32"), bytes(8)),
        (description((2,), "<f4\n"), bytes(8)),
        (description((2,), "|V0"), b""),
        (description((2,), "|S99999999999"), b""),
        (description((2,), "<U999999999"), b""),
        (description((2,), "<M8[xx]"), bytes(16)),
        (description((2,), 7), bytes(16)),
        (description((2,), None), bytes(16)),
        (description((2,), []), b""),
        (description((2,), {}), b""),
        (description((1,), [["a", "|O"]]), bytes(8)),
        (description((1,), [["a"]]), bytes(8)),
        (description((1,), [["a", "<f4"], ["a", "<f4"]]), bytes(8)),
        (description((1,), [[3, "<f8"]]), bytes(8)),
        (description((1,), ["<f8"]), bytes(8)),
        (description((1,), [["a", "<f4", [-2]]]), bytes(8)),
        (description((1,), [["a", "<f4", [0]]]), b""),
        (description((1,), [["a", "<f4", [2**31, 2**31]]]), bytes(8)),
        (description((1,), [["a", "<f4", [1] * 70]]), bytes(4)),
        (description((1,), [["a", "|V999999999"], ["b", "|V999999999"], ["c", "|V999999999"]]), bytes(8)),
        (description((1,), DEEP), bytes(4)),
        (description((1,), [[f"field {n}", "|u1"] for n in range(2000)]), bytes(2000)),
        (description((2,), "<f4")[:-1], bytes(8)),
        (description((2,), "<f4") + b"\x01", bytes(8)),
        (b"\x00\xc1", bytes(8)),
        (b"\x00" + b"\x91" * 20_000, bytes(8)),
        (b"\x00", bytes(8)),
        (b"", bytes(8)),
        (b"\x02" + bytes(15), bytes(8)),
        (b"\xff" + bytes(255 * 8 + 4), b""),
    ],
    ids=lambda value: repr(value)[:40] if value else "none",
)
def test_descriptions_that_lie_are_refused(described: bytes, payload: bytes) -> None:
    with pytest.raises((HeaderError, msgspec.ValidationError)):
        arrive(described, payload)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.tuples(st.lists(st.integers(0, 5), max_size=4), st.text(max_size=6)), st.binary())
def test_any_description_is_an_array_or_is_refused(described: Any, payload: bytes) -> None:
    if isinstance(described, tuple):
        described = description(tuple(described[0]), described[1])
    try:
        value = arrive(described, payload)
    except (HeaderError, msgspec.ValidationError):
        return
    assert value.nbytes == len(payload)
    assert not value.dtype.hasobject


@pytest.mark.parametrize("threads", [0, 1])
async def test_lying_description_fails_its_call_and_nothing_else(serving: Serving, threads: int) -> None:
    lies = [description((HUGE, 8), "<f8"), description((2,), "|O"), description((3,), "<f8"), b"", b"\x40"]
    async with serving(Maths(), receive_threads=threads) as (_, address), await RawPeer.greeted(address) as peer:
        for described in [*lies, description((2,), "<f8")]:
            array = Ext(FROM_ARRAY, struct.pack("<QQ", 0, 16) + described)
            peer.call("Maths.echo", array, payload=bytes(16))
            answer = await peer.frame()
            if described in lies:
                assert (answer.kind, answer.method) == (ERROR, zcrpc.Status.INVALID_ARGUMENT)
                assert "Maths.echo()" in answer.header[0]
        assert (answer.kind, answer.header) == (RESPONSE, [array])


async def test_lying_description_from_a_server_fails_the_call() -> None:
    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello(methods={"Maths.echo": 1}))
        await peer.read_hello()
        while request := await peer.frame(timeout=20):
            lie = Ext(FROM_ARRAY, struct.pack("<QQ", 0, 16) + description((HUGE,), "<f8"))
            peer.send(frame(RESPONSE, [lie], bytes(16), stream=request.stream))

    async with RawServer(behave) as address, zcrpc.connect(address, Maths) as maths:
        for _ in range(2):
            with pytest.raises(zcrpc.Internal, match="not as announced: An array of float64 with shape"):
                await maths.echo(np.zeros(1))


# ---- annotations


@pytest.mark.parametrize(
    ("annotation", "fits", "fits_not"),
    [
        (np.ndarray, ["f4", "i8", "M8[s]"], []),
        (npt.NDArray[Any], ["f4", "S3"], []),
        (npt.NDArray[T], ["f4"], []),  # type: ignore[valid-type]
        (npt.NDArray[np.float32], ["<f4", ">f4"], ["f8", "i4"]),
        (npt.NDArray[np.floating[Any]], ["f2", "f4", "f8"], ["i4", "c8"]),
        (npt.NDArray[np.integer], ["i1", "u8"], ["f4", "?"]),
        (npt.NDArray[np.longlong], ["i8"], ["i4", "u8"]),
        (npt.NDArray[np.bool_], ["?"], ["u1"]),
        (npt.NDArray[np.float32 | np.int16], ["f4", "i2"], ["f8"]),
        (npt.NDArray[Union[np.float32, np.int16]], ["f4", "i2"], ["f8"]),  # noqa: UP007
        (npt.NDArray[np.datetime64], ["M8[D]", "M8[ns]"], ["m8[s]"]),
        (npt.NDArray[np.void], [[("a", "i4")]], ["i4"]),
        (np.ndarray[Any, np.dtype[np.int8]], ["i1"], ["i2"]),
        (np.ndarray[Any, np.int8], ["i1"], ["i2"]),  # type: ignore[type-var]
        (np.ndarray[tuple[int], np.dtype[Any]], ["i1"], []),
        (np.ndarray[tuple[int, ...], np.dtype[np.int8]], ["i1"], ["i2"]),
        (np.ndarray[tuple[Literal[2]], np.dtype[np.int8]], ["i1"], ["i2"]),
    ],
    ids=str,
)
def test_elements_are_checked(annotation: Any, fits: list[Any], fits_not: list[Any]) -> None:
    def send(dtype: Any) -> Any:
        header, pieces, _ = Codec().encode([np.zeros(2, dtype)])
        found = converter("it", annotation)
        assert found is not None
        return found.convert(Codec().decode(header, b"".join(pieces), VIEWS)[0])

    for dtype in fits:
        assert send(dtype).dtype == np.dtype(dtype)
    for dtype in fits_not:
        with pytest.raises(msgspec.ValidationError, match="Expected `ndarray` of"):
            send(dtype)


def test_items_of_array_module_are_checked() -> None:
    of_floats = types.GenericAlias(array.array, (float,))  # array.array[float], from Python 3.12 on
    assert arrive(description((1,), "<f4"), bytes(4), of_floats) == array.array("f", [0])
    with pytest.raises(msgspec.ValidationError, match="elements of type"):
        arrive(description((1,), "<i4"), bytes(4), of_floats)


def test_dimensions_are_checked() -> None:
    square = description((2, 2), "|u1")
    assert arrive(square, bytes(4), np.ndarray[tuple[int, int], np.dtype[Any]]).shape == (2, 2)
    for wrong in (tuple[()], tuple[int], tuple[int, int, int]):
        with pytest.raises(msgspec.ValidationError, match="dimensions, got 2"):
            arrive(square, bytes(4), np.ndarray[wrong, np.dtype[Any]])  # type: ignore[valid-type]


@pytest.mark.parametrize("annotation", [np.ndarray | memoryview, np.ma.MaskedArray, np.matrix, np.float32])
def test_what_no_array_can_arrive_as(annotation: Any) -> None:
    with pytest.raises(TypeError, match="cannot arrive as"):
        converter("it", annotation)


def test_numpy_is_not_imported_by_zcrpc_nor_by_arrays_that_arrive() -> None:
    header, pieces, _ = Codec().encode([np.ones(3)])
    program = f"""
import array, sys, zcrpc
from zcrpc.codec import Codec
from zcrpc.conversion import converter
(view,) = Codec().decode({header!r}, {b"".join(pieces)!r})
assert len(view) == 24
assert converter("it", array.array).convert(view) == array.array("d", [1, 1, 1])
Codec().encode([array.array("f", [1])])
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)
