"""The documentation's Python runs: all of a page together, from above to below."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _EXAMPLE.search(page.read_text())], ids=lambda page: page.stem
)
def test_examples_run(page: Path) -> None:
    program = "\n".join(_EXAMPLE.findall(page.read_text()))
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
