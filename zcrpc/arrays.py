"""Arrays on the wire: their bytes travel as any buffer's do, with the type of their elements and their shape beside.

What arrives is a flat, read-only view over the payload whose description is remembered for as long as the view lives.
Where the annotation says `numpy.ndarray`, or `array.array`, the view is made into one; elsewhere it stays the view that
any other buffer would be, so that what arrives is decided by the annotation and never by the sender (D8).

numpy is not imported here: whoever sends an array has imported it, and so has whoever annotates one.
"""

from __future__ import annotations

import array
import datetime
import functools
import math
import re
import struct
import sys
import types
import typing
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    import numpy

# Booleans, integers, floats, complex, times, characters, bytes, voids: in sizes that mean the same on every machine,
# which excludes long double. Nothing here refers to memory: no objects, no pickle.
_ELEMENT: Final = re.compile(
    r"\|b1|\|[iu]1|[<>]([iu][248]|f[248]|c8|c16)|[<>][mM]8(\[[0-9]*[a-zA-Z]{1,2}\])?|<U[1-9][0-9]{0,8}|>U[1-9][0-9]{0,8}"
    r"|\|[SV][1-9][0-9]{0,8}"
)
_KINDS: Final = {**dict.fromkeys("bhilq", "i"), **dict.fromkeys("BHILQ", "u"), **dict.fromkeys("fd", "f")}
_ITEMS: Final = {"i": int, "u": int, "f": float}
_BYTE: Final = msgspec.msgpack.encode("|u1")

_MOST_DIMENSIONS: Final = 64
# Types of elements, in bytes. A structure of hundreds of fields has its place, but not in a cache that a peer fills.
_LONGEST_ELEMENT: Final = 16 << 10
_LONGEST_CACHED: Final = 512
_MOST_NESTED: Final = 8


class Packed(NamedTuple):
    """An array, ready for the wire."""

    data: Any  # its bytes, a contiguous buffer
    description: bytes


# ---- out


def is_array(kind: type) -> bool:
    """Whether values of this type are sent as arrays."""
    numpy = sys.modules.get("numpy")
    return issubclass(kind, array.array) or (numpy is not None and issubclass(kind, numpy.ndarray))


def is_scalar(kind: type) -> bool:
    """Whether values of this type are numbers of numpy's, which are sent as Python's."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(kind, numpy.generic)


def scalar(value: Any) -> Any:
    """Python's value of numpy's. TypeError if there is none: nanoseconds, for example, would be a mere number."""
    plain = value.item()
    is_time = isinstance(plain, (datetime.date, datetime.timedelta))
    if type(plain) is type(value) or (value.dtype.kind in "mM" and not is_time):
        raise TypeError(f"a {type(value).__qualname__} cannot be sent")
    return plain


def pack(value: Any, copy_below: int) -> Packed:
    """An array's bytes, in C order, and what describes them. Under `copy_below` bytes they are a copy, else the array's
    own if they lie in that order. TypeError for an array that means nothing elsewhere."""
    if type(value) is array.array:
        return Packed(value, _describe((len(value),), _element_of_code(value.typecode, value.itemsize)))
    numpy = sys.modules.get("numpy")
    # What other classes add to the elements, such as a mask or a unit, would be lost without a word.
    if numpy is None or type(value) not in (numpy.ndarray, numpy.memmap, numpy.matrix, numpy.recarray):
        raise TypeError(f"a {type(value).__qualname__} cannot be sent; make it a plain array, or register the class")
    description = _describe(value.shape, _element_of(value.dtype))
    if value.nbytes < copy_below:
        return Packed(value.tobytes(), description)
    # Bytes, since not all types of elements can be exported as a buffer.
    return Packed(numpy.ascontiguousarray(value.view(numpy.ndarray)).reshape(-1).view(numpy.uint8), description)


def _describe(shape: Sequence[int], element: bytes) -> bytes:
    return struct.pack(f"<B{len(shape)}Q", len(shape), *shape) + element


def _element_of_code(code: str, size: int) -> bytes:
    if code not in _KINDS:
        raise TypeError(f"an array of type code {code!r} cannot be sent")
    order = "|" if size == 1 else "<" if sys.byteorder == "little" else ">"
    return msgspec.msgpack.encode(f"{order}{_KINDS[code]}{size}")


@functools.lru_cache(maxsize=256)
def _element_of(dtype: numpy.dtype[Any]) -> bytes:
    """The type of an array's elements as it travels. TypeError for those that cannot."""
    try:
        element = msgspec.msgpack.encode(_without_tuples(dtype.descr) if dtype.names else dtype.str)
        arrives = _dtype(element)
    except (TypeError, ValueError):
        arrives = None
    if arrives != dtype:
        raise TypeError(f"an array of {dtype} cannot be sent")
    return element


