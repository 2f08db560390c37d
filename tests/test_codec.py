import array
import contextlib
import dataclasses
import datetime
import decimal
import enum
import tracemalloc
import uuid
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from zcrpc import codec
from zcrpc.codec import ALIGNMENT, COPY_BELOW, FROM_BUFFER, FROM_BYTES, INLINE_BELOW, Codec, HeaderError

SIZES = [0, 1, INLINE_BELOW - 1, INLINE_BELOW, 4096, COPY_BELOW - 1, COPY_BELOW, 100_001]


def reference(code: int, offset: int, length: int) -> Ext:
    return Ext(code, offset.to_bytes(8, "little") + length.to_bytes(8, "little"))


def round_trip(value: Any) -> Any:
    sender, receiver = Codec(), Codec()
    header, buffers, length = sender.encode(value)
    payload = b"".join(buffers)
    assert len(payload) == length
    return receiver.decode(header, payload)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from([bytes([n % 251]) * n for n in SIZES])
    | st.sampled_from(SIZES).map(lambda n: memoryview(bytes([n % 241]) * n))
    | st.sampled_from(SIZES).map(lambda n: bytearray(b"x" * n))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def arrived(value: Any) -> Any:
    """What D8 says that a value is on arrival."""
    if isinstance(value, (memoryview, bytearray)):
        return memoryview(bytes(value))
    if isinstance(value, list):
        return [arrived(item) for item in value]
    if isinstance(value, dict):
        return {key: arrived(item) for key, item in value.items()}
    return value


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list):
        return type(right) is list and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return type(right) is dict and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@given(values)
def test_types_and_bytes_arrive_as_sent(value: Any) -> None:
    assert same(round_trip(value), arrived(value))


@given(values)
def test_result_arrives_as_sent(value: Any) -> None:
    header, buffers, length = Codec().encode_result(value)
    payload = b"".join(buffers)
    assert len(payload) == length
    back = Codec().decode(header, payload)[0] if header else None
    assert same(back, arrived(value))


@given(values)
def test_views_settle_to_what_would_have_arrived(value: Any) -> None:
    receiver = Codec()
    header, buffers, _ = Codec().encode(value)
    assert same(receiver.settle(receiver.decode(header, b"".join(buffers), buffers=codec.REMEMBERED)), arrived(value))


