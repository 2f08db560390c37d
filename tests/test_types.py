"""Every type that a signature may have, through real sockets: as argument, as result, nested, asked for with
`returns=`, and what wrong values get."""

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pathlib
import uuid
from collections.abc import Iterator
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import msgspec
import pytest
from conftest import Serving
from raw_peer import ERROR, RawPeer

import zcrpc
from zcrpc import conversion

T = TypeVar("T")
BIG = bytes(range(256)) * 20


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    READ = "r"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    name: str
    data: bytes = b""
    children: tuple["Tree", ...] = ()


class Entry(msgspec.Struct, frozen=True):
    key: str
    value: memoryview
    tags: frozenset[str] = frozenset()


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str = "b"


class Renamed(msgspec.Struct, rename="camel"):
    first_name: str
    raw_data: bytes = b""


class Circle(msgspec.Struct, tag="circle"):
    radius: float


class Square(msgspec.Struct, tag="square"):
    side: float


class Checked(msgspec.Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Box(msgspec.Struct, Generic[T]):
    inside: T


class Pair(NamedTuple):
    name: str
    data: bytes


class Options(TypedDict):
    size: int
    name: NotRequired[str]


Id = NewType("Id", int)
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=8, pattern="^[a-z]+$")]

UTC = dt.UTC
IDENTITY = uuid.UUID("12345678-1234-5678-1234-567812345678")

