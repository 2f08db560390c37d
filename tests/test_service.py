import dataclasses
import datetime
import enum
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Optional

import msgspec
import numpy as np
import pytest

import zcrpc
from zcrpc.codec import BYTES, REMEMBERED, VIEWS, Codec
from zcrpc.service import plans


def call(service: zcrpc.Service, attribute: str, *arguments: Any, **keywords: Any) -> Any:
    """A call as it arrives: encoded, decoded as the plan wants it, bound."""
    plan = plans(type(service))[attribute]
    codec = Codec()
    header, pieces, _ = Codec().encode([arguments, keywords] if keywords else [arguments])
    positional, named, _ = codec.decode_call(header, b"".join(pieces), plan.buffers)
    function = getattr(service, attribute)
    if named is None:
        return function(*plan.bind(positional, codec))
    positional, named = plan.bind_named(positional, named, codec)
    return function(*positional, **named)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass
class Blob:
    name: str
    data: memoryview
    children: list["Blob"] = dataclasses.field(default_factory=list)


class Everything(zcrpc.Service):
    @zcrpc.method
    def untyped(self, a, b=2):  # type: ignore[no-untyped-def]
        return a, b

    @zcrpc.method
    def typed(self, number: int, text: str = "t", *, flag: bool = False) -> tuple[int, str, bool]:
        return number, text, flag

    @zcrpc.method
    def required(self, *, must: int) -> int:
        return must

    @zcrpc.method
    def positional(self, a: int, timeout: int = 3, /) -> int:
        return a + timeout

    @zcrpc.method
    def rest(self, first: int, *others: int, **named: str) -> tuple[int, tuple[int, ...], dict[str, str]]:
        return first, others, named

    @zcrpc.method
    def rich(
        self,
        point: Point,
        colour: Colour = Colour.RED,
        when: datetime.datetime | None = None,
        table: dict[str, list[Point]] | None = None,
        size: Annotated[int, msgspec.Meta(ge=1)] = 1,
        mode: Literal["r", "w"] = "r",
    ) -> Any:
        return point, colour, when, table, size, mode

    @zcrpc.method
    def as_bytes(self, value: bytes) -> bytes:
        return value

    @zcrpc.method
    def as_view(self, value: memoryview) -> memoryview:
        return value

    @zcrpc.method
    def mixed(self, anything, value: memoryview, also: Any = None):  # type: ignore[no-untyped-def]
        return anything, value, also

    @zcrpc.method
    def nested(self, blobs: dict[str, Blob]) -> dict[str, Blob]:
        return blobs

    @zcrpc.method(name="other")
    def renamed(self) -> None: ...

    def hidden(self) -> None: ...


service = Everything()
BIG = b"b" * 5000


def test_names() -> None:
    found = plans(Everything)
    assert "hidden" not in found
    assert found["renamed"].name == "Everything.other"
    assert found["typed"].name == "Everything.typed"


def test_service_may_have_another_name_and_methods_are_inherited() -> None:
    class Base(zcrpc.Service):
        @zcrpc.method
        def a(self) -> int:
            return 1

        @zcrpc.method
        def b(self) -> int:
            return 1

    class Derived(Base, name="kv"):
        def b(self) -> int:  # overridden without decorator
            return 2

    assert sorted(plan.name for plan in plans(Derived).values()) == ["kv.a", "kv.b"]
    assert sorted(plan.name for plan in plans(Base).values()) == ["Base.a", "Base.b"]
    assert call(Derived(), "b") == 2


def test_arguments_are_bound_as_python_would() -> None:
    assert call(service, "untyped", 1) == (1, 2)
    assert call(service, "untyped", 1, b=[3]) == (1, [3])
    assert call(service, "untyped", b=1, a=0) == (0, 1)
    assert call(service, "typed", 1) == (1, "t", False)
    assert call(service, "typed", 1, "x", flag=True) == (1, "x", True)
    assert call(service, "typed", number=1, text="x") == (1, "x", False)
    assert call(service, "required", must=4) == 4
    assert call(service, "positional", 1) == 4
    assert call(service, "positional", 1, 1) == 2
    assert call(service, "rest", 1) == (1, (), {})
    assert call(service, "rest", 1, 2, 3, a="b") == (1, (2, 3), {"a": "b"})


@pytest.mark.parametrize(
    ("attribute", "arguments", "keywords", "says"),
    [
        ("untyped", (), {}, "misses 'a'"),
        ("untyped", (1, 2, 3), {}, "takes 2 positional arguments, got 3"),
        ("untyped", (1,), {"a": 1}, "'a' twice"),
        ("untyped", (1,), {"c": 1}, "no parameter 'c'"),
        ("untyped", (), {"b": 1}, "misses 'a'"),
        ("untyped", (1, 2, 3), {"b": 1}, "twice"),
        ("typed", ("1",), {}, "'number'.*Expected `int`, got `str`"),
        ("typed", (True,), {}, "'number'.*Expected `int`"),
        ("typed", (1, 2), {}, "'text'"),
        ("typed", (1,), {"flag": 1}, "'flag'"),
        ("typed", (1, "x", True), {}, "takes 2"),
        ("required", (), {}, "misses 'must'"),
        ("required", (1,), {}, "takes 0"),
        ("required", (), {"must": "x"}, "'must'"),
        ("positional", (), {"a": 1}, "no parameter 'a'"),
        ("rest", (), {}, "misses 'first'"),
        ("rest", (1, 2, "3"), {}, "'others'"),
        ("rest", (1,), {"x": 2}, "'named'|'x'"),
        ("rich", ({"x": "1"},), {}, r"'point'.*\$\.x"),
        ("rich", ({"x": 1}, "blue"), {}, "'colour'"),
        ("rich", ({"x": 1},), {"table": {"k": [{"x": 1}, {}]}}, r"'table'.*`x`.*\[1\]"),
        ("rich", ({"x": 1},), {"size": 0}, "'size'"),
        ("rich", ({"x": 1},), {"mode": "x"}, "'mode'"),
        ("as_view", ("text",), {}, "'value'"),
        ("as_bytes", (1,), {}, "'value'"),
    ],
)
def test_wrong_arguments_are_named(attribute: str, arguments: Any, keywords: Any, says: str) -> None:
    with pytest.raises(zcrpc.InvalidArgument, match=says) as caught:
        call(service, attribute, *arguments, **keywords)
    assert f"Everything.{attribute}()" in caught.value.message


