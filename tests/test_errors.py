import asyncio
import pickle
from typing import Any

import pytest
from conftest import Serving

import zcrpc
from zcrpc import errors
from zcrpc.errors import Status, ZcrpcError


def classes() -> list[type[ZcrpcError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ZcrpcError) and value is not ZcrpcError
    ]


def test_each_status_but_ok_has_one_class() -> None:
    assert sorted(kind.status for kind in classes()) == list(range(1, 17))
    assert len(Status) == 17


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_crosses_the_wire_and_back(kind: type[ZcrpcError]) -> None:
    status, message, details = errors.failure(kind("why", details={"key": [1, 2]}))
    back = errors.from_status(status, message, details)
    assert type(back) is kind
    assert (back.message, str(back), back.details) == ("why", "why", {"key": [1, 2]})
    assert getattr(zcrpc, kind.__name__) is kind


def test_subclass_of_a_user_travels_as_its_status() -> None:
    class NoSuchKey(zcrpc.NotFound):
        pass

    status, message, _ = errors.failure(NoSuchKey("k"))
    assert type(errors.from_status(status, message)) is zcrpc.NotFound


def test_foreign_exception_is_unknown_with_its_type_and_text() -> None:
    assert errors.failure(KeyError("k")) == (Status.UNKNOWN, "KeyError: 'k'", None)
    assert errors.failure(RuntimeError()) == (Status.UNKNOWN, "RuntimeError", None)


def test_status_of_a_later_version_is_unknown() -> None:
    error = errors.from_status(99, "from the future")
    assert type(error) is zcrpc.Unknown
    assert "99" in error.message
    assert "from the future" in error.message


def test_pickles_with_details() -> None:
    error = pickle.loads(pickle.dumps(zcrpc.NotFound("no", details=[1])))
    assert (type(error), error.message, error.details) == (zcrpc.NotFound, "no", [1])


class Raises(zcrpc.Service):
    @zcrpc.method
    async def at_once(self, name: str, details: Any) -> None:
        raise getattr(zcrpc, name)("why", details=details)

    @zcrpc.method
    def plainly(self, name: str, details: Any) -> None:
        raise getattr(zcrpc, name)("why", details=details)

    @zcrpc.method
    async def later(self, name: str, details: Any) -> None:
        await asyncio.sleep(0)
        raise getattr(zcrpc, name)("why", details=details)


DETAILS: list[Any] = [None, 0, {"key": [1, 2.5, None, {"deep": b"\x00"}]}, "text", b"x" * 600, [], {}]


async def test_each_status_comes_through_sockets_with_details(serving: Serving) -> None:
    async with serving(Raises()) as (_, address), zcrpc.connect(address, Raises) as raises:
        for kind in classes():
            for method in (raises.at_once, raises.plainly, raises.later):
                for details in DETAILS:
                    with pytest.raises(kind, match="why") as caught:
                        await method(kind.__name__, details)  # type: ignore[misc]
                    assert type(caught.value) is kind
                    assert caught.value.details == details


async def test_details_that_are_too_large_or_cannot_travel_are_left_out(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(zcrpc.Service):
        @zcrpc.method
        async def fail(self, large: bool) -> None:
            zcrpc.context().response_metadata["k"] = "v"
            raise zcrpc.NotFound("why", details="x" * 100_000 if large else object())

    async with serving(Odd()) as (_, address), zcrpc.connect(address, Odd) as odd:
        for large in (True, False):
            with pytest.raises(zcrpc.NotFound, match="why") as caught:
                await odd.fail(large)
            assert caught.value.details is None
            assert caught.value.metadata == {"k": "v"}
    assert caplog.text.count("the details of an error cannot be sent") == 2


def test_pickles_with_metadata() -> None:
    error = zcrpc.NotFound("no")
    error.metadata = {"k": "v"}
    assert pickle.loads(pickle.dumps(error)).metadata == {"k": "v"}
