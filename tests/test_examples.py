"""The examples run as their readers would run them, and print what they should."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

PRINTS = {
    "authorisation": [
        "written by alice",
        "bob reads hello",
        "bob may not call Notes.write() {'needs': 'writer'}",
        "bob may not call Notes.forgotten() {'needs': None}",
        "refused: no such token",
    ],
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("*.py"))])
def test_prints(name: str) -> None:
    command = [sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTS[name]
