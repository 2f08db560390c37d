"""Figures beside their targets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Figure:
    """One line of the table: what was to be reached, and what was."""

    what: str
    target: str
    measured: str
    reached: bool


@dataclass(slots=True, frozen=True)
class Settings:
    """How much is measured."""

    rounds: int
    soak_calls: int
