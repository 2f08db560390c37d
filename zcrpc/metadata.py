"""Metadata: what travels with a call besides its arguments, both ways. A request's id, a trace, a tenant; small by
intention, since it is read even where the call is refused.

Keys are lower-case tokens, values `str` or `bytes`. Its size is that of the msgpack map that it travels as.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec

from zcrpc.errors import ResourceExhausted

Metadata: TypeAlias = Mapping[str, str | bytes]

NOTHING: Final[Metadata] = MappingProxyType({})
# What HTTP servers take of all headers together, by default: nginx four times 8 KiB, Apache and Node 8 to 16 KiB.
DEFAULT_LIMIT: Final = 8192
# Belongs to the protocol. None is defined yet; those of a later version are not shown to handlers of this one.
RESERVED: Final = "zcrpc-"

_key: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_encode: Final = msgspec.msgpack.Encoder().encode


class MetadataError(ValueError):
    """Metadata that may not travel: its message says why."""


def encode(metadata: Metadata, limit: int, whose: str) -> msgspec.Raw:
    """Metadata as it travels. MetadataError for keys and values that may not; ResourceExhausted if it is longer than
    the `limit` of the peer. `whose` metadata it is, for messages."""
    if not isinstance(metadata, Mapping):
        raise MetadataError(f"{whose}: metadata is a mapping of str to str or bytes, not {type(metadata).__name__}")
    _check(metadata, whose)
    for key in metadata:
        if key.startswith(RESERVED):
            raise MetadataError(f"{whose}: metadata: keys that begin with '{RESERVED}' belong to the protocol: {key!r}")
    try:
        encoded = _encode(dict(metadata))
    except (TypeError, ValueError) as error:  # lone surrogates, and strings of 4 GiB
        raise MetadataError(f"{whose}: metadata: {error}") from None
    if len(encoded) > limit:
        raise ResourceExhausted(
            f"{whose}: metadata of {len(encoded)} bytes is more than the {limit} that the peer takes"
        )
    return msgspec.Raw(encoded)


def decode(value: Any, limit: int, whose: str) -> Metadata:
    """Metadata that came, read-only. MetadataError for what is none; ResourceExhausted over the `limit` of this
    side."""
    if type(value) is not dict:
        raise MetadataError(f"{whose}: metadata is a map of strings to strings or byte strings")
    _check(value, whose)
    size = len(_encode(value))
    if size > limit:
        raise ResourceExhausted(f"{whose}: metadata of {size} bytes is more than the {limit} that this side takes")
    return MappingProxyType({key: item for key, item in value.items() if not key.startswith(RESERVED)})


def _check(metadata: Mapping[Any, Any], whose: str) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or _key.fullmatch(key) is None:
            shown = key[:64] if isinstance(key, (str, bytes)) else type(key).__name__
            raise MetadataError(
                f"{whose}: metadata: a key is a lower-case token, 1 to 128 of a-z, 0-9, '.', '_', '-', not {shown!r}"
            )
        if not isinstance(value, (str, bytes)):
            raise MetadataError(f"{whose}: metadata: the value of '{key}' is neither str nor bytes")
