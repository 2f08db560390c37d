"""The only door to the compiled core: `ffi`, `lib`, and `check`, where a negative errno becomes an exception."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zcrpc import _core
from zcrpc.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    ZcrpcError,
)

ffi: Any = _core.ffi
lib: Any = _core.lib

# What the core's own refusals mean. Errors of the system that are not listed stay OSError.
_KINDS: Mapping[int, type[ZcrpcError]] = MappingProxyType(
    {
        errno.EINVAL: InvalidArgument,
        errno.ENOENT: NotFound,
        errno.ENOTCONN: Unavailable,
        errno.EMSGSIZE: ResourceExhausted,
        errno.ENOSPC: ResourceExhausted,
        errno.EAGAIN: ResourceExhausted,
        errno.EBUSY: FailedPrecondition,
        errno.EPROTO: Internal,
    }
)


def check(code: int, what: str) -> int:
    """`code` if it is not negative; else the exception for that errno, saying what was being done. ENOMEM is
    MemoryError."""
    if code >= 0:
        return code
    number = -code
    text = f"{what}: {os.strerror(number)}"
    if number == errno.ENOMEM:
        raise MemoryError(text)
    kind = _KINDS.get(number)
    if kind is not None:
        raise kind(text)
    raise OSError(number, text)
