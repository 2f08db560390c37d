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
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar, overload

import msgspec

from zcrpc.codec import BYTES, REMEMBERED, VIEWS, Codec
from zcrpc.conversion import Converter, converter
from zcrpc.errors import InvalidArgument

Function = TypeVar("Function", bound=Callable[..., Any])

# Keywords of the caller's side of a call; a parameter of that name could not be given by keyword.
RESERVED: Final = frozenset({"timeout", "returns"})
_MARK: Final = "__zcrpc_method__"


@overload
def method(function: Function, /) -> Function: ...
@overload
def method(*, name: str | None = None) -> Callable[[Function], Function]: ...
def method(
    function: Function | None = None, /, *, name: str | None = None
) -> Function | Callable[[Function], Function]:
    """Makes a function of a `Service`, `async def` or plain, callable from afar. A plain one runs in the event loop and
    must not block.

    `name`: what it is called on the wire, if not by its own name.
    """

    def mark(function: Function) -> Function:
        if not inspect.isfunction(function):
            raise TypeError(f"@method is for functions, not for {function!r}")
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__}: a method returns one result; generators cannot be served")
        setattr(function, _MARK, name or function.__name__)
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
    rest = extra = None
    for index, declared in enumerate(signature.parameters.values()):
        if index == 0:
            continue  # self
        if declared.name in RESERVED and declared.kind is not declared.POSITIONAL_ONLY:
            raise TypeError(
                f"{name}: '{declared.name}' belongs to the caller; rename the parameter, or make it positional-only"
            )
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
        result=converter(f"{name}(): its result", hints.get("return", Any)),
        exact=[_Never] if needs_names else [_exact(parameter.converter) for parameter in positional],
        converts=any(parameter.converter is not None for parameter in everything),
        buffers=BYTES if not views else REMEMBERED if mixed else VIEWS,
    )


class _Never:
    """No value is of exactly this type."""


def _exact(converter: Converter | None) -> type:
    return _Never if converter is None or converter.exact is None else converter.exact