@given(values)
def test_buffers_lie_aligned_and_in_order(value: Any) -> None:
    header, _, length = Codec().encode(value)
    end = 0

    def see(code: int, data: memoryview) -> None:
        nonlocal end
        offset, size = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
        assert offset == (end + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        end = offset + size

    msgspec.msgpack.Decoder(ext_hook=see).decode(header)
    assert end == length


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_any_header_decodes_or_is_refused(header: bytes, payload: bytes) -> None:
    receiver = Codec()
    try:
        value = receiver.decode(header, payload)
    except HeaderError:
        return
    with contextlib.suppress(ValueError, TypeError):
        Codec().encode(value)


@pytest.mark.parametrize("size", SIZES)
def test_size_never_decides_the_type(size: int) -> None:
    assert type(round_trip(b"x" * size)) is bytes
    for buffer in (bytearray(size), memoryview(bytes(size)), array.array("b", bytes(size)), np.zeros(size, "u1")):
        view = round_trip(buffer)
        assert type(view) is memoryview
        assert view.readonly
        assert (view.format, view.ndim) == ("B", 1)
        assert view.nbytes == size


def test_single_buffer_result_takes_the_short_cut_that_means_the_same() -> None:
    for value in (b"x" * 600, memoryview(b"y" * 10), memoryview(b"")):
        short = Codec().encode_result(value)
        long = Codec().encode([value])
        assert short[0] == long[0]
        assert [bytes(piece) for piece in short[1]] == [bytes(piece) for piece in long[1]]
        assert short[2] == long[2]


@pytest.mark.parametrize("buffers", [codec.BYTES, codec.VIEWS, codec.REMEMBERED])
@pytest.mark.parametrize("value", [b"x" * 600, b"x" * 40000, memoryview(b"y" * 10), memoryview(b"")], ids=len)
def test_single_buffer_call_takes_the_short_cut_that_means_the_same(value: Any, buffers: int) -> None:
    header, pieces, _ = Codec().encode([[value]])
    payload = b"".join(pieces)
    for form in (payload, memoryview(payload)):
        arguments, keywords, metadata = Codec().decode_call(header, form, buffers)
        assert keywords is metadata is None
        assert same(arguments, Codec().decode(header, form, buffers)[0])


def test_short_cut_does_not_take_what_is_not_the_whole_payload() -> None:
    header = msgspec.msgpack.encode([[reference(FROM_BUFFER, 0, 4)]])
    arguments, _, _ = Codec().decode_call(header, b"abcdef", codec.VIEWS)
    assert bytes(arguments[0]) == b"abcd"
    with pytest.raises(HeaderError):
        Codec().decode_call(header, b"abc", codec.VIEWS)
    with pytest.raises(HeaderError):
        Codec().decode_call(msgspec.msgpack.encode([[reference(9, 0, 6)]]), b"abcdef", codec.VIEWS)


@pytest.mark.parametrize("value", [None, 5, {}, [], [5], [{"a": 1}], [[], 5], [[], [1]], "x"])
def test_request_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(HeaderError):
        Codec().decode_call(msgspec.msgpack.encode(value), b"", codec.BYTES)


def test_elements_of_a_later_version_are_ignored() -> None:
    header = msgspec.msgpack.encode([[1], {"a": 2}, {"k": "v"}, "later"])
    assert Codec().decode_call(header, b"", codec.BYTES) == ([1], {"a": 2}, {"k": "v"})
    assert Codec().decode_call(msgspec.msgpack.encode([[1], None, None, 9]), b"", codec.BYTES) == ([1], None, None)


def test_large_buffers_are_referenced_and_small_ones_are_not() -> None:
    large, small = bytearray(COPY_BELOW), bytearray(COPY_BELOW - 1)
    _, buffers, _ = Codec().encode([large, small])
    large[0] = small[0] = 1
    assert bytes(buffers[0])[0] == 1
    assert bytes(buffers[-1])[0] == 0


def test_large_bytes_are_not_copied_on_the_way_out() -> None:
    value = bytes(1 << 20)
    _, buffers, _ = Codec().encode([value])
    assert buffers[0] is value


def test_buffers_of_any_shape_travel_as_their_bytes_in_c_order() -> None:
    matrix = np.arange(12000, dtype="<i4").reshape(100, 120)
    for buffer in (matrix, matrix[::2], matrix.T, np.asfortranarray(matrix), matrix[3, 4:5]):
        assert bytes(round_trip(buffer)) == buffer.tobytes()


def test_without_annotation_large_payload_of_bytes_is_copied_once_and_view_is_not() -> None:
    payload = memoryview(bytes(1 << 20))
    header, _, _ = Codec().encode([bytes(1 << 20)])
    assert type(Codec().decode(header, payload)[0]) is bytes
    view = Codec().decode(header, payload, codec.VIEWS)[0]
    assert type(view) is memoryview
    assert view.obj is payload.obj


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


@dataclasses.dataclass
class Plain:
    name: str
    data: Any
    extra: Any = None


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    name: str
    data: Any
    extra: Any = None

    def __post_init__(self) -> None:
        assert not isinstance(self.data, Ext)


class Record(msgspec.Struct, frozen=True):
    name: str
    data: Any
    extra: Any = None


class Pair(NamedTuple):
    name: str
    data: Any


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("kind", [Plain, Slotted, Record])
def test_buffers_in_records(kind: Any) -> None:
    big = b"z" * 5000
    value = kind("n", big, [memoryview(b"abc"), kind("inner", bytearray(b"x"))])
    back = round_trip(value)
    assert back == {
        "name": "n",
        "data": big,
        "extra": [memoryview(b"abc"), {"name": "inner", "data": memoryview(b"x"), "extra": None}],
    }
    assert value.data is big


def test_named_tuples_sets_subclasses_and_scalars() -> None:
    assert round_trip(Pair("a", b"b" * 600)) == ["a", b"b" * 600]
    assert round_trip({b"c" * 600}) == [b"c" * 600]
    assert round_trip(frozenset([1])) == [1]
    assert round_trip([Colour.RED, Level.HIGH, Text("t")]) == ["red", 2, "t"]
    assert round_trip([np.float64(1.5), np.int32(-3), np.bool_(True), np.uint8(200)]) == [1.5, -3, True, 200]
    assert type(round_trip(np.float32(0.5))) is float


def test_types_of_msgspec_travel_as_msgspec_has_them() -> None:
    moment = datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC)
    identity = uuid.uuid4()
    assert round_trip([moment, decimal.Decimal("1.50"), identity]) == [moment, "1.50", str(identity)]


