"""What the native drivers report, as Python sees it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Latency:
    """A distribution of durations, in µs. Percentiles are exact to 1/64 of themselves."""

    samples: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    max_us: float = 0.0
    mean_us: float = 0.0


def from_struct(kind: type[T], struct: Any) -> T:
    """A dataclass from the C struct that has the same field names; nested `Latency` structs included."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(struct, field.name)
        values[field.name] = from_struct(Latency, value) if field.type == "Latency" else value
    return kind(**values)
