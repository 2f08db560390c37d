"""The documentation is true: its Python runs, its commands print what it says, and every page and every name can be
found.

All of a page runs together, from above to below, in a directory of its own: first its commands, then its Python. What
is marked as `py` or `text` rather than `python` or `console` is only shown.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zcrpc

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Those that talk to a running server are run by tests/test_commands.py.
_CONSOLE = re.compile(r"^```console\n((?:(?!```|.*tcp://).*\n)*)```$", re.MULTILINE)
# A measured value, with its unit: 45.8k, 2,827, 100 %, 1.2e3, – for none.
_NUMBER = re.compile(r"[±]?(?:\d[\d,.]*(?:e[+-]?\d+)?[kM]?|–)(?![\w-])")


def having(example: re.Pattern[str]) -> list[Path]:
    return [page for page in PAGES if example.search(page.read_text())]


def run(command: list[str], directory: Path, seconds: float) -> "subprocess.CompletedProcess[str]":
    own = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{own}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds)


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def form(line: str) -> str:
    """A line without what differs from run to run: values, rules and the space between columns."""
    return " ".join(_NUMBER.sub("#", re.sub("[─-]{3,}", "", line)).split())


def missing(expected: list[str], printed: str) -> list[str]:
    """What of the lines, apart from those that stand for any others (…), is not printed in that order."""
    there = iter([form(line) for line in printed.splitlines()])
    lines = [form(line.removesuffix("...")) for line in expected]
    return [line for line in lines if line and not any(line in each for each in there)]


@pytest.mark.parametrize("page", sorted({*having(_PYTHON), *having(_CONSOLE)}), ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    for block in _CONSOLE.findall(text):
        for command, expected in commands(block):
            done = run(["bash", "-c", command], tmp_path, 120)
            assert done.returncode == 0, done.stderr
            assert not missing(expected, done.stdout), f"$ {command}\n{done.stdout}"
    done = run([sys.executable, "-W", "error", "-c", "\n".join(_PYTHON.findall(text))], tmp_path, 60)
    assert done.returncode == 0, done.stderr


def test_what_is_printed_is_compared() -> None:
    printed = "  requests/s   45.8k ±862   1.2k ±3.1\n ─────\n per-region  1.50  –\n"
    assert not missing(["requests/s 1 ±2 3k ±4", "...", "per-region 2.5 8,000"], printed)
    assert missing(["per-region 1 2", "requests/s 1 ±2 3k ±4"], printed)
    assert missing(["requests 1 ±2"], printed)
    assert missing(["global 1 2"], printed)


def test_every_name_is_in_the_reference() -> None:
    described = re.findall(r"^::: (zcrpc\S*)$", (DOCS / "reference.md").read_text(), re.MULTILINE)
    assert len(set(described)) == len(described)
    assert set(zcrpc.__all__) <= {name.rpartition(".")[2] for name in described}


def test_every_page_is_in_the_menu() -> None:
    pages = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(set(pages)) == len(pages)
    assert set(pages) == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.skipif(shutil.which("mkdocs", path=Path(sys.executable).parent) is None, reason="needs zcrpc[docs]")
def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly: links lead somewhere, names of the reference are there. And nothing is loaded from elsewhere."""
    done = run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "-q",
            "--strict",
            "-f",
            f"{ROOT}/mkdocs.yml",
            "-d",
            f"{tmp_path}/site",
        ],
        ROOT,
        240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=\"?(https?:)", page.read_text())
        assert not fetched, page


def test_what_docstrings_say_of_parameters_becomes_a_list() -> None:
    pytest.importorskip("griffe")
    sys.path.insert(0, str(DOCS))
    try:
        from docstrings import listed
    finally:
        sys.path.remove(str(DOCS))
    text = (
        "Calls it.\n\na: one thing,\n    over two lines.\nb, c: two; see d: not a name.\n\n"
        "First. `a`: again. b: more. Raises ValueError.\n\n    a: code"
    )
    assert listed(text, {"a", "b", "c"}) == (
        "Calls it.\n\n- `a`: one thing, over two lines.\n- `b`, `c`: two; see d: not a name.\n\n"
        "First.\n\n- `a`: again.\n- `b`: more.\n\nRaises ValueError.\n\n    a: code"
    )
