"""Introspection: what a server serves, told by itself.

async for found in client.use(zcrpc.Reflection).describe("Store"):
    print(found.name, found.signature)                                # Store.put (key: str, value: memoryview) -> int
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import msgspec

from zcrpc.errors import NotFound
from zcrpc.interceptors import kind_of
from zcrpc.service import Plan, Service, method, plans

# Of a method's description; a description without schemas is sent in place of a longer one. Half the smallest limit of
# headers that is any use.
_MOST_BYTES: Final = 32 << 10


class ServiceDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A service: its name on the wire, the docstring of its class, and its methods."""

    name: str
    doc: str
    methods: list[str]


class ParameterDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter. `annotation`: as it is written. `schema`: JSON Schema of what it takes, where that can be said;
    bytes, in whatever form they arrive, are strings of base64 there. `stream`: it is the stream of items from the
    caller, which annotation and schema are of."""

    name: str
    annotation: str
    required: bool
    positional: bool
    named: bool
    stream: bool = False
    schema: dict[str, Any] | None = None


class MethodDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A method. `name`: as it is called. `kind`: unary, server-stream, client-stream or bidi-stream. `signature`: as in
    the source, without self. `result`: its annotation, and `result_schema`, are of each item where results are a
    stream."""

    name: str
    kind: str
    signature: str
    doc: str
    parameters: list[ParameterDescription]
    result: str
    result_schema: dict[str, Any] | None = None


class Reflection(Service, name="zcrpc.Reflection"):
    """What the server serves. Every `zcrpc.Server` has it, unless it is made with introspection=False."""

    def __init__(self, services: Iterable[type[Service]] = ()) -> None:
        self._services = {service.__zcrpc_name__: service for service in services}

    @method
    async def services(self) -> AsyncIterator[ServiceDescription]:
        """All services."""
        for name, service in self._services.items():
            yield ServiceDescription(
                name=name,
                doc=inspect.cleandoc(service.__doc__ or ""),
                methods=[plan.name for plan in plans(service).values()],
            )

    @method
    async def describe(self, service: str = "") -> AsyncIterator[MethodDescription]:
        """The methods of a service, or of all of them (""); or a single method, by its full name. NotFound if there is
        neither a service nor a method of that name."""
        found = [
            (each, plan)
            for name, each in self._services.items()
            for plan in plans(each).values()
            if service in ("", name, plan.name)
        ]
        if not found:
            raise NotFound(f"there is no service and no method {service!r}")
        for each, plan in found:
            yield _bounded(describe(each, plan))


def describe(service: type[Service], plan: Plan) -> MethodDescription:
    """A method of a service."""
    function = getattr(service, plan.attribute)
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    declared = list(signature.parameters.values())[1:]  # without self
    result = hints.get("return", Any)
    if plan.outgoing is not None:
        result = _item(result)
    return MethodDescription(
        name=plan.name,
        kind=kind_of(plan),
        signature=str(
            signature.replace(
                parameters=[each.replace(annotation=_bare(each.annotation)) for each in declared],
                return_annotation=_bare(signature.return_annotation),
            )
        ),
        doc=inspect.getdoc(function) or "",
        parameters=[_parameter(each, hints.get(each.name, Any), plan) for each in declared],
        result=_written(result),
        result_schema=schema(result),
    )


def _parameter(declared: inspect.Parameter, annotation: Any, plan: Plan) -> ParameterDescription:
    stream = plan.incoming is not None and plan.incoming.name == declared.name
    if stream:
        annotation = _item(annotation)
    stars = "*" if declared.kind is declared.VAR_POSITIONAL else "**" if declared.kind is declared.VAR_KEYWORD else ""
    return ParameterDescription(
        name=stars + declared.name,
        annotation=_written(annotation),
        required=declared.default is declared.empty and not stars,
        positional=declared.kind not in (declared.KEYWORD_ONLY, declared.VAR_KEYWORD),
        named=declared.kind not in (declared.POSITIONAL_ONLY, declared.VAR_POSITIONAL),
        stream=stream,
        schema=schema(annotation),
    )


def _item(stream: Any) -> Any:
    """What a stream is of."""
    return (*typing.get_args(stream), Any)[0]


class _Bare:
    """An annotation that is a string, shown without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _written(annotation: Any) -> str:
    return "None" if annotation is type(None) else inspect.formatannotation(annotation)


def schema(annotation: Any) -> dict[str, Any] | None:
    """JSON Schema (2020-12) of a type; None if anything goes, or nothing can be said. What msgspec has no word for is
    named in `x-python-type`."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return None
    try:
        return msgspec.json.schema(annotation, schema_hook=_unknown)
    except (TypeError, ValueError, RecursionError):
        return None


def _unknown(kind: type) -> dict[str, Any]:
    return {"x-python-type": f"{kind.__module__}.{kind.__qualname__}"}


def _bounded(description: MethodDescription) -> MethodDescription:
    if len(msgspec.msgpack.encode(description)) <= _MOST_BYTES:
        return description
    bare = [msgspec.structs.replace(each, schema=None) for each in description.parameters]
    return msgspec.structs.replace(description, parameters=bare, result_schema=None)
