"""A service that has changed: old clients at the new server and new clients at the old one, through real sockets.

What docs/evolution.md calls safe works in both directions here; what it calls unsafe fails here, with the status that
it says."""

import dataclasses
import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
import pytest
from conftest import Serving

import zcrpc


class OldKind(enum.Enum):
    FILE = "file"
    GONE = "gone"


class NewKind(enum.Enum):
    FILE = "file"
    LINK = "link"


@dataclasses.dataclass
class OldEntry:
    key: str
    size: int
    colour: str = "red"


@dataclasses.dataclass
class NewEntry:
    key: str
    size: int
    tags: list[str] = dataclasses.field(default_factory=list)


class OldRow(msgspec.Struct, array_like=True):
    a: int


class NewRow(msgspec.Struct, array_like=True):
    a: int
    b: str = "b"


class OldPair(NamedTuple):
    a: int


class NewPair(NamedTuple):
    a: int
    b: int = 7


class OldMap(TypedDict):
    a: int


class NewMap(TypedDict):
    a: int
    b: NotRequired[int]


class OldClosed(msgspec.Struct, forbid_unknown_fields=True):
    a: int


class NewClosed(msgspec.Struct, forbid_unknown_fields=True):
    a: int
    b: int = 0


class Circle(msgspec.Struct, tag="circle"):
    radius: int


class Square(msgspec.Struct, tag="square"):
    side: int


class Named(msgspec.Struct):
    name: str


class RenamedField(msgspec.Struct):
    title: str = msgspec.field(name="name")


class Old(zcrpc.Service, name="Store"):
    @zcrpc.method
    async def put(self, key: str, value: bytes) -> str:
        return f"{key} {value!r}"

    @zcrpc.method
    async def entry(self, entry: OldEntry) -> OldEntry:
        return entry

    @zcrpc.method
    async def row(self, row: OldRow) -> OldRow:
        return row

    @zcrpc.method
    async def pair(self, pair: OldPair) -> OldPair:
        return pair

    @zcrpc.method
    async def mapping(self, mapping: OldMap) -> OldMap:
        return mapping

    @zcrpc.method
    async def closed(self, closed: OldClosed) -> OldClosed:
        return closed

    @zcrpc.method
    async def kind(self, kind: OldKind) -> OldKind:
        return kind

    @zcrpc.method
    async def shape(self, shape: Circle) -> Circle:
        return shape

    @zcrpc.method
    async def named(self, named: Named) -> Named:
        return named

    @zcrpc.method
    async def widened(self, value: int) -> int:
        return value

    @zcrpc.method
    async def loosened(self, value: int) -> int | None:
        return value

    @zcrpc.method
    async def maybe(self, value: int) -> int:
        return value

    @zcrpc.method
    async def half(self, value: int) -> int:
        return value // 2

    @zcrpc.method
    async def data(self, data: bytes) -> bytes:
        return data

    @zcrpc.method
    async def old_name(self) -> str:
        return "old"

    @zcrpc.method
    async def removed(self) -> str:
        return "still there"

    @zcrpc.method
    async def parameter(self, before: int, dropped: int = 0) -> int:
        return before

    @zcrpc.method
    async def unnamed(self, before: int, /) -> int:
        return before

    @zcrpc.method
    async def plain(self, a: int) -> int:
        return a


class New(zcrpc.Service, name="Store"):
    @zcrpc.method
    async def put(self, key: str, value: bytes, copies: int = 1, *, compress: bool = False) -> str:
        return f"{key} {value!r} {copies} {compress}"

    @zcrpc.method
    async def entry(self, entry: NewEntry) -> NewEntry:
        return entry

    @zcrpc.method
    async def row(self, row: NewRow) -> NewRow:
        return row

    @zcrpc.method
    async def pair(self, pair: NewPair) -> NewPair:
        return pair

    @zcrpc.method
    async def mapping(self, mapping: NewMap) -> NewMap:
        return mapping

    @zcrpc.method
    async def closed(self, closed: NewClosed) -> NewClosed:
        return closed

    @zcrpc.method
    async def kind(self, kind: NewKind) -> NewKind:
        return kind

    @zcrpc.method
    async def shape(self, shape: Circle | Square) -> Circle | Square:
        return shape

    @zcrpc.method
    async def named(self, named: RenamedField) -> RenamedField:
        return named

    @zcrpc.method
    async def widened(self, value: float | str | None = None) -> int:
        return 5 if value is None else int(value)

    @zcrpc.method
    async def loosened(self, value: int) -> int:
        return value

    @zcrpc.method
    async def maybe(self, value: int) -> int | None:
        return value or None

    @zcrpc.method
    async def half(self, value: int) -> float:
        return value / 2

    @zcrpc.method
    async def data(self, data: memoryview) -> np.ndarray:
        return np.frombuffer(data, "u1")

    @zcrpc.method(name="old_name")
    async def new_name(self) -> str:
        return "new"

    @zcrpc.method
    async def added(self) -> str:
        return "added"

    @zcrpc.method
    async def parameter(self, after: int) -> int:
        return after

    @zcrpc.method
    async def unnamed(self, after: int, /) -> int:
        return after

    @zcrpc.method
    def plain(self, a: int) -> int:
        return a


@pytest.fixture
def old_at_new(serving: Serving) -> Any:
    @asynccontextmanager
    async def open_() -> AsyncIterator[Old]:
        async with serving(New()) as (_, address), zcrpc.connect(address, Old) as store:
            yield store

    return open_


