"""From what arrived to what an annotation says, by msgspec; and the types that it is taught besides.

zcrpc.register(complex, encode=lambda z: (z.real, z.imag), decode=lambda pair: complex(*pair))
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from zcrpc import arrays

if TYPE_CHECKING:
    from typing_extensions import Buffer as Buffer
elif sys.version_info >= (3, 12):
    from collections.abc import Buffer as Buffer
else:

    class Buffer(abc.ABC):  # noqa: B024
        """collections.abc.Buffer, which Python has from 3.12 on."""

        __slots__ = ()

    for _kind in (bytes, bytearray, memoryview):
        Buffer.register(_kind)

T = TypeVar("T")

# Types that, if they are what arrived, need no conversion. The same is true of no other: an int may be out of an
# annotation's bounds, but then the annotation is not int; a list's items are another matter.
_EXACT: Final = frozenset({int, float, str, bool, bytes, memoryview, type(None)})
# msgpack has bytes of its own: text is not taken for base64.
_BUFFERS: Final = (bytes, bytearray, memoryview)


@dataclasses.dataclass(slots=True, frozen=True)
class Converter:
    """From what arrived to what an annotation says. `views`: buffers are wanted as views over what was received, by
    memoryview, Buffer or an array; `anything`: it leaves places open, such as Any; `foreign`: it has types that msgspec
    does not know."""

    annotation: Any
    exact: type | None
    views: bool
    anything: bool
    foreign: bool

    def convert(self, value: Any) -> Any:
        """The value as annotated. msgspec.ValidationError says what is wrong and where."""
        if not self.foreign:
            return msgspec.convert(value, self.annotation, builtin_types=_BUFFERS)
        return msgspec.convert(value, self.annotation, builtin_types=_BUFFERS, dec_hook=_decode)


def converter(what: str, annotation: Any) -> Converter | None:
    """How a value becomes what the annotation says; None if anything goes. TypeError for an annotation that nothing on
    the wire can satisfy; `what` is annotated, for its message."""
    if annotation is Any or annotation is object or annotation is inspect.Parameter.empty:
        return None
    if annotation is None:
        annotation = type(None)
    try:
        parts = _parts(msgspec.inspect.type_info(annotation))
        msgspec.msgpack.Decoder(annotation)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}: cannot arrive as {annotation}: {error}") from error
    kinds = {type(part) for part in parts}
    views, anything = msgspec.inspect.MemoryViewType in kinds, msgspec.inspect.AnyType in kinds
    for part in parts:
        if isinstance(part, msgspec.inspect.CustomType) and (_is_buffer(part.cls) or arrays.is_arriving(part.cls)):
            views = True
        elif isinstance(part, msgspec.inspect.CustomType) and part.cls in _registered:
            arrives = _registered[part.cls].arrives
            views |= arrives is not None and arrives.views
            anything |= arrives is None or arrives.anything
        elif isinstance(part, (msgspec.inspect.CustomType, msgspec.inspect.ExtType, msgspec.inspect.RawType)):
            raise TypeError(
                f"{what}: cannot arrive as {annotation}; take a type that msgspec knows, or zcrpc.register() this one"
            )
    exact = memoryview if _is_buffer(annotation) else annotation if annotation in _EXACT else None
    return Converter(annotation, exact, views, anything, msgspec.inspect.CustomType in kinds)


def _parts(info: Any) -> list[Any]:
    """All that a msgspec type consists of, itself included."""
    parts: dict[int, Any] = {}
    left = [info]
    while left:
        part = left.pop()
        if isinstance(part, msgspec.inspect.Field):
            part = part.type
        if not isinstance(part, msgspec.inspect.Type) or id(part) in parts:
            continue
        parts[id(part)] = part
        for name in part.__struct_fields__:
            value = getattr(part, name)
            left.extend(value if isinstance(value, tuple) else (value,))
    return list(parts.values())


def _is_buffer(kind: Any) -> bool:
    """Whether it stands for any buffer, which arrives as a memoryview."""
    extensions = sys.modules.get("typing_extensions")
    return kind is Buffer or (extensions is not None and kind is extensions.Buffer)


# ---- types that msgspec does not know


class _Registered(NamedTuple):
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    arrives: Converter | None  # what `decode` takes; None: as it comes


_registered: Final[dict[type, _Registered]] = {}


def register(kind: type[T], *, encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
    """Lets values of a class travel that are none of zcrpc's own types, anywhere in arguments and results.

    encode: from a value, of the class or a subclass, to what travels in its place. decode: from what arrived to the
    value; what its parameter is annotated with is made and checked first, and a ValueError or TypeError means that the
    value was wrong. To be called on both sides, and before a service that mentions the class is served or connected to.
    A later registration replaces an earlier one. TypeError for a class that can be sent as it is.
    """
    if not isinstance(kind, type):
        raise TypeError(f"register() is for classes, not for {kind!r}")
    is_foreign = isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType)
    if not is_foreign or _is_buffer(kind) or arrays.is_arriving(kind):
        raise TypeError(f"{kind.__qualname__} can be sent as it is")
    _registered[kind] = _Registered(encode, decode, _taken_by(decode, kind))


def _taken_by(decode: Callable[..., Any], kind: type) -> Converter | None:
    what = f"what {kind.__qualname__} is made of"
    if not inspect.isroutine(decode) or inspect.isbuiltin(decode):
        return None  # a class has its own ways
    try:
        (first, *_) = inspect.signature(decode).parameters.values()
        return converter(what, typing.get_type_hints(decode, include_extras=True).get(first.name, Any))
    except (NameError, ValueError) as error:
        raise TypeError(f"{what}: its annotation cannot be resolved: {error}") from error


def encoder(kind: type) -> Callable[[Any], Any] | None:
    """What makes something that can travel of values of a registered class."""
    for base in kind.__mro__ if _registered else ():
        if base in _registered:
            return lambda value: _registered[base].encode(value)
    return None


def _decode(annotation: Any, value: Any) -> Any:
    """msgspec's question: what arrived, as a type that it does not know."""
    kind = typing.get_origin(annotation) or annotation
    if arrays.is_arriving(kind):
        return arrays.unpack(annotation, value)
    if _is_buffer(kind):
        if not isinstance(value, (bytes, memoryview)):
            raise ValueError(f"Expected `bytes`, got `{type(value).__name__}`")
        return memoryview(value)
    known = _registered[kind]
    try:
        return known.decode(value if known.arrives is None else known.arrives.convert(value))
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None  # which msgspec adds the path to
