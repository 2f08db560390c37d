import pickle

import pytest

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