def _without_tuples(part: Any) -> Any:
    return [_without_tuples(each) for each in part] if isinstance(part, (list, tuple)) else part


# ---- in


class _Arrived(weakref.ref[memoryview]):
    """A view that was sent as an array, and its description."""

    __slots__ = ("element", "key", "shape")

    key: int
    shape: tuple[int, ...]
    element: bytes


# By the view's id, as views are compared by what they show.
_arrived: Final[dict[int, _Arrived]] = {}


def remember(view: memoryview, description: bytes) -> None:
    """Remembers that a view is an array. ValueError for what is no description."""
    count = description[0] if description else 0
    start = 1 + 8 * count
    if count > _MOST_DIMENSIONS or len(description) <= start:
        raise ValueError(f"{len(description)} bytes are no description of an array with {count} dimensions")
    known = _Arrived(view, _forget)
    known.key = id(view)
    known.shape = struct.unpack_from(f"<{count}Q", description, 1)
    known.element = description[start:]
    _arrived[known.key] = known


def _forget(known: weakref.ref[memoryview]) -> None:
    assert isinstance(known, _Arrived)
    if _arrived.get(known.key) is known:
        del _arrived[known.key]


def is_arriving(kind: type) -> bool:
    """Whether an annotation of this type is for arrays."""
    numpy = sys.modules.get("numpy")
    return kind is array.array or (numpy is not None and kind is numpy.ndarray)


def unpack(annotation: Any, value: Any) -> Any:
    """What arrived as the array that an annotation asks for: an ndarray over the same memory, or an array.array, which
    is a copy. Bytes that were not sent as an array are one of bytes. ValueError for what is none, or not as
    annotated."""
    wanted = typing.get_origin(annotation) or annotation
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(f"Expected `{wanted.__name__}`, got `{type(value).__name__}`")
    known = _arrived.get(id(value))
    if known is not None and known() is value:
        shape, element = known.shape, known.element
    else:
        shape, element = (len(value),), _BYTE
    return (_unpack_array if wanted is array.array else _ndarray)(annotation, value, shape, element)


def _unpack_array(
    annotation: Any, value: bytes | memoryview, shape: tuple[int, ...], element: bytes
) -> array.array[Any]:
    items = typing.get_args(annotation)
    for code, kind in _KINDS.items():
        made: array.array[Any] = array.array(code)
        if _element_of_code(code, made.itemsize) != element or (items and items[0] is not _ITEMS[kind]):
            continue
        if len(shape) != 1 or shape[0] * made.itemsize != len(value):
            raise ValueError(f"Expected `array` of one dimension, got shape {list(shape)} with {len(value)} bytes")
        made.frombytes(value)
        return made
    raise ValueError(f"Expected `array{list(items) or ''}`, got elements of type {_short(_decoded(element))}")