@pytest.fixture
def new_at_old(serving: Serving) -> Any:
    @asynccontextmanager
    async def open_() -> AsyncIterator[New]:
        async with serving(Old()) as (_, address), zcrpc.connect(address, New) as store:
            yield store

    return open_


async def test_methods(old_at_new: Any, new_at_old: Any) -> None:
    async with old_at_new() as store:
        assert await store.old_name() == "new"
        assert await store.plain(3) == 3
        with pytest.raises(zcrpc.Unimplemented, match=r"Store\.removed"):
            await store.removed()
    async with new_at_old() as store:
        assert await store.new_name() == "old"
        assert await store.plain(3) == 3
        with pytest.raises(zcrpc.Unimplemented, match=r"Store\.added"):
            await store.added()


async def test_parameters(old_at_new: Any, new_at_old: Any) -> None:
    async with old_at_new() as store:
        assert await store.put("k", b"v") == "k b'v' 1 False"
        assert await store.put(value=b"v", key="k") == "k b'v' 1 False"
        assert await store.parameter(1) == await store.unnamed(1) == 1
        with pytest.raises(zcrpc.InvalidArgument, match="takes 1 positional"):
            await store.parameter(1, 2)
        with pytest.raises(zcrpc.InvalidArgument, match="no parameter 'before'"):
            await store.parameter(before=1)
    async with new_at_old() as store:
        assert await store.put("k", b"v") == "k b'v'"
        with pytest.raises(zcrpc.InvalidArgument, match="takes 2 positional arguments, got 3"):
            await store.put("k", b"v", 2)
        with pytest.raises(zcrpc.InvalidArgument, match="no parameter 'compress'"):
            await store.put("k", b"v", compress=True)
        assert await store.parameter(1) == await store.unnamed(1) == 1


async def test_fields(old_at_new: Any, new_at_old: Any) -> None:
    async with old_at_new() as store:
        assert await store.entry(OldEntry("k", 1, "blue")) == OldEntry("k", 1)
        assert await store.row(OldRow(1)) == OldRow(1)
        assert await store.mapping({"a": 1}) == {"a": 1}
        assert await store.named(Named("n")) == Named("n")
    async with new_at_old() as store:
        assert await store.entry(NewEntry("k", 1, ["t"])) == NewEntry("k", 1)
        assert await store.row(NewRow(1, "x")) == NewRow(1)
        assert await store.mapping({"a": 1, "b": 2}) == {"a": 1}
        assert await store.named(RenamedField("n")) == RenamedField("n")


async def test_records_that_are_closed(old_at_new: Any, new_at_old: Any) -> None:
    async with old_at_new() as store:
        with pytest.raises(zcrpc.Internal, match="unknown field `b`"):
            await store.closed(OldClosed(1))
        with pytest.raises(zcrpc.Internal, match="length 1"):
            await store.pair(OldPair(1))
    async with new_at_old() as store:
        with pytest.raises(zcrpc.InvalidArgument, match="unknown field `b`"):
            await store.closed(NewClosed(1))
        with pytest.raises(zcrpc.InvalidArgument, match="length 1"):
            await store.pair(NewPair(1))


async def test_values_that_the_other_side_does_not_know(old_at_new: Any, new_at_old: Any) -> None:
    async with old_at_new() as store:
        assert await store.kind(OldKind.FILE) is OldKind.FILE
        with pytest.raises(zcrpc.InvalidArgument, match="Invalid enum value 'gone'"):
            await store.kind(OldKind.GONE)
        assert await store.shape(Circle(1)) == Circle(1)
    async with new_at_old() as store:
        assert await store.kind(NewKind.FILE) is NewKind.FILE
        with pytest.raises(zcrpc.InvalidArgument, match="Invalid enum value 'link'"):
            await store.kind(NewKind.LINK)
        assert await store.shape(Circle(1)) == Circle(1)
        with pytest.raises(zcrpc.InvalidArgument, match="Invalid value 'square'"):
            await store.shape(Square(1))


async def test_types(old_at_new: Any, new_at_old: Any) -> None:
    async with old_at_new() as store:
        assert await store.widened(3) == 3
        assert await store.loosened(3) == 3
        assert await store.maybe(3) == 3
        with pytest.raises(zcrpc.Internal, match="not as announced: Expected `int`, got `null`"):
            await store.maybe(0)
        with pytest.raises(zcrpc.Internal, match="not as announced: Expected `int`, got `float`"):
            await store.half(3)
    async with new_at_old() as store:
        assert await store.widened(3) == 3
        for wrong in (3.5, "3", None):
            with pytest.raises(zcrpc.InvalidArgument, match="'value': Expected `int`"):
                await store.widened(wrong)
        assert await store.loosened(3) == 3
        half = await store.half(3)
        assert (type(half), half) == (float, 1)


@pytest.mark.parametrize("size", [0, 100, 5000, 100_000])
async def test_how_buffers_are_taken_is_a_matter_of_each_side(old_at_new: Any, new_at_old: Any, size: int) -> None:
    async with old_at_new() as store:
        back = await store.data(b"x" * size)
        assert (type(back), back) == (bytes, b"x" * size)
    async with new_at_old() as store:
        array = await store.data(np.ones(size, "u1"))
        assert (type(array), array.shape, array.dtype) == (np.ndarray, (size,), np.uint8)
        del array
