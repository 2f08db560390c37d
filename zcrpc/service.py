"""What a service is: a class whose `@method`s can be called from afar, their signatures being the schema.

    class Store(zcrpc.Service):
        @zcrpc.method
        async def put(self, key: str, value: memoryview) -> int: ...

From each signature a `Plan` is made once: how arguments from the wire become those of the call. msgspec converts and
validates where the annotation asks for it; an argument that arrived as exactly the annotated type costs one comparison.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, ClassVar, Final, TypeVar, overload

import msgspec

from zcrpc.codec import BYTES, REMEMBERED, VIEWS, Codec, HeaderError
from zcrpc.conversion import Converter, converter
from zcrpc.errors import Internal, InvalidArgument, ZcrpcError
from zcrpc.wire import STREAM_IN, STREAM_OUT

Function = TypeVar("Function", bound=Callable[..., Any])

# Keywords of the caller's side of a call; a parameter of that name could not be given by keyword.
RESERVED: Final = frozenset({"timeout", "returns", "metadata", "idempotent", "wait_for_ready"})
# Annotations of streams.
_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)
_MARK: Final = "__zcrpc_method__"
_IDEMPOTENT: Final = "__zcrpc_idempotent__"
_BLOCKING: Final = "__zcrpc_blocking__"


@overload
def method(function: Function, /) -> Function: ...
@overload
def method(
    *, name: str | None = None, idempotent: bool = False, blocking: bool = False
) -> Callable[[Function], Function]: ...
def method(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    idempotent: bool = False,
    blocking: bool = False,
) -> Function | Callable[[Function], Function]:
    """Makes a function of a `Service`, `async def` or plain, callable from afar. A plain one runs in the event loop and
    must not block, unless it is `blocking`. An asynchronous generator is a stream to the caller; a parameter that is an
    AsyncIterator, a stream from the caller.

    `name`: what it is called on the wire, if not by its own name. `idempotent`: to run it twice does no more than to
    run it once, so that clients may make a call again that was lost; see `Retries`. `blocking`: a plain function to be
    run in one of the server's threads; see `Server(threads=...)`.
    """

    def mark(function: Function) -> Function:
        if not inspect.isfunction(function):
            raise TypeError(f"@method is for functions, not for {function!r}")
        if inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__}: a stream is served by an asynchronous generator: `async def`")
        if blocking and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
            raise TypeError(
                f"{function.__qualname__}: what is `async def` does not block; a thread is for plain functions"
            )
        setattr(function, _MARK, name or function.__name__)
        setattr(function, _BLOCKING, blocking)
        setattr(function, _IDEMPOTENT, idempotent)
        return function

    return mark if function is None else mark(function)


class Service:
    """Base of what a server serves. Its name on the wire is the class's, or `class Store(Service, name="kv")`."""

    __zcrpc_name__: ClassVar[str] = "Service"

    def __init_subclass__(cls, name: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.__zcrpc_name__ = name or cls.__name__


@dataclasses.dataclass(slots=True, frozen=True)
class Parameter:
    """One parameter of a method."""

    name: str
    converter: Converter | None  # None: as it comes
    required: bool


@dataclasses.dataclass(slots=True, frozen=True)
class Items:
    """The items of a stream, in one direction. `one`: from what arrived to what the annotation says; None if anything
    goes. `many`: the same for a list of them. `error`: what it is if one is wrong."""

    what: str
    one: Converter | None
    many: Converter | None
    buffers: int  # how they are to be decoded: BYTES, VIEWS, REMEMBERED
    error: type[ZcrpcError]

    def decode(
        self, header: bytes, payload: bytes | memoryview, codec: Codec, number: int
    ) -> tuple[list[Any], ZcrpcError | None]:
        """The items of a frame, the first of which has this number; up to the first that is wrong, and what is."""
        try:
            items = codec.decode(header, payload, self.buffers)
        except HeaderError as error:
            return [], self.error(f"{self.what}: {error}")
        try:
            if type(items) is not list or not items:
                return [], self.error(f"{self.what}: a frame of items is an array of them")
            return self._convert(items, codec), None
        except (msgspec.ValidationError, RecursionError):
            return self._convert_singly(items, codec, number)
        finally:
            codec.forget()

    def _convert(self, items: list[Any], codec: Codec) -> list[Any]:
        one, many = self.one, self.many
        if one is None or many is None:
            settled: list[Any] = codec.settle(items)
            return settled
        if one.exact is not None and {*map(type, items)} == {one.exact}:
            return items
        if one.anything and not one.views:
            items = codec.settle(items)
        converted: list[Any] = many.convert(items)
        return converted

    def _convert_singly(self, items: list[Any], codec: Codec, number: int) -> tuple[list[Any], ZcrpcError | None]:
        good: list[Any] = []
        for item in items:
            try:
                good += self._convert([item], codec)
            except (msgspec.ValidationError, RecursionError) as error:
                why = (
                    str(error).replace("$[0]", "$")
                    if isinstance(error, msgspec.ValidationError)
                    else "nested too deeply"
                )
                return good, self.error(f"{self.what}: item {number + len(good)}: {why.removesuffix(' - at `$`')}")
        return good, None


@dataclasses.dataclass(slots=True, frozen=True)
class ItemsParameter:
    """The parameter of a method that is a stream of items."""

    name: str
    index: int  # among those by position; -1: by keyword only
    items: Items


@dataclasses.dataclass(slots=True)
class Plan:
    """One method, ready to be called."""

    name: str
    attribute: str
    is_async: bool
    positional: tuple[Parameter, ...]
    named: dict[str, Parameter]
    rest: Parameter | None  # *args
    extra: Parameter | None  # **kwargs
    required: int  # positional parameters without default
    result: Converter | None
    exact: list[type]  # of positional arguments that need no conversion at all
    converts: bool  # arguments of other types do
    buffers: int  # how they are to be decoded: BYTES, VIEWS, REMEMBERED
    sole: type[bytes] | type[memoryview] | None  # it is a coroutine, and takes one argument at least: this of a buffer
    idempotent: bool  # clients may make a call again that was lost
    blocking: bool  # to be run in a thread
    incoming: ItemsParameter | None  # a stream from the caller, which is no argument on the wire
    outgoing: Items | None  # a stream to the caller, instead of a result

    @property
    def streams(self) -> int:
        """Flags of its requests: STREAM_IN, STREAM_OUT."""
        return (STREAM_IN if self.incoming is not None else 0) | (STREAM_OUT if self.outgoing is not None else 0)

    def put_items(self, arguments: list[Any], keywords: dict[str, Any], items: Any) -> None:
        """Adds the stream from the caller to the arguments of a call."""
        incoming = self.incoming
        if incoming is None:
            return
        if 0 <= incoming.index <= len(arguments):
            arguments.insert(incoming.index, items)
        else:
            keywords[incoming.name] = items

    def take_items(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Takes the stream from the caller out of the arguments of a call: what is left of those by position, and the
        items. TypeError if there is none."""
        incoming = self.incoming
        if incoming is None:
            return arguments, None
        index = incoming.index
        if incoming.name in keywords:
            items = keywords.pop(incoming.name)
        elif 0 <= index < len(arguments):
            items = arguments[index]
            arguments = arguments[:index] + arguments[index + 1 :]
        else:
            raise TypeError(f"{self.name}() misses '{incoming.name}'")
        if not isinstance(items, (AsyncIterable, Iterable)) or isinstance(items, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"{self.name}(): '{incoming.name}' is an iterable of items, not {type(items).__name__}")
        return arguments, items

    def bind(self, arguments: list[Any], codec: Codec) -> list[Any]:
        """Positional arguments, converted in place. InvalidArgument names the one that is wrong."""
        if [*map(type, arguments)] == self.exact:
            return arguments
        count = len(arguments)
        try:
            if count > len(self.positional) or count < self.required:
                return self._bind_odd(arguments, codec)
            if self.converts:
                self._convert(arguments, codec)
        finally:
            codec.forget()
        return arguments

    def bind_named(
        self, arguments: list[Any], keywords: dict[str, Any], codec: Codec
    ) -> tuple[list[Any], dict[str, Any]]:
        """Positional arguments and keywords, converted. InvalidArgument names the one that is wrong."""
        try:
            return self._bind_named(arguments, keywords, codec)
        finally:
            codec.forget()

    def _bind_named(
        self, arguments: list[Any], keywords: dict[str, Any], codec: Codec
    ) -> tuple[list[Any], dict[str, Any]]:
        given = {parameter.name for parameter in self.positional[: len(arguments)]}
        bound: dict[str, Any] = {}
        for name, value in keywords.items():
            parameter = self.named.get(name) or self.extra
            if parameter is None:
                raise InvalidArgument(f"{self.name}() has no parameter '{name}'")
            if name in given:
                raise InvalidArgument(f"{self.name}() got '{name}' twice")
            bound[name] = self._converted(parameter, name, value, codec)
        for parameter in self.positional[len(arguments) :]:
            if parameter.required and parameter.name not in bound:
                raise InvalidArgument(f"{self.name}() misses '{parameter.name}'")
        self._check_named(bound)
        self._check_count(arguments)
        self._convert(arguments, codec)
        return arguments, bound

    def _bind_odd(self, arguments: list[Any], codec: Codec) -> list[Any]:
        self._check_count(arguments)
        for parameter in self.positional[len(arguments) :]:
            if parameter.required:
                raise InvalidArgument(f"{self.name}() misses '{parameter.name}'")
        self._check_named({})
        self._convert(arguments, codec)
        return arguments

    def _check_count(self, arguments: list[Any]) -> None:
        if len(arguments) > len(self.positional) and self.rest is None:
            raise InvalidArgument(
                f"{self.name}() takes {len(self.positional)} positional arguments, got {len(arguments)}"
            )

    def _check_named(self, bound: dict[str, Any]) -> None:
        for name, parameter in self.named.items():
            if parameter.required and name not in bound and parameter not in self.positional:
                raise InvalidArgument(f"{self.name}() misses '{name}'")

    def _convert(self, arguments: list[Any], codec: Codec) -> None:
        for index, value in enumerate(arguments):
            parameter = self.positional[index] if index < len(self.positional) else self.rest
            assert parameter is not None  # the count was checked
            arguments[index] = self._converted(parameter, parameter.name, value, codec)

    def _converted(self, parameter: Parameter, name: str, value: Any, codec: Codec) -> Any:
        converter = parameter.converter
        if converter is None:
            return codec.settle(value)
        if type(value) is converter.exact:
            return value
        if converter.anything and not converter.views:
            value = codec.settle(value)
        try:
            return converter.convert(value)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"{self.name}(): '{name}': {error}") from None
        except RecursionError:
            raise InvalidArgument(f"{self.name}(): '{name}': nested too deeply") from None


def plans(service: type[Service]) -> dict[str, Plan]:
    """The methods of a service class by attribute. TypeError for a signature that cannot be served."""
    cached = service.__dict__.get("__zcrpc_plans__")
    if cached is not None:
        return typing.cast(dict[str, Plan], cached)
    made: dict[str, Plan] = {}
    for attribute in dir(service):
        wire_name = _wire_name(service, attribute)
        if wire_name is not None:
            made[attribute] = _plan(service, attribute, wire_name)
    names = [plan.name for plan in made.values()]
    for name in names:
        if names.count(name) > 1:
            raise TypeError(f"{service.__qualname__} has more than one method named '{name}'")
    service.__zcrpc_plans__ = made  # type: ignore[attr-defined]
    return made


def _wire_name(service: type[Service], attribute: str) -> str | None:
    """A method that is overridden without decorator stays one."""
    for base in service.__mro__:
        wire_name = getattr(base.__dict__.get(attribute), _MARK, None)
        if isinstance(wire_name, str):
            return wire_name
    return None


def _is_marked(service: type[Service], attribute: str, mark: str) -> bool:
    """As the definition that was decorated last says."""
    for base in service.__mro__:
        function = base.__dict__.get(attribute)
        if isinstance(getattr(function, _MARK, None), str):
            return bool(getattr(function, mark, False))
    return False


def _plan(service: type[Service], attribute: str, wire_name: str) -> Plan:
    function = getattr(service, attribute)
    name = f"{service.__zcrpc_name__}.{wire_name}"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: its annotations cannot be resolved: {error}") from error
    positional: list[Parameter] = []
    named: dict[str, Parameter] = {}
    rest = extra = incoming = None
    for index, declared in enumerate(signature.parameters.values()):
        if index == 0:
            continue  # self
        if declared.name in RESERVED and declared.kind is not declared.POSITIONAL_ONLY:
            raise TypeError(
                f"{name}: '{declared.name}' belongs to the caller; rename the parameter, or make it positional-only"
            )
        if _is_stream(hints.get(declared.name)):
            incoming = _items_parameter(name, declared, len(positional), hints[declared.name], incoming)
            continue
        parameter = Parameter(
            declared.name,
            converter(f"{name}(): '{declared.name}'", hints.get(declared.name, Any)),
            declared.default is declared.empty and declared.kind not in (declared.VAR_POSITIONAL, declared.VAR_KEYWORD),
        )
        if declared.kind is declared.VAR_POSITIONAL:
            rest = parameter
        elif declared.kind is declared.VAR_KEYWORD:
            extra = parameter
        else:
            if declared.kind is not declared.KEYWORD_ONLY:
                positional.append(parameter)
            if declared.kind is not declared.POSITIONAL_ONLY:
                named[declared.name] = parameter
    everything = [*positional, *named.values(), *(each for each in (rest, extra) if each)]
    views = any(parameter.converter is not None and parameter.converter.views for parameter in everything)
    mixed = any(parameter.converter is None or parameter.converter.anything for parameter in everything)
    outgoing = _outgoing(name, function, hints.get("return", Any))
    blocking = _is_marked(service, attribute, _BLOCKING)
    if blocking and (incoming or outgoing or inspect.iscoroutinefunction(function)):
        raise TypeError(f"{name}: only a plain function without streams can be blocking")
    needs_names = any(parameter.required and parameter not in positional for parameter in named.values())
    return Plan(
        name=name,
        attribute=attribute,
        is_async=inspect.iscoroutinefunction(function),
        positional=tuple(positional),
        named=named,
        rest=rest,
        extra=extra,
        # A keyword that must be given makes every positional call an odd one.
        required=1 << 30 if needs_names else sum(parameter.required for parameter in positional),
        result=None if outgoing else converter(f"{name}(): its result", hints.get("return", Any)),
        exact=[_Never] if needs_names else [_exact(parameter.converter) for parameter in positional],
        converts=any(parameter.converter is not None for parameter in everything),
        buffers=_mode(views, mixed),
        sole=_sole(positional, needs_names) if inspect.iscoroutinefunction(function) and incoming is None else None,
        idempotent=_is_marked(service, attribute, _IDEMPOTENT),
        blocking=blocking,
        incoming=incoming,
        outgoing=outgoing,
    )


def _sole(positional: list[Parameter], needs_names: bool) -> type[bytes] | type[memoryview] | None:
    """What the first argument is, if it can be the only one, and any buffer will do for it."""
    if needs_names or not positional or any(parameter.required for parameter in positional[1:]):
        return None
    exact = _exact(positional[0].converter)
    return bytes if exact is bytes else memoryview if exact is memoryview else None


def _mode(views: bool, mixed: bool) -> int:
    return BYTES if not views else REMEMBERED if mixed else VIEWS


def _is_stream(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in _STREAMS


def _outgoing(name: str, function: Callable[..., Any], annotation: Any) -> Items | None:
    """The items that a method yields, if it does."""
    if _is_stream(annotation):
        return _items(f"{name}()", annotation, Internal)
    if not inspect.isasyncgenfunction(function):
        return None
    if annotation is not Any:
        raise TypeError(f"{name}: an asynchronous generator returns AsyncIterator[…], not {annotation}")
    return _items(f"{name}()", AsyncIterator, Internal)


def _items_parameter(
    name: str, declared: inspect.Parameter, index: int, annotation: Any, before: ItemsParameter | None
) -> ItemsParameter:
    what = f"{name}(): '{declared.name}'"
    if before is not None:
        raise TypeError(f"{what}: a call has one stream from the caller at most, and '{before.name}' is one")
    if declared.kind in (declared.VAR_POSITIONAL, declared.VAR_KEYWORD):
        raise TypeError(f"{what}: a call has one stream from the caller at most")
    if declared.default is not declared.empty:
        raise TypeError(f"{what}: a stream from the caller has no default")
    if declared.kind is declared.KEYWORD_ONLY:
        index = -1
    return ItemsParameter(declared.name, index, _items(what, annotation, InvalidArgument))


def _items(what: str, annotation: Any, error: type[ZcrpcError]) -> Items:
    """How the items of AsyncIterator[T] arrive."""
    item = (*typing.get_args(annotation), Any)[0]
    one = converter(f"{what}: its items", item)
    many = converter(f"{what}: its items", types.GenericAlias(list, (item,))) if one is not None else None
    return Items(what, one, many, _mode(one is not None and one.views, one is None or one.anything), error)


def items(annotation: Any) -> Items:
    """How the items of a stream become what the caller asked for with `returns=`."""
    return _items("the stream", AsyncIterator[annotation], Internal)


class _Never:
    """No value is of exactly this type."""


def _exact(converter: Converter | None) -> type:
    return _Never if converter is None or converter.exact is None else converter.exact
