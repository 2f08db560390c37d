"""One question about the host, and its answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, ParamSpec, TypeAlias

P = ParamSpec("P")
Verdict: TypeAlias = Literal["good", "note", "bad", "unknown"]


@dataclass(slots=True, frozen=True)
class Finding:
    """What was found, what that means for zcrpc, and what can be done about it.

    verdict: "good"; "note", which costs something; "bad", without which payloads cannot be mapped; "unknown".
    """

    name: str
    verdict: Verdict
    found: str
    means: str
    to_do: str = ""


class Unanswered(Exception):
    """It cannot be found out; says why."""


def answered(name: str, question: Callable[P, Finding], *args: P.args, **kwargs: P.kwargs) -> Finding:
    """The answer under its name; "unknown", with the reason, if there is none to be had."""
    try:
        return replace(question(*args, **kwargs), name=name)
    except Unanswered as error:
        why = str(error)
    except OSError as error:
        why = f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    except (ValueError, IndexError) as error:
        why = f"not as expected: {error}"
    return Finding(name, "unknown", why, "cannot be found out here")


def reason(error: OSError) -> str:
    """Why a call failed, and who may have forbidden it."""
    text = os.strerror(error.errno) if error.errno else str(error)
    return f"{text}; a seccomp filter or a container may forbid it" if isinstance(error, PermissionError) else text