def _ndarray(annotation: Any, value: Any, shape: tuple[int, ...], element: bytes) -> numpy.ndarray[Any, Any]:
    import numpy

    dtype = _dtype(element)
    if math.prod(shape) * dtype.itemsize != len(value):
        raise ValueError(f"An array of {_short(dtype)} with shape {list(shape)} has not {len(value)} bytes")
    dimensions, sorts = _demands(annotation)
    if sorts is not None and not issubclass(dtype.type, sorts):
        raise ValueError(f"Expected `ndarray` of {' | '.join(sort.__name__ for sort in sorts)}, got {_short(dtype)}")
    if dimensions is not None and len(shape) != dimensions:
        raise ValueError(f"Expected `ndarray` with {dimensions} dimensions, got {len(shape)}")
    return numpy.ndarray(shape, dtype, value)


@functools.lru_cache(maxsize=256)
def _demands(annotation: Any) -> tuple[int | None, tuple[type, ...] | None]:
    """How many dimensions an annotation asks for, and elements of which classes; None: any."""
    import numpy

    shape, dtype = typing.get_args(annotation) or (Any, Any)
    sizes = typing.get_args(shape)
    dimensions = len(sizes) if typing.get_origin(shape) is tuple and ... not in sizes else None
    wanted = typing.get_args(dtype)[0] if typing.get_origin(dtype) is numpy.dtype else dtype
    union = typing.get_args(wanted) if typing.get_origin(wanted) in (typing.Union, types.UnionType) else (wanted,)
    sorts = tuple(typing.get_origin(each) or each for each in union)
    if not all(isinstance(sort, type) and issubclass(sort, numpy.generic) for sort in sorts):
        return dimensions, None
    # C has several names for one type, such as long and long long: the one that arrives is numpy's first.
    concrete = set(numpy.sctypeDict.values())
    return dimensions, tuple(numpy.dtype(numpy.dtype(sort).str).type if sort in concrete else sort for sort in sorts)


def _dtype(element: bytes) -> numpy.dtype[Any]:
    """The dtype that a type of elements is. ValueError if it is none that may be sent."""
    return _cached_dtype(element) if len(element) <= _LONGEST_CACHED else _make_dtype(element)


def _make_dtype(element: bytes) -> numpy.dtype[Any]:
    made = _dtype_of(_decoded(element), 0)
    if not made.itemsize:
        raise ValueError("elements of no bytes")
    return made


_cached_dtype: Final = functools.lru_cache(maxsize=128)(_make_dtype)


def _decoded(element: bytes) -> Any:
    if len(element) > _LONGEST_ELEMENT:
        raise ValueError(f"a type of elements of {len(element)} bytes")
    try:
        return msgspec.msgpack.decode(element)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a type of elements that does not decode: {error}") from None


def _dtype_of(part: Any, depth: int) -> numpy.dtype[Any]:
    import numpy

    if isinstance(part, str) and _ELEMENT.fullmatch(part):
        try:
            return numpy.dtype(part)
        except TypeError as error:
            raise ValueError(str(error)) from None
    if not isinstance(part, list) or not part or depth == _MOST_NESTED:
        raise ValueError(f"no type of elements: {_short(part)}")
    names, formats, offsets, end = [], [], [], 0
    for field in part:
        name, each = _field(field, depth)
        if name or each.kind != "V":  # else padding
            names.append(name)
            formats.append(each)
            offsets.append(end)
        end += each.itemsize
    try:
        return numpy.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"no structure: {error}") from None


def _field(field: Any, depth: int) -> tuple[str, numpy.dtype[Any]]:
    """Name and type of [name, type] or [name, type, shape]."""
    import numpy

    if not isinstance(field, list) or len(field) not in (2, 3) or not isinstance(field[0], str):
        raise ValueError(f"no field of a structure: {_short(field)}")
    each = _dtype_of(field[1], depth + 1)
    if len(field) == 2:
        return field[0], each
    shape = field[2]
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"no shape of a field: {_short(shape)}")
    try:
        return field[0], numpy.dtype((each, tuple(shape)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"no field: {error}") from None


def _short(part: Any) -> str:
    """What a peer made up, for a message."""
    text = str(part)
    return text if len(text) <= 80 else f"{text[:80]}…"