# annotation, values that fit, values that do not and what their errors say
TYPES: list[tuple[Any, list[Any], list[tuple[Any, str]]]] = [
    (None, [None], [(1, "Expected `null`, got `int`")]),
    (bool, [True, False], [(1, "Expected `bool`, got `int`"), ("true", "Expected `bool`")]),
    (int, [0, -(2**63), 2**64 - 1], [(1.0, "Expected `int`, got `float`"), (True, "got `bool`"), ("1", "got `str`")]),
    (float, [1.5, float("inf")], [("1.5", "Expected `float`, got `str`")]),
    (str, ["", "ä" * 5000], [(b"x", "Expected `str`, got `bytes`"), (None, "Expected `str`")]),
    (bytes, [b"", b"x", BIG], [("text", "Expected `bytes`, got `str`"), ([1], "Expected `bytes`")]),
    (bytearray, [bytearray(b"x"), bytearray(BIG)], [("text", "Expected `bytes`")]),
    (memoryview, [memoryview(b"x"), memoryview(BIG)], [("text", "Expected `bytes`"), (1, "got `int`")]),
    (dt.datetime, [dt.datetime(2024, 5, 6, 7, 8, 9, 10, UTC), dt.datetime(2024, 5, 6)], [("soon", "RFC3339")]),
    (dt.date, [dt.date(2024, 2, 29)], [("2024-02-30", "ISO8601|date")]),
    (dt.time, [dt.time(1, 2, 3, 4), dt.time(5, tzinfo=UTC)], [("25:00", "RFC3339|time")]),
    (dt.timedelta, [dt.timedelta(days=-1, microseconds=1), dt.timedelta(0)], [("1 day", "duration")]),
    (decimal.Decimal, [decimal.Decimal("1.500"), decimal.Decimal("1e-30")], [("1,5", "decimal"), ([], "Expected")]),
    (uuid.UUID, [IDENTITY], [("1234", "Invalid UUID"), (5, "Expected `uuid`")]),
    (Colour, [Colour.RED], [("green", "Invalid enum value 'green'"), (1, "Expected `str`")]),
    (Level, [Level.HIGH], [(3, "Invalid enum value 3"), ("LOW", "Expected `int`")]),
    (Mode, [Mode.READ], [("w", "Invalid enum value 'w'")]),
    (Right, [Right.READ | Right.WRITE], [("READ", "Expected `int`"), (99, "Invalid enum value 99")]),
    (Literal["a", 1, None], ["a", 1, None], [("b", "Invalid enum value 'b'"), (2, "Invalid enum value 2")]),
    (Optional[int], [1, None], [("1", r"Expected `int \| null`")]),  # noqa: UP045
    (Union[int, str, None], [1, "1", None], [(1.5, r"Expected `int \| str \| null`, got `float`")]),  # noqa: UP007
    (int | list[str], [1, ["a"]], [([1], r"Expected `str`, got `int` - at `\$\[0\]`")]),
    (list[int], [[], [1, 2]], [([1, 2, "3"], r"Expected `int`, got `str` - at `\$\[2\]`"), ({}, "Expected `array`")]),
    (list[memoryview], [[memoryview(BIG), memoryview(b"")]], [([b"", 1], r"at `\$\[1\]`")]),
    (tuple[int, str], [(1, "a")], [([1], "Expected `array` of length 2"), ([1, 2], r"at `\$\[1\]`")]),
    (tuple[float, ...], [(), (1.5, 2.5)], [([None], r"at `\$\[0\]`")]),
    (set[str], [set(), {"a", "b"}], [([1], r"at `\$\[0\]`"), ("ab", "Expected `array`")]),
    (frozenset[int], [frozenset({1})], [(["1"], r"at `\$\[0\]`")]),
    (dict[str, int], [{}, {"a": 1}], [({"a": "1"}, r"at `\$\[\.\.\.\]`"), ({1: 1}, r"at `key` in"), ([], "object")]),
    (dict[int, list[bytes]], [{1: [b"x", BIG]}], [({1: [2]}, r"at `\$\[\.\.\.\]\[0\]`")]),
    (dict[uuid.UUID, Colour], [{IDENTITY: Colour.BLUE}], [({"x": "red"}, "Invalid UUID")]),
    (dict[Colour, dt.date], [{Colour.RED: dt.date(2024, 1, 1)}], [({"green": "2024-01-01"}, "Invalid enum")]),
    (Point, [Point(1), Point(2, 3.5)], [({"x": "1"}, r"Expected `int`, got `str` - at `\$\.x`"), ({}, "field `x`")]),
    (Tree, [Tree("a", BIG, (Tree("b", b"x"), Tree("c")))], [({"name": "a", "children": [{}]}, r"at `\$\.children")]),
    (Entry, [Entry("k", memoryview(BIG), frozenset({"t"}))], [({"key": "k", "value": "v"}, r"at `\$\.value`")]),
    (Strict, [Strict(1)], [({"a": 1, "b": 2}, "unknown field `b`")]),
    (Row, [Row(1, "x")], [([], "Expected `array` of at least length 1"), (["1"], r"at `\$\[0\]`")]),
    (Renamed, [Renamed("n", BIG)], [({"first_name": "n"}, "field `firstName`")]),
    (Circle | Square, [Circle(1.5), Square(2.5)], [({"type": "line"}, "Invalid value 'line'"), ({}, "`type`")]),
    (Checked, [Checked(1, 2)], [({"low": 2, "high": 1}, "low is above high")]),
    (Box[int], [Box(1)], [({"inside": "1"}, r"Expected `int`, got `str` - at `\$\.inside`")]),
    (list[Box[Point | None]], [[Box(Point(1)), Box(None)]], [([{"inside": {"x": ""}}], r"at `\$\[0\]\.inside\.x`")]),
    (Pair, [Pair("n", BIG)], [(["n"], "length 2"), (["n", 1], r"at `\$\[1\]`")]),
    (Options, [{"size": 1}, {"size": 2, "name": "n"}], [({"name": "n"}, "field `size`"), ({"size": ""}, r"\$\.size")]),
    (Id, [Id(5)], [("5", "Expected `int`")]),
    (Port, [1, 65535], [(0, "Expected `int` >= 1"), (65536, "<= 65535")]),
    (list[Name], [["a", "abcdefgh"]], [([""], r"length >= 1 - at `\$\[0\]`"), (["A"], "regex"), (["a" * 9], "<= 8")]),
    (Annotated[list[int], msgspec.Meta(max_length=2)], [[1, 2]], [([1, 2, 3], "length <= 2")]),
    (zcrpc.Buffer, [memoryview(b""), memoryview(BIG)], [("text", "Expected `bytes`, got `str`"), ([1], "got `list`")]),
    (array.array, [array.array("d", [1.5]), array.array("h", [])], [([1], "Expected `array`, got `list`")]),
]


