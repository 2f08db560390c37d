"""Processes of an experiment: a module of the laboratory run as a child that takes its options and gives its results
as JSON lines.

A child has a session of its own, so that Ctrl-C reaches only the parent, which then decides what becomes of what was
measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from zcrpc import locks

T = TypeVar("T")


class ChildFailed(Exception):
    """A child ended before it gave its result; says what it wrote to standard error last."""


class Child:
    """A running `python -m <module>`. Use as a context manager: leaving it ends the process.

    Args:
        module: run with ``-m``; its main calls `serve`.
        options: a dataclass, sent as JSON.
        found_in: a folder that the module is looked for in, besides where Python looks anyway.
    """

    def __init__(self, module: str, options: Any, *, found_in: Path | None = None) -> None:
        self.module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(found_in),
        )
        self.send(options)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Sends a message to the child. Raises `ChildFailed` if it is gone."""
        try:
            stream = _stream(self._process.stdin)
            stream.write(msgspec.json.encode(message) + b"\n")
            stream.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def receive(self, kind: type[T]) -> T:
        """The child's next message; waits for it. Raises `ChildFailed` if it ended instead."""
        line = _stream(self._process.stdout).readline()
        if not line:
            raise self._failure()
        return msgspec.json.decode(line, type=kind)

    def _failure(self) -> ChildFailed:
        self._process.wait()
        said = _stream(self._process.stderr).read().decode(errors="replace").strip().splitlines()
        return ChildFailed(
            f"{self.module} ended with status {self._process.returncode}: {said[-1] if said else 'no message'}"
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            _stream(stream).close()


def _environment(found_in: Path | None) -> dict[str, str]:
    environment = locks.environment()
    if found_in is not None:
        paths = (str(found_in), environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def serve(kind: type[T], work: Callable[[T], Any]) -> None:
    """A child's main: reads its options, does the work, writes the result. Errors go to standard error, status 1."""
    try:
        say(work(hear(kind)))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")


def hear(kind: type[T]) -> T:
    """In a child: the parent's next message. Raises `EOFError` if the parent is gone."""
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError("the parent has gone")
    return msgspec.json.decode(line, type=kind)


def say(message: Any) -> None:
    """In a child: sends a message to the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # all three are pipes
    return stream
