"""Makes lists of what docstrings say of parameters and fields, for the reference.

zcrpc's docstrings are plain text: `name: meaning`, a line each or one after the other. Markdown would make one
paragraph of them. Counters and gauges say what they are where they are declared, see zcrpc/counting.py.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Attribute, Class, Docstring, ExprCall, Extension, Function, Object


class Parameters(Extension):
    """Rewrites docstrings before they are rendered."""

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        _rewrite(func, {parameter.name for parameter in func.parameters})

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        declared = attr.value
        if isinstance(declared, ExprCall) and str(declared.function) in ("counter", "gauge"):
            attr.docstring = Docstring(ast.literal_eval(str(declared.arguments[0])), parent=attr)
            attr.value = None

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        names = {name for name, member in cls.members.items() if isinstance(member, Attribute)}
        for method in (cls.members.get("__init__"), cls.members.get("__new__")):
            if isinstance(method, Function):
                names |= {parameter.name for parameter in method.parameters}
        _rewrite(cls, names)


def _rewrite(thing: Object, names: set[str]) -> None:
    if thing.docstring is not None and names:
        thing.docstring = Docstring(
            listed(thing.docstring.value, names),
            lineno=thing.docstring.lineno,
            endlineno=thing.docstring.endlineno,
            parent=thing,
        )


def listed(text: str, names: set[str]) -> str:
    """The docstring, with a list where a paragraph begins with one of the names and a colon."""
    either = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    # `a`, `b`: or a, b: at the beginning of the paragraph, or of a sentence in it.
    label = re.compile(rf"(?:^|(?<=[.;:)] )|(?<=\n))((?:`?(?:{either})`?(?:, )?)+)(?: \([^)]*\))?: ")
    return "\n\n".join(_paragraph(part, label) for part in re.split(r"\n{2,}", text))


def _paragraph(text: str, label: re.Pattern[str]) -> str:
    flat = re.sub(r"\n(?:    )?(?! )", " ", text)
    found = list(label.finditer(flat))
    if text.startswith(" ") or not found:
        return text
    ends = [match.start() for match in found[1:]] + [len(flat)]
    items = [(match.group(1), flat[match.end() : end].strip(" ;")) for match, end in zip(found, ends, strict=True)]
    last, *rest = re.split(r"(?<=\.) (?=Raises |In a handler)", items[-1][1], maxsplit=1)
    items[-1] = (items[-1][0], last)
    rows = "\n".join(f"- {_code(name)}: {meaning}" for name, meaning in items)
    return "\n\n".join(filter(None, [flat[: found[0].start()].strip(), rows, *rest]))


def _code(names: str) -> str:
    return ", ".join(f"`{name.strip('` ')}`" for name in names.split(",") if name.strip())
