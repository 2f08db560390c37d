"""Each layer has its logger, and the documentation knows all of them."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_logger_is_documented_and_no_other() -> None:
    table = re.findall(r"^\| `(zcrpc\.\w+)` \|", (ROOT / "docs" / "observability.md").read_text(), re.MULTILINE)
    used = {
        name
        for path in (ROOT / "zcrpc").rglob("*.py")
        for name in re.findall(r'getLogger\("(zcrpc\.\w+)"\)', path.read_text())
    }
    assert sorted(table) == sorted(used)
