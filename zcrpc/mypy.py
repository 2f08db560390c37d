"""A plugin for mypy: calls of a service's methods take what a typed client takes, and give what it gives.

    [tool.mypy]
    plugins = ["zcrpc.mypy"]

A typed client is of the service's own class, and its methods have that class's signatures. At run time they take more:
`timeout=`, `metadata=`, `wait_for_ready=` and, for one result, `idempotent=`, and any buffer where the service will get
`bytes` or a `memoryview`. Python's types have no way to say "the same parameters, but"; here it is said for mypy. What
else is called on an object of the service's class, such as in the service itself, is checked no more strictly than
that.

A plain function among the methods gives at a client what can be awaited, and to the service itself what it returns: so
`self.method()` is the latter, and on any other object of the class it is taken for a client's.

`zcrpc.blocking.Typed[Store]` has the methods of Store, which give their results themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from mypy.nodes import (
    ARG_NAMED_OPT,
    ARG_STAR2,
    CallExpr,
    Context,
    Decorator,
    MemberExpr,
    NameExpr,
    RefExpr,
    SymbolTableNode,
    TypeInfo,
    Var,
)
from mypy.plugin import AttributeContext, CheckerPluginInterface, MethodSigContext, Plugin
from mypy.subtypes import find_member
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    NoneType,
    Type,
    TypeOfAny,
    UnionType,
    get_proper_type,
)

_DECORATOR: Final = "zcrpc.service.method"
_BUFFERS: Final = frozenset({"builtins.bytes", "builtins.bytearray", "builtins.memoryview"})
_STREAMS: Final = frozenset({"typing.AsyncIterator", "typing.AsyncIterable", "typing.AsyncGenerator"})
_TYPED: Final = "zcrpc.blocking.Typed"
_OF_THE_CLIENT: Final = frozenset({"close", "ping", "stats"})  # where the service has no such method


class ZcrpcPlugin(Plugin):
    """Changes the signatures of what `@zcrpc.method` marks."""

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        owner, _, name = fullname.rpartition(".")
        found = self.lookup_fully_qualified(owner)
        if found is None or not isinstance(found.node, TypeInfo):
            return None
        return _as_called if _is_method(found.node, name) else None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        owner, _, name = fullname.rpartition(".")
        return partial(_of_typed, name) if owner == _TYPED else None


def _is_method(service: TypeInfo, name: str) -> bool:
    """A method that is overridden without decorator stays one."""
    return any(_is_marked(base.names.get(name)) for base in service.mro)


def _is_marked(found: SymbolTableNode | None) -> bool:
    if found is None or not isinstance(found.node, Decorator):
        return False
    for decorator in found.node.original_decorators:
        callee = decorator.callee if isinstance(decorator, CallExpr) else decorator
        if isinstance(callee, RefExpr) and callee.fullname == _DECORATOR:
            return True
    return False


def _as_called(context: MethodSigContext) -> FunctionLike:
    """A method of a service, or of a typed client: of the same class for all that mypy knows."""
    signature = _taking_more(context.default_signature, context.api)
    result = signature.ret_type
    if _name(result) == "typing.Coroutine" or _name(result) in _STREAMS or _is_on_self(context.context):
        return signature
    unknown = AnyType(TypeOfAny.special_form)
    awaited = context.api.named_generic_type("typing.Coroutine", [unknown, unknown, result])
    return signature.copy_modified(ret_type=awaited)


def _is_on_self(call: Context) -> bool:
    if not isinstance(call, CallExpr) or not isinstance(call.callee, MemberExpr):
        return False
    subject = call.callee.expr
    return isinstance(subject, NameExpr) and isinstance(subject.node, Var) and subject.node.is_self


def _of_typed(name: str, context: AttributeContext) -> Type:
    """An attribute of `zcrpc.blocking.Typed[service]`."""
    owner = get_proper_type(context.type)
    service = get_proper_type(owner.args[0]) if isinstance(owner, Instance) and owner.args else None
    if not isinstance(service, Instance):
        return context.default_attr_type
    if _is_method(service.type, name):
        found = get_proper_type(find_member(name, service, service))
        return _as_blocking(found, context.api) if isinstance(found, CallableType) else context.default_attr_type
    client = context.api.named_generic_type("zcrpc.blocking.Client", [])
    if name == "client":
        return client
    if name in _OF_THE_CLIENT and (found_there := find_member(name, client, client)) is not None:
        return found_there
    context.api.fail(f'"{service.type.name}" has no method "{name}"', context.context)
    return AnyType(TypeOfAny.from_error)


def _as_blocking(method: CallableType, api: CheckerPluginInterface) -> CallableType:
    method = _taking_more(method, api)
    taken = [_iterable(each, api) for each in method.arg_types]
    result = get_proper_type(method.ret_type)
    if isinstance(result, Instance) and result.type.fullname == "typing.Coroutine":
        return method.copy_modified(arg_types=taken, ret_type=result.args[2])
    if isinstance(result, Instance) and result.type.fullname in _STREAMS:
        items = api.named_generic_type("zcrpc.blocking.Items", [result.args[0]])
        return method.copy_modified(arg_types=taken, ret_type=items)
    return method.copy_modified(arg_types=taken)


def _iterable(kind: Type, api: CheckerPluginInterface) -> Type:
    """A parameter's type; any iterable, if it is a stream of items."""
    proper = get_proper_type(kind)
    if isinstance(proper, Instance) and proper.type.fullname in _STREAMS:
        return api.named_generic_type("typing.Iterable", [proper.args[0]])
    return kind


def _name(kind: Type) -> str:
    proper = get_proper_type(kind)
    return proper.type.fullname if isinstance(proper, Instance) else ""


def _taking_more(signature: CallableType, api: CheckerPluginInterface) -> CallableType:
    """The signature, with the options of a call."""
    named = api.named_generic_type
    buffer = named("typing_extensions.Buffer", [])
    taken = [_or_buffer(each, buffer) for each in signature.arg_types]
    seconds = UnionType([named("builtins.float", []), NoneType()])
    text = named("builtins.str", [])
    metadata = UnionType([named("typing.Mapping", [text, UnionType([text, named("builtins.bytes", [])])]), NoneType()])
    added: dict[str, Type] = {
        "timeout": seconds,
        "metadata": metadata,
        "wait_for_ready": UnionType([named("builtins.bool", []), NoneType()]),
    }
    if _name(signature.ret_type) not in _STREAMS:
        added["idempotent"] = named("builtins.bool", [])
    at = len(signature.arg_kinds) - (ARG_STAR2 in signature.arg_kinds)  # before **keywords
    return signature.copy_modified(
        arg_types=[*taken[:at], *added.values(), *taken[at:]],
        arg_kinds=[*signature.arg_kinds[:at], *[ARG_NAMED_OPT] * len(added), *signature.arg_kinds[at:]],
        arg_names=[*signature.arg_names[:at], *added, *signature.arg_names[at:]],
    )


def _or_buffer(kind: Type, buffer: Instance) -> Type:
    """A parameter's type; any buffer as well, if it is one."""
    proper = get_proper_type(kind)
    parts = proper.items if isinstance(proper, UnionType) else [kind]
    for part in map(get_proper_type, parts):
        if isinstance(part, Instance) and part.type.fullname in _BUFFERS:
            return UnionType([*parts, buffer])
    return kind


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for."""
    return ZcrpcPlugin
