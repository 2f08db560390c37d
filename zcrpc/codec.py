"""msgpack headers with out-of-band buffers.

A header is msgpack. Buffers nested anywhere in a value do not travel in it but in the frame's payload, referred to by
an extension: offset and length. Extension 1 was `bytes`, extension 3 an array, with its description behind the two
(arrays.py), extension 2 any other buffer. So size never decides the type that arrives (D8):

    sent                          arrives without annotation
    bytes < 512                   bytes (inline, as msgpack's own type)
    bytes, larger                 bytes, copied out of the payload
    memoryview, bytearray, array  memoryview of bytes, read-only, over the payload

Buffers follow each other in the order in which the header mentions them, each at a multiple of 64 bytes so that arrays
stay aligned. The decoder insists on the order, hence on disjoint buffers: otherwise a small frame could claim the same
bytes a thousand times over.

A codec has state while it works; one belongs to one thread.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

import msgspec
from msgspec.msgpack import Ext

from zcrpc import arrays, conversion

FROM_BYTES: Final = 1
FROM_BUFFER: Final = 2
FROM_ARRAY: Final = 3

ALIGNMENT: Final = 64
# Below this a `bytes` costs less inline than by reference: extension and slice are about 0.2 µs, as is a copy of this
# much.
INLINE_BELOW: Final = 512
# Buffers below this are copied when they are encoded, so that the caller may change them at once; larger ones are
# referenced until sent.
COPY_BELOW: Final = 16384

Buffers: TypeAlias = list[bytes | memoryview]

# How buffers are decoded that were `bytes`: as that; as views over the payload, lest 16 MiB be copied only to be looked
# at; or as views that are remembered, so that `settle` can still tell them from others.
BYTES: Final = 0
VIEWS: Final = 1
REMEMBERED: Final = 2

_PADDING: Final = bytes(ALIGNMENT)
_reference: Final = struct.Struct("<QQ")
# [Ext] with a reference, as msgpack: the whole header of a response that is one buffer.
SINGLE: Final = struct.Struct("<3sQQ")
# [[Ext]] with a reference: the whole header of a request whose only argument is a buffer.
_single_call: Final = struct.Struct("<3sBQQ")
_SINGLE_CALL: Final = b"\x91\x91\xd8"
_SINGLE_CALL_SIZE: Final = _single_call.size
SINGLE_BYTES: Final = b"\x91\xd8\x01"
SINGLE_BUFFER: Final = b"\x91\xd8\x02"

# What can hold no buffer: encoded as it is.
_PLAIN: Final = frozenset(
    {
        int,
        float,
        str,
        bool,
        type(None),
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
    }
)


class HeaderError(ValueError):
    """A header that does not decode."""


class Codec:
    """Encodes and decodes headers."""

    __slots__ = (
        "_buffers",
        "_decoder",
        "_encoder",
        "_end",
        "_length",
        "_lifters",
        "_mode",
        "_payload",
        "_stems",
    )

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ext_hook=self._place)
        self._lifters: dict[type, Callable[[Any], Any]] = {}
        # While encoding: the payload so far. While decoding: the payload and where its last buffer ended.
        self._buffers: Buffers = []
        self._length = 0
        self._payload: bytes | memoryview = b""
        self._end = 0
        self._mode = BYTES
        self._stems: dict[int, memoryview] = {}

    # ---- out

    def encode(self, value: Any) -> tuple[bytes, Buffers, int]:
        """Header, the payload's pieces, and the payload's length. TypeError for what cannot be sent, ValueError for
        nesting without end."""
        buffers: Buffers = []
        self._buffers = buffers
        self._length = 0
        try:
            return self._encoder.encode(self._lift(value)), buffers, self._length
        except RecursionError:
            raise ValueError("nested too deeply, or within itself") from None
        except OverflowError as error:
            raise ValueError(str(error)) from None
        finally:
            self._buffers = []

    def append(self, item: Any, header: bytearray, buffers: Buffers, length: int) -> int:
        """Appends a value to a header and its buffers to the payload's pieces, which are `length` bytes so far; their
        length then. Raises as `encode` does, and may then have appended a part."""
        kind = type(item)
        if kind in _PLAIN or (kind is bytes and len(item) < INLINE_BELOW):
            lifted = item
        else:
            self._buffers = buffers
            self._length = length
            try:
                lifted = self._lift(item)
            except RecursionError:
                raise ValueError("nested too deeply, or within itself") from None
            finally:
                self._buffers = []
            length = self._length
        try:
            self._encoder.encode_into(lifted, header, -1)
        except RecursionError:
            raise ValueError("nested too deeply, or within itself") from None
        except OverflowError as error:
            raise ValueError(str(error)) from None
        return length

    def encode_arguments(self, arguments: Sequence[Any]) -> tuple[bytes, Sequence[bytes | memoryview], int]:
        """The same for a request that has nothing else, with a short cut for a buffer that is the only argument."""
        if len(arguments) == 1 and type(arguments[0]) is memoryview:
            piece = snapshot(arguments[0])
            length = piece.nbytes if type(piece) is memoryview else len(piece)
            return _single_call.pack(_SINGLE_CALL, FROM_BUFFER, 0, length), (piece,), length
        return self.encode([arguments]) if arguments else (b"", (), 0)

    def encode_result(self, result: Any) -> tuple[bytes, Sequence[bytes | memoryview], int]:
        """The same for a response, with short cuts for its commonest shapes."""
        kind = type(result)
        if kind is memoryview:
            piece = snapshot(result)
            length = piece.nbytes if type(piece) is memoryview else len(piece)
            return SINGLE.pack(SINGLE_BUFFER, 0, length), (piece,), length
        if kind is bytes:
            length = len(result)
            if length >= INLINE_BELOW:
                return SINGLE.pack(SINGLE_BYTES, 0, length), (result,), length
        elif result is None:
            return b"", (), 0
        elif kind not in _PLAIN:
            return self.encode([result])
        try:
            return self._encoder.encode((result,)), (), 0
        except OverflowError as error:
            raise ValueError(str(error)) from None

    def _lift(self, value: Any) -> Any:
        """The value with its buffers moved out into the payload. What holds none is returned as it is, not rebuilt."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is bytes:
            return value if len(value) < INLINE_BELOW else self._reference(FROM_BYTES, value)
        if kind is list or kind is tuple:
            return value if _PLAIN.issuperset(map(type, value)) else [self._lift(item) for item in value]
        if kind is dict:
            if _PLAIN.issuperset(map(type, value.values())):
                return value
            return {key: self._lift(item) for key, item in value.items()}
        lifter = self._lifters.get(kind)
        if lifter is None:
            lifter = self._lifter(value)
            if lifter is not _unknown:  # it may be registered yet
                self._lifters[kind] = lifter
        return lifter(value)

    def _lifter(self, value: Any) -> Callable[[Any], Any]:
        """How values of this one's type are lifted."""
        kind = type(value)
        if issubclass(kind, (enum.Enum, Ext, msgspec.Raw)):
            return _same
        encode = conversion.encoder(kind)
        if encode is not None:
            return lambda value: self._lift(encode(value))
        if issubclass(kind, msgspec.Struct):
            return self._fields_lifter(kind.__struct_fields__, msgspec.structs.force_setattr)
        if dataclasses.is_dataclass(kind):
            return self._fields_lifter(tuple(field.name for field in dataclasses.fields(kind)), object.__setattr__)
        if hasattr(kind, "__attrs_attrs__"):
            return self._fields_lifter(tuple(field.name for field in kind.__attrs_attrs__), object.__setattr__)
        for base in (bool, int, float, str):
            if issubclass(kind, base):
                return base
        if issubclass(kind, bytes):
            return lambda value: self._lift(bytes(value))
        if issubclass(kind, Mapping):
            return lambda value: self._lift(dict(value))
        if issubclass(kind, (list, tuple, Set)):
            return lambda value: self._lift(list(value))
        if arrays.is_array(kind):
            return self._lift_array
        if arrays.is_scalar(kind):
            return lambda value: self._lift(arrays.scalar(value))
        try:
            memoryview(value)
        except TypeError:
            return _unknown
        return lambda value: self._reference(FROM_BUFFER, value)

    def _lift_array(self, value: Any) -> Ext:
        data, description = arrays.pack(value, COPY_BELOW)
        return self._reference(FROM_ARRAY, data, description)

    def _fields_lifter(self, names: tuple[str, ...], assign: Callable[[Any, str, Any], None]) -> Callable[[Any], Any]:
        def lift(value: Any) -> Any:
            copy = None
            for name in names:
                item = getattr(value, name)
                lifted = self._lift(item)
                if lifted is not item:
                    if copy is None:
                        copy = _shallow(value)
                    assign(copy, name, lifted)
            return value if copy is None else copy

        return lift

    def _reference(self, code: int, buffer: Any, description: bytes = b"") -> Ext:
        piece = snapshot(buffer)
        length = piece.nbytes if type(piece) is memoryview else len(piece)
        offset = self._length
        if gap := -offset % ALIGNMENT:
            self._buffers.append(_PADDING[:gap])
            offset += gap
        self._buffers.append(piece)
        self._length = offset + length
        return Ext(code, _reference.pack(offset, length) + description)

    # ---- in

    def decode(self, header: bytes, payload: bytes | memoryview = b"", buffers: int = BYTES) -> Any:
        """The value of a header. HeaderError says what is wrong with it. buffers: BYTES, VIEWS or REMEMBERED."""
        self._payload = payload
        self._length = len(payload)
        self._end = 0
        self._mode = buffers
        if self._stems:
            self._stems = {}
        try:
            return self._decoder.decode(header)
        except HeaderError:
            raise
        except (ValueError, RecursionError) as error:
            raise HeaderError(str(error)) from None
        finally:
            self._payload = b""

    def decode_call(
        self, header: bytes, payload: bytes | memoryview, buffers: int
    ) -> tuple[list[Any], dict[str, Any] | None, Any]:
        """Arguments, keywords and metadata of a request, with a short cut where the only argument is the whole payload.
        Metadata is not checked yet; None for none."""
        if len(header) == _SINGLE_CALL_SIZE:
            prefix, code, offset, length = _single_call.unpack(header)
            if prefix == _SINGLE_CALL and offset == 0 and length == len(payload) and buffers != REMEMBERED:
                if code == FROM_BUFFER or (code == FROM_BYTES and buffers):
                    return [memoryview(payload)], None, None
                if code == FROM_BYTES:
                    return [bytes(payload)], None, None
        if not header:
            return [], None, None
        call = self.decode(header, payload, buffers)
        if type(call) is not list or not call or type(call[0]) is not list:
            raise HeaderError("the header of a request is [arguments], [arguments, keywords], or these and metadata")
        count = len(call)
        if count == 1:
            return call[0], None, None
        metadata = call[2] if count > 2 else None
        if not call[1]:
            return call[0], None, metadata
        if type(call[1]) is not dict:
            raise HeaderError("keywords are a map")
        return call[0], call[1], metadata

    def forget(self) -> None:
        """Lets go of what was remembered; it keeps the payload alive."""
        if self._stems:
            self._stems = {}

    def settle(self, value: Any) -> Any:
        """A value decoded as REMEMBERED, where nothing was annotated: what was sent as `bytes` is `bytes`."""
        if not self._stems:
            return value
        kind = type(value)
        if kind is memoryview:
            return bytes(value) if id(value) in self._stems else value
        if kind is list:
            return [self.settle(item) for item in value]
        if kind is dict:
            return {self.settle(key): self.settle(item) for key, item in value.items()}
        return value

    def _place(self, code: int, data: memoryview) -> Any:
        if len(data) != 16 and (code != FROM_ARRAY or len(data) < 16):
            raise HeaderError(f"extension {code} of {len(data)} bytes")
        offset, length = _reference.unpack_from(data)
        end = offset + length
        if offset < self._end or end > self._length:
            raise HeaderError(
                f"buffer of {length} bytes at {offset} in a payload of {self._length}, of which {self._end} are taken"
            )
        self._end = end
        payload = self._payload
        whole = length == self._length
        if code == FROM_BYTES:
            if self._mode == BYTES:
                return bytes(payload if whole else payload[offset:end])
            view = memoryview(payload) if whole else memoryview(payload)[offset:end]
            if self._mode == REMEMBERED:
                self._stems[id(view)] = view
            return view
        if code == FROM_BUFFER:
            return memoryview(payload) if whole else memoryview(payload)[offset:end]
        if code == FROM_ARRAY:
            view = memoryview(payload) if whole else memoryview(payload)[offset:end]
            arrays.remember(view, bytes(data[16:]))
            return view
        raise HeaderError(f"unknown extension {code}")


def snapshot(buffer: Any) -> bytes | memoryview:
    """A buffer's bytes as they are now if it is small; a large one by reference, if it is contiguous."""
    if type(buffer) is bytes:
        return buffer
    view = buffer if type(buffer) is memoryview else memoryview(buffer)
    if view.nbytes >= COPY_BELOW:
        return view if view.c_contiguous else view.tobytes()
    if type(view.obj) is bytes and view.c_contiguous:
        return view
    return view.tobytes()


def _same(value: Any) -> Any:
    return value


def _unknown(value: Any) -> Any:
    """msgspec knows it, or says that it does not."""
    return value


def _shallow(value: Any) -> Any:
    """A copy of a record that shares its fields. Unlike copy.copy it runs no __init__, __copy__ or __reduce__ of the
    user's."""
    if isinstance(value, msgspec.Struct):
        return msgspec.Struct.__copy__(value)  # type: ignore[attr-defined]
    kind: Any = type(value)
    copy = kind.__new__(kind)
    if hasattr(value, "__dict__"):
        copy.__dict__.update(value.__dict__)
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                object.__setattr__(copy, name, getattr(value, name))
    return copy
