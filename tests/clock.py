"""The deadlines of one connection, with a time of their own."""

from typing import Protocol


class Expires(Protocol):
    def expire(self) -> None: ...


class Clock:
    """Stands where a connection and its deadlines would. `said` is what was done, and when; subclasses say it."""

    item: Expires

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[tuple[str, float]] = []
        self.due: float | None = None

    def watch(self, seconds: float, item: Expires) -> int:
        self.due = self.now + seconds
        return 1

    def unwatch(self, tick: int, item: Expires) -> None:
        self.due = None

    def run(self, until: float) -> None:
        while self.due is not None and self.due <= until:
            self.now, self.due = self.due, None
            self.item.expire()
        self.now = until
