"""Lock strategies from outside, for tests: the example of `zcrpc lab new` with something changed, built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from zcrpc import locks
from zcrpc.lab import new

CC = os.environ.get("CC", "cc")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def build(source: Path) -> Path:
    plugin = source.with_suffix(".so")
    flags = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{locks.include_directory()}", "-fPIC", "-shared")
    done = run(CC, *flags, "-o", plugin, source)
    assert done.returncode == 0, done.stderr
    return plugin


def changed(directory: Path, name: str, *changes: tuple[str, str]) -> Path:
    """The example under another name and with something changed, built."""
    source = new.write(name, directory)[0]
    text = source.read_text()
    for old, fresh in changes:
        assert old in text
        text = text.replace(old, fresh)
    source.write_text(text)
    return build(source)
