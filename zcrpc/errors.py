"""Everything that can go wrong with a call, in one hierarchy.

Each exception carries a status: the seventeen codes of gRPC (https://grpc.io/docs/guides/status-codes/), by number, so
that they mean to gateways and dashboards what they always mean. An exception that a handler raises crosses the wire as
the class of its status, with its message and details; see `failure` and `from_status`, the only two places that
translate.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar


class Status(enum.IntEnum):
    """How a call ended. The numbers travel on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ZcrpcError(Exception):
    """The root of all errors of zcrpc.

    `message` is for people. `details` is for programs: None, or anything msgpack can carry; it crosses the wire as it
    is. `metadata`: what came with an error that a server answered; it does not travel on. `unprocessed`, on the
    caller's side: it is certain that no handler has seen the call, so it may safely be made again.
    """

    status: ClassVar[Status] = Status.UNKNOWN
    unprocessed: bool = False

    def __init__(self, message: str = "", *, details: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.metadata: Mapping[str, str | bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details, dict(self.metadata))


def _rebuild(kind: type[ZcrpcError], message: str, details: Any, metadata: Mapping[str, str | bytes]) -> ZcrpcError:
    error = kind(message, details=details)
    error.metadata = metadata
    return error


class Cancelled(ZcrpcError):
    """The other side cancelled the call."""

    status = Status.CANCELLED


class Unknown(ZcrpcError):
    """The handler raised something that is not a ZcrpcError."""

    status = Status.UNKNOWN


class InvalidArgument(ZcrpcError):
    """An argument is missing, unexpected, or not what the method's signature says."""

    status = Status.INVALID_ARGUMENT


class DeadlineExceeded(ZcrpcError):
    """The call's timeout ran out before its answer came."""

    status = Status.DEADLINE_EXCEEDED


class NotFound(ZcrpcError):
    """What was asked for does not exist."""

    status = Status.NOT_FOUND


class AlreadyExists(ZcrpcError):
    """What was to be created exists."""

    status = Status.ALREADY_EXISTS


class PermissionDenied(ZcrpcError):
    """The caller is known, and may not."""

    status = Status.PERMISSION_DENIED


class ResourceExhausted(ZcrpcError):
    """A limit is reached: connections, calls in flight, size of a message, memory."""

    status = Status.RESOURCE_EXHAUSTED


class FailedPrecondition(ZcrpcError):
    """The system is not in the state that the call needs."""

    status = Status.FAILED_PRECONDITION


class Aborted(ZcrpcError):
    """Another call was in the way; the whole sequence may be tried again."""

    status = Status.ABORTED


class OutOfRange(ZcrpcError):
    """Past the end of what is there."""

    status = Status.OUT_OF_RANGE


class Unimplemented(ZcrpcError):
    """The server has no such method."""

    status = Status.UNIMPLEMENTED


class Internal(ZcrpcError):
    """An invariant of the other side is broken."""

    status = Status.INTERNAL


class Unavailable(ZcrpcError):
    """No connection, or it was lost while the call was under way; the call may or may not have run."""

    status = Status.UNAVAILABLE


class DataLoss(ZcrpcError):
    """Data is lost or corrupt for good."""

    status = Status.DATA_LOSS


class Unauthenticated(ZcrpcError):
    """The caller is not known."""

    status = Status.UNAUTHENTICATED


_BY_STATUS: dict[int, type[ZcrpcError]] = {
    kind.status: kind
    for kind in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def from_status(code: int, message: str = "", details: Any = None) -> ZcrpcError:
    """The exception that a status on the wire stands for. A code that this version does not know is Unknown, and the
    message says so."""
    kind = _BY_STATUS.get(code)
    if kind is None:
        return Unknown(f"status {code}: {message}", details=details)
    return kind(message, details=details)


def failure(error: BaseException) -> tuple[Status, str, Any]:
    """Status, message and details with which an exception of a handler crosses the wire."""
    if isinstance(error, ZcrpcError):
        return error.status, error.message, error.details
    text = str(error)
    return Status.UNKNOWN, f"{type(error).__name__}: {text}" if text else type(error).__name__, None