def test_rich_types_are_converted() -> None:
    moment = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    result = call(service, "rich", Point(1, 2), Colour.RED, moment, {"k": [Point(3)]}, size=7, mode="w")
    assert result == (Point(1, 2), Colour.RED, moment, {"k": [Point(3, 0)]}, 7, "w")


@pytest.mark.parametrize("size", [0, 10, 5000, 100_000])
@pytest.mark.parametrize("sent", [bytes, bytearray, lambda n: memoryview(bytes(n)), lambda n: np.zeros(n, "u1")])
def test_annotation_decides_what_arrives_size_and_sender_do_not(size: int, sent: Any) -> None:
    value = sent(size)
    copy = call(service, "as_bytes", value)
    assert type(copy) is bytes
    assert len(copy) == size
    view = call(service, "as_view", value)
    assert type(view) is memoryview
    assert view.readonly
    assert len(view) == size


def test_parameters_without_annotation_stay_what_they_were_next_to_annotated_ones() -> None:
    anything, value, also = call(service, "mixed", [BIG, {"k": memoryview(BIG)}], BIG, BIG)
    assert anything == [BIG, {"k": memoryview(BIG)}]
    assert type(anything[0]) is bytes
    assert type(anything[1]["k"]) is memoryview
    assert type(value) is memoryview
    assert type(also) is bytes


def test_buffers_nested_in_annotated_types() -> None:
    blobs = {"a": Blob("n", memoryview(BIG), [Blob("m", memoryview(b"x"))])}
    back = call(service, "nested", blobs)
    assert type(back["a"]) is Blob
    assert type(back["a"].data) is memoryview
    assert back["a"].data == BIG
    assert back["a"].children[0].data == b"x"


def test_how_buffers_are_decoded_follows_from_the_annotations() -> None:
    found = plans(Everything)
    assert found["as_view"].buffers == VIEWS
    assert found["nested"].buffers == VIEWS
    assert found["mixed"].buffers == REMEMBERED
    assert found["as_bytes"].buffers == found["untyped"].buffers == BYTES


def test_nothing_of_a_payload_is_remembered_after_binding() -> None:
    plan, codec = plans(Everything)["mixed"], Codec()
    payload = bytearray(BIG)
    header, _, _ = Codec().encode([[BIG, 1]])
    positional, _, _ = codec.decode_call(header, memoryview(payload), plan.buffers)
    with pytest.raises(zcrpc.InvalidArgument):
        plan.bind(positional, codec)
    positional.clear()
    payload.append(1)  # BufferError if anybody still looked at it


def test_what_cannot_be_served_is_refused_when_it_is_written() -> None:
    with pytest.raises(TypeError, match="asynchronous generator"):

        class Streams(zcrpc.Service):
            @zcrpc.method
            def stream(self) -> Iterator[int]:
                yield 1

    with pytest.raises(TypeError, match="functions"):
        zcrpc.method(3)  # type: ignore[type-var]

    with pytest.raises(TypeError, match="functions"):

        class Odd(zcrpc.Service):
            @zcrpc.method
            @staticmethod
            def static() -> None: ...


class TakesTimeout(zcrpc.Service):
    @zcrpc.method
    def wait(self, timeout: float) -> None: ...


class TakesComplex(zcrpc.Service):
    @zcrpc.method
    def put(self, value: complex) -> None: ...


class TakesUnknown(zcrpc.Service):
    @zcrpc.method
    def put(self, value: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821


class TakesSet(zcrpc.Service):
    @zcrpc.method
    def put(self, value: Optional[list[object]] | int | set[int]) -> None: ...  # noqa: UP045


class Twice(zcrpc.Service):
    @zcrpc.method
    def a(self) -> None: ...
    @zcrpc.method(name="a")
    def b(self) -> None: ...


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (TakesTimeout, "'timeout' belongs to the caller"),
        (TakesComplex, "'value'.*complex.*register"),
        (TakesUnknown, "Nowhere"),
        (TakesSet, "'value'"),
        (Twice, "more than one method"),
    ],
)
def test_signatures_that_cannot_be_served_are_refused(kind: type[zcrpc.Service], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        plans(kind)


def test_server_takes_objects_of_services_with_methods_and_each_name_once() -> None:
    class Empty(zcrpc.Service): ...

    with pytest.raises(TypeError, match="serve an object"):
        zcrpc.Server(Everything)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"no zcrpc\.Service"):
        zcrpc.Server(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no @method"):
        zcrpc.Server(Empty())
    with pytest.raises(ValueError, match=r"Everything\."):
        zcrpc.Server(Everything(), Everything())
