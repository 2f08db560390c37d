"""A plugin for mypy: calls of a service's methods take what a typed client takes.

    [tool.mypy]
    plugins = ["zcrpc.mypy"]

A typed client is of the service's own class, and its methods have that class's signatures. At run time they take more:
`timeout=`, `metadata=`, `wait_for_ready=` and, for one result, `idempotent=`, and any buffer where the service will get
`bytes` or a `memoryview`. Python's types have no way to say "the same parameters, but"; here it is said for mypy. What
else is called on an object of the service's class, such as in the service itself, is checked no more strictly than
that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy.nodes import ARG_NAMED_OPT, ARG_STAR2, CallExpr, Decorator, RefExpr, SymbolTableNode, TypeInfo
from mypy.plugin import MethodSigContext, Plugin
from mypy.types import FunctionLike, Instance, NoneType, Type, UnionType, get_proper_type

_DECORATOR: Final = "zcrpc.service.method"
_BUFFERS: Final = frozenset({"builtins.bytes", "builtins.bytearray", "builtins.memoryview"})


class ZcrpcPlugin(Plugin):
    """Changes the signatures of what `@zcrpc.method` marks."""

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        owner, _, name = fullname.rpartition(".")
        found = self.lookup_fully_qualified(owner)
        if found is None or not isinstance(found.node, TypeInfo):
            return None
        # A method that is overridden without decorator stays one.
        for base in found.node.mro:
            if _is_marked(base.names.get(name)):
                return _as_called
        return None


def _is_marked(found: SymbolTableNode | None) -> bool:
    if found is None or not isinstance(found.node, Decorator):
        return False
    for decorator in found.node.original_decorators:
        callee = decorator.callee if isinstance(decorator, CallExpr) else decorator
        if isinstance(callee, RefExpr) and callee.fullname == _DECORATOR:
            return True
    return False


def _as_called(context: MethodSigContext) -> FunctionLike:
    signature = context.default_signature
    buffer = context.api.named_generic_type("typing_extensions.Buffer", [])
    taken = [_or_buffer(each, buffer) for each in signature.arg_types]
    named = context.api.named_generic_type
    seconds = UnionType([named("builtins.float", []), NoneType()])
    text = named("builtins.str", [])
    metadata = UnionType([named("typing.Mapping", [text, UnionType([text, named("builtins.bytes", [])])]), NoneType()])
    added: dict[str, Type] = {
        "timeout": seconds,
        "metadata": metadata,
        "wait_for_ready": UnionType([named("builtins.bool", []), NoneType()]),
    }
    result = get_proper_type(signature.ret_type)
    if isinstance(result, Instance) and result.type.fullname == "typing.Coroutine":  # not a stream
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
