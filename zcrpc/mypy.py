"""A plugin for mypy: calls of a service's methods take `timeout=` besides what the method does.

    [tool.mypy]
    plugins = ["zcrpc.mypy"]

Python's types have no way to say "the same parameters, and one more by keyword", so a typed client, which is of the
service's own class, has no such parameter for other type checkers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy.nodes import ARG_NAMED_OPT, ARG_STAR2, CallExpr, Decorator, RefExpr, SymbolTableNode, TypeInfo
from mypy.plugin import MethodSigContext, Plugin
from mypy.types import FunctionLike, NoneType, UnionType

_DECORATOR: Final = "zcrpc.service.method"


class ZcrpcPlugin(Plugin):
    """Adds the caller's keywords to what `@zcrpc.method` marks."""

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        owner, _, name = fullname.rpartition(".")
        found = self.lookup_fully_qualified(owner)
        if found is None or not isinstance(found.node, TypeInfo):
            return None
        # A method that is overridden without decorator stays one.
        for base in found.node.mro:
            if _is_marked(base.names.get(name)):
                return _with_timeout
        return None


def _is_marked(found: SymbolTableNode | None) -> bool:
    if found is None or not isinstance(found.node, Decorator):
        return False
    for decorator in found.node.original_decorators:
        callee = decorator.callee if isinstance(decorator, CallExpr) else decorator
        if isinstance(callee, RefExpr) and callee.fullname == _DECORATOR:
            return True
    return False


def _with_timeout(context: MethodSigContext) -> FunctionLike:
    signature = context.default_signature
    seconds = UnionType([context.api.named_generic_type("builtins.float", []), NoneType()])
    at = len(signature.arg_kinds) - (ARG_STAR2 in signature.arg_kinds)  # before **keywords
    return signature.copy_modified(
        arg_types=[*signature.arg_types[:at], seconds, *signature.arg_types[at:]],
        arg_kinds=[*signature.arg_kinds[:at], ARG_NAMED_OPT, *signature.arg_kinds[at:]],
        arg_names=[*signature.arg_names[:at], "timeout", *signature.arg_names[at:]],
    )


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for."""
    return ZcrpcPlugin