def made(annotation: Any) -> type[zcrpc.Service]:
    """A service with one type for everything."""

    class Typed(zcrpc.Service):
        @zcrpc.method
        async def echo(self, value: annotation) -> annotation:
            return value

        @zcrpc.method
        async def nested(self, *, values: dict[str, list[annotation]]) -> tuple[annotation, ...]:
            return tuple(each for some in values.values() for each in some)

        @zcrpc.method
        async def untyped(self, value: Any) -> Any:
            return value

        @zcrpc.method
        async def lie(self, value: Any) -> annotation:
            return value

    return Typed


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right


@pytest.fixture(params=TYPES, ids=lambda case: str(case[0]))
def case(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_values_come_back_as_they_went(serving: Serving, case: Any) -> None:
    annotation, values, _ = case
    typed = made(annotation)
    async with serving(typed()) as (_, address), zcrpc.connect(address, typed) as remote:
        client: zcrpc.Client = remote.client  # type: ignore[attr-defined]
        for value in values:
            assert same(await remote.echo(value), value)  # type: ignore[attr-defined]
            assert same(await client.call("Typed.echo", value=value, returns=annotation), value)
            if annotation is not array.array:  # without annotation, an array becomes its bytes
                (back,) = await client.call("Typed.untyped", [value], returns=list[annotation])  # type: ignore[valid-type]
                assert same(back, value)
        back = await remote.nested(values={"a": values, "b": values[:1]})  # type: ignore[attr-defined]
        assert [*map(type, back)] == [*map(type, (*values, values[0]))]
        assert [*back] == [*values, values[0]]


async def test_wrong_values_are_named_with_their_path(serving: Serving, case: Any) -> None:
    annotation, values, wrong = case
    typed = made(annotation)
    async with serving(typed()) as (server, address), zcrpc.connect(address, typed) as remote:
        client: zcrpc.Client = remote.client  # type: ignore[attr-defined]
        for value, says in wrong:
            with pytest.raises(zcrpc.InvalidArgument, match=rf"^Typed\.echo\(\): 'value': .*{says}"):
                await client.call("Typed.echo", value)
            with pytest.raises(zcrpc.InvalidArgument, match=r"^Typed\.nested\(\): 'values': .*`\$\[\.\.\.\]\[0\]"):
                await client.call("Typed.nested", values={"k": [value]})
            with pytest.raises(zcrpc.Internal, match=rf"Typed\.lie\(\) is not as announced: .*{says}"):
                await remote.lie(value)  # type: ignore[attr-defined]
            with pytest.raises(zcrpc.Internal, match="not as announced"):
                await client.call("Typed.untyped", value, returns=annotation or type(None))
        assert same(await remote.echo(values[0]), values[0])  # type: ignore[attr-defined]
        assert server.stats().errors == 2 * len(wrong)


async def test_wrong_values_by_hand_are_an_error_with_the_status(serving: Serving) -> None:
    async with serving(made(list[Point])()) as (_, address), await RawPeer.greeted(address) as peer:
        peer.call("Typed.echo", [{"x": 1}, {"x": 1, "y": None}])
        answer = await peer.frame()
        assert (answer.kind, answer.method) == (ERROR, zcrpc.Status.INVALID_ARGUMENT)
        assert answer.header == ["Typed.echo(): 'value': Expected `float`, got `null` - at `$[1].y`"]


@pytest.mark.parametrize(
    ("sent", "annotation", "arrives"),
    [
        (1, float, 1.0),
        (1, decimal.Decimal, decimal.Decimal(1)),
        ((1, 2), list[int], [1, 2]),
        ([1, 1], set[int], {1}),
        ({"x": 1, "later": 2}, Point, Point(1)),
        (Point(1), dict[str, float], {"x": 1.0, "y": 0.5}),
        (Point(1), Box[int] | None, None),
        (Level.HIGH, int, 2),
        (IDENTITY, str, str(IDENTITY)),
        ("2024-01-02", dt.date, dt.date(2024, 1, 2)),
        (collections.OrderedDict(a=1), dict[str, int], {"a": 1}),
        (range, None, None),
    ],
)
async def test_what_fits_another_type_is_taken(serving: Serving, sent: Any, annotation: Any, arrives: Any) -> None:
    typed = made(annotation)
    async with serving(typed()) as (_, address), zcrpc.connect(address) as client:
        if arrives is None:
            with pytest.raises((zcrpc.InvalidArgument, TypeError)):
                await client.call("Typed.echo", sent)
        else:
            assert same(await client.call("Typed.echo", sent, returns=annotation), arrives)


async def test_attrs(serving: Serving) -> None:
    attrs = pytest.importorskip("attrs")
    kind = attrs.make_class("Kind", {"x": attrs.field(type=int), "data": attrs.field(type=bytes, default=b"")})
    async with serving(made(kind)()) as (_, address), zcrpc.connect(address) as client:
        assert await client.call("Typed.echo", kind(1, BIG), returns=kind) == kind(1, BIG)
        with pytest.raises(zcrpc.InvalidArgument, match=r"'value': Expected `int`, got `str` - at `\$\.x`"):
            await client.call("Typed.echo", {"x": "1"})


@pytest.mark.parametrize("kind", [zcrpc.Buffer, zcrpc.Buffer | None, "typing_extensions"], ids=str)
@pytest.mark.parametrize("sent", [b"", BIG, bytearray(BIG), array.array("b", BIG[:100])], ids=len)
async def test_any_buffer_arrives_as_a_view(serving: Serving, kind: Any, sent: Any) -> None:
    if kind == "typing_extensions":
        kind = pytest.importorskip(kind).Buffer
    async with serving(made(kind)()) as (_, address), zcrpc.connect(address) as client:
        back = await client.call("Typed.echo", sent, returns=kind)
        assert type(back) is memoryview
        assert back.readonly
        assert back == memoryview(sent).cast("B")


# ---- classes of the user's


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees


class Boiling(Celsius):
    def __init__(self) -> None:
        super().__init__(100)


class Blob:
    def __init__(self, name: str, data: Any) -> None:
        self.name = name
        self.data = data


class Unregistered: ...


def celsius(degrees: float) -> Celsius:
    if degrees < -273.15:
        raise ValueError("colder than cold")
    return Celsius(degrees)


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(conversion._registered)
    zcrpc.register(Celsius, encode=lambda value: value.degrees, decode=celsius)
    zcrpc.register(Blob, encode=lambda blob: [blob.name, blob.data], decode=lambda parts: Blob(*parts))
    zcrpc.register(pathlib.Path, encode=str, decode=pathlib.Path)
    zcrpc.register(fractions.Fraction, encode=str, decode=fractions.Fraction)
    yield
    conversion._registered.clear()
    conversion._registered.update(before)


@dataclasses.dataclass
class Weather:
    now: Celsius
    record: dict[str, Celsius] = dataclasses.field(default_factory=dict)


@pytest.mark.usefixtures("registered")
async def test_registered_classes_travel_anywhere(serving: Serving) -> None:
    typed = made(Weather | None)
    weather = Weather(Celsius(5), {"a": Celsius(-3)})
    async with serving(typed()) as (_, address):
        async with zcrpc.connect(address) as client:
            assert await client.call("Typed.echo", weather, returns=Weather) == weather
            assert await client.call("Typed.untyped", Celsius(3), returns=Celsius) == Celsius(3)
            assert await client.call("Typed.untyped", Boiling(), returns=Celsius) == Celsius(100)
            assert await client.call("Typed.untyped", [Celsius(3)]) == [3]
            where = pathlib.Path("/usr/share")
            assert await client.call("Typed.untyped", [where], returns=list[pathlib.Path]) == [where]
            third = fractions.Fraction(1, 3)
            assert await client.call("Typed.untyped", third, returns=fractions.Fraction) == third


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("data", [b"x", BIG, memoryview(BIG)], ids=["small", "large", "view"])
async def test_buffers_in_registered_classes(serving: Serving, data: Any) -> None:
    """Without annotation of `decode` they arrive as they were sent; with one, as that says."""
    async with serving(made(Blob)()) as (_, address), zcrpc.connect(address) as client:
        back = await client.call("Typed.echo", Blob("n", data), returns=Blob)
        assert same(back.data, data)

    def of_view(parts: tuple[str, memoryview]) -> Blob:
        return Blob(*parts)

    zcrpc.register(Blob, encode=lambda blob: [blob.name, blob.data], decode=of_view)
    async with serving(made(Blob)()) as (_, address), zcrpc.connect(address) as client:
        back = await client.call("Typed.echo", Blob("n", data), returns=Blob)
        assert same(back.data, memoryview(data))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Celsius, "warm", "Expected `float`, got `str`"),
        (Celsius, -300.0, "colder than cold"),
        (dict[str, list[Celsius]], {"a": [0.5, -300.0]}, r"colder than cold - at `\$\[\.\.\.\]\[1\]`"),
        (Weather, {"now": None}, r"Expected `float`, got `null` - at `\$\.now`"),
        (pathlib.Path, 5, "not 'int'|not int"),
        (fractions.Fraction, "1/x", "Invalid literal"),
    ],
)
async def test_wrong_values_of_registered_classes(serving: Serving, annotation: Any, value: Any, says: str) -> None:
    async with serving(made(annotation)()) as (_, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.InvalidArgument, match=rf"^Typed\.echo\(\): 'value': .*{says}"):
            await client.call("Typed.echo", value)