def test_what_cannot_be_sent_is_a_type_error_that_names_it() -> None:
    class Opaque:
        pass

    with pytest.raises(TypeError, match="Opaque"):
        Codec().encode([Opaque()])
    with pytest.raises(TypeError, match="Opaque"):
        Codec().encode_result(Opaque())


def test_what_cannot_be_encoded_is_a_value_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested"):
        Codec().encode(loop)
    with pytest.raises(ValueError, match=r"."):
        Codec().encode([2**64])
    with pytest.raises(ValueError, match=r"."):
        Codec().encode_result(2**64)


def test_codec_goes_on_after_an_error() -> None:
    both = Codec()
    with pytest.raises(TypeError):
        both.encode([b"x" * 5000, object()])
    with pytest.raises(HeaderError):
        both.decode(b"\x91")
    header, buffers, length = both.encode([b"y" * 5000])
    assert length == 5000
    assert both.decode(header, b"".join(buffers)) == [b"y" * 5000]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\x01\x01",
        b"\xa1\xff",
        b"\xd7\xff" + b"\xff" * 8,
        b"\x81\x81\x01\x01\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x81\xdd\xff\xff\xff\xff",
        b"\x91" * 200_000,
        b"\x81\x01" * 100_000,
        b"\xdc\xff\xff" * 900,
        b"\xdc\x7f\xff" * 20_000 + b"\xc0" * 40_000,
        b"\xdd\x00\x00\xff\xff" * 12_000 + b"\xc0" * 65_536,
        b"\x81\xdc\x7f\xff" * 900 + b"\xc0" * 40_000,
    ],
)
def test_bombs_are_refused_without_allocating_what_they_claim(header: bytes) -> None:
    receiver = Codec()
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError):
            receiver.decode(header)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Each array may be allocated at the length that the rest of the input could hold, at each level of nesting that
    # Python allows.
    assert peak < 1000 * 8 * max(len(header), 1024)
    assert peak < 64 << 20
    assert receiver.decode(b"\x91\x01") == [1]


@pytest.mark.parametrize(
    ("references", "payload"),
    [
        ([(FROM_BYTES, 0, 11)], 10),
        ([(FROM_BUFFER, 11, 0)], 10),
        ([(FROM_BUFFER, 2**64 - 1, 2)], 10),
        ([(FROM_BUFFER, 0, 2**64 - 1)], 10),
        ([(FROM_BYTES, 0, 1)], 0),
        ([(FROM_BYTES, 0, 6), (FROM_BYTES, 5, 1)], 10),
        ([(FROM_BYTES, 5, 1), (FROM_BYTES, 0, 1)], 10),
        ([(FROM_BYTES, 0, 10)] * 2, 10),
        ([(3, 0, 1)], 10),
        ([(4, 0, 1)], 10),
        ([(-2, 0, 1)], 10),
    ],
)
def test_references_outside_the_payload_or_into_each_other_are_refused(
    references: list[tuple[int, int, int]], payload: int
) -> None:
    header = msgspec.msgpack.encode([reference(*each) for each in references])
    with pytest.raises(HeaderError):
        Codec().decode(header, bytes(payload))


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 15, b"x" * 17])
def test_reference_of_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(HeaderError):
        Codec().decode(msgspec.msgpack.encode([Ext(FROM_BYTES, data)]), b"x" * 100)


def test_claiming_the_same_bytes_often_does_not_multiply_them() -> None:
    header = msgspec.msgpack.encode([reference(FROM_BYTES, 0, 1 << 20)] * 3000)
    payload = bytes(1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError):
            Codec().decode(header, payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_codec_does_not_keep_the_payload() -> None:
    payload = bytearray(1000)
    both = Codec()
    view = memoryview(payload)
    both.decode(msgspec.msgpack.encode([reference(FROM_BUFFER, 0, 10)]), view)
    with pytest.raises(HeaderError):
        both.decode(msgspec.msgpack.encode([reference(FROM_BUFFER, 0, 10000)]), view)
    view.release()
    payload.append(1)  # BufferError if anybody still looked at it


def test_extension_codes_are_those_of_the_wire() -> None:
    assert (codec.FROM_BYTES, codec.FROM_BUFFER, codec.FROM_ARRAY) == (1, 2, 3)
