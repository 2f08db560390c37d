"""Files of results: what is written is read again, and what is no such file is refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from zcrpc.lab import results
from zcrpc.lab.results import UnreadableResults


@dataclass
class Row:
    strategy: str
    seconds: float


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    results.write(path, "seed", [Row("global", 0.5), {"strategy": "range"}], {"locks": ("global",)})
    return path


def test_what_is_written_is_read(written: Path) -> None:
    found = results.read(written)
    assert found.kind == "seed"
    assert found.rows == [{"strategy": "global", "seconds": 0.5}, {"strategy": "range"}]
    assert found.settings == {"locks": ["global"]}
    assert abs((datetime.now(UTC) - found.when).total_seconds()) < 60


def test_the_machine_is_named(written: Path) -> None:
    machine = results.read(written).machine
    assert machine == results.this_machine()
    assert machine.kernel == os.uname().release
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert machine.processor


def test_every_cut_is_refused_by_name(written: Path) -> None:
    whole = written.read_bytes().rstrip()
    for length in range(len(whole)):
        written.write_bytes(whole[:length])
        with pytest.raises(UnreadableResults, match=r"results\.json is not whole JSON"):
            results.read(written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no results file of zcrpc"),
        ({"rows": []}, "is no results file of zcrpc"),
        ({"zcrpc_results": 2}, "has version 2, not 1"),
        ({"zcrpc_results": None}, "has version None, not 1"),
        ({"zcrpc_results": 1}, "is not as results are"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UnreadableResults, match=f"other.json {message}"):
        results.read(path)


def test_rows_must_be_objects(written: Path) -> None:
    content = json.loads(written.read_text())
    content["rows"] = [1]
    written.write_text(json.dumps(content))
    with pytest.raises(UnreadableResults, match=r"Expected `object`, got `int` - at `\$\.rows"):
        results.read(written)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableResults, match=r"cannot read .*: No such file"):
        results.read(tmp_path / "absent.json")
    with pytest.raises(UnreadableResults, match=r"cannot read .*: Is a directory"):
        results.read(tmp_path)


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(results.LARGEST_FILE + 1)
    with pytest.raises(UnreadableResults, match="is larger than 64 MiB"):
        results.read(path)
