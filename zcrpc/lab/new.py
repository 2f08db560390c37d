"""A new lock strategy, to start from: a directory with a C file, the command that builds it, and its tests."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

from zcrpc import locks

_FILES: Final = {
    "lock.c.txt": "{file}.c",
    "Makefile.txt": "Makefile",
    "test.py.txt": "test_{file}.py",
    "pytest.ini.txt": "pytest.ini",
}


def write(name: str, parent: Path) -> list[Path]:
    """Writes a working example of a strategy called `name` into a new directory of that name in `parent`.

    Returns the files. Raises ValueError for a name that no strategy can have or that one has already, and OSError,
    FileExistsError above all, where the directory cannot be made.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name):
        raise ValueError(f"a strategy's name is up to 40 of a-z, 0-9 and -, and begins with a letter; not {name!r}")
    if name in (*locks.names(), "none"):
        raise ValueError(f'there is a strategy named "{name}" already')
    file = name.replace("-", "_")
    directory = parent / name
    directory.mkdir(parents=True)
    written = []
    for source, target in _FILES.items():
        text = (files("zcrpc.lab") / "example" / source).read_text(encoding="utf-8")
        path = directory / target.format(file=file)
        path.write_text(text.replace("@NAME@", name).replace("@FILE@", file), encoding="utf-8")
        written.append(path)
    return written