async def test_class_can_be_registered_after_it_could_not_be_sent(serving: Serving, registered: None) -> None:
    async with serving(made(int)()) as (_, address), zcrpc.connect(address) as client:
        with pytest.raises(TypeError, match="Unregistered"):
            await client.call("Typed.untyped", Unregistered())
        zcrpc.register(Unregistered, encode=lambda _: 5, decode=lambda _: Unregistered())
        assert await client.call("Typed.untyped", Unregistered()) == 5
        zcrpc.register(Unregistered, encode=lambda _: 6, decode=lambda _: Unregistered())
        assert await client.call("Typed.untyped", Unregistered()) == 6


def of_nowhere(value: "Nowhere") -> Celsius: ...  # type: ignore[name-defined,empty-body] # noqa: F821
def of_slice(value: slice) -> Celsius: ...  # type: ignore[empty-body]
def of_nothing() -> Celsius: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("kind", [int, str, list, dict, bytes, memoryview, Point, Entry, Colour, Pair, array.array])
def test_what_can_be_sent_is_not_registered(kind: Any) -> None:
    with pytest.raises(TypeError, match="can be sent as it is"):
        zcrpc.register(kind, encode=str, decode=str)


@pytest.mark.parametrize("decode", [of_nowhere, of_slice, of_nothing])
def test_decode_that_cannot_be_called(decode: Any) -> None:
    with pytest.raises(TypeError, match="what Celsius is made of"):
        zcrpc.register(Celsius, encode=str, decode=decode)
    with pytest.raises(TypeError, match="is for classes"):
        zcrpc.register(list[int], encode=str, decode=decode)


@pytest.mark.parametrize(
    "annotation",
    [complex, Unregistered, list[Unregistered], slice, Point | Entry, list[int] | set[str], memoryview | array.array],
)
def test_annotations_that_nothing_can_satisfy_are_refused_at_once(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"Typed\.echo\(\): 'value': cannot arrive as"):
        zcrpc.Server(made(annotation)())
