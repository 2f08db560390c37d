"""The command line, run as a user does: in a process, on its real experiments, kept short."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ZCRPC = [sys.executable, "-c", "from zcrpc.cli import main; main()"]
SHORT = ["--connections", "8", "--seconds", "0.3", "--rounds", "1"]
FIELDS = {
    "strategy": str,
    "scenario": str,
    "round": int,
    "requests_per_second": float,
    "server_cpu_us_per_request": float,
    "lock_path_share_percent": float,
    "lock_wait_p50_us": float,
    "lock_wait_p99_us": float,
    "lock_wait_p999_us": float,
    "lock_wait_max_us": float,
    "receive_p50_us": float,
    "receive_p99_us": float,
    "receive_p999_us": float,
    "receive_max_us": float,
    "mapped_percent": float,
    "fallback_percent": float,
    "preempted_samples": int,
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ZCRPC, *arguments], capture_output=True, text=True, timeout=120, check=False)


def all_of(terminal: int) -> str:
    """What is written to a terminal until nobody has its other end."""
    seen = b""
    with contextlib.suppress(OSError):  # EIO at the end
        while part := os.read(terminal, 1 << 16):
            seen += part
    return seen.decode(errors="replace")


def heed_interrupts() -> None:
    """In the child: a shell that runs these tests in the background has them ignore SIGINT, and children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(seconds: float, *arguments: str, patience: float = 20) -> subprocess.CompletedProcess[str]:
    """A run that gets an interrupt after so long, and then has `patience` seconds to end."""
    process = subprocess.Popen(
        [*ZCRPC, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    try:
        stdout, stderr = process.communicate(timeout=patience)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class TestSeed:
    def test_json_and_table(self, tmp_path: Path) -> None:
        target = tmp_path / "rounds.json"
        done = run("lab", "seed", "--connections", "8", "--seconds", "0.6", "--rounds", "2", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        rows = json.loads(target.read_text())["rows"]
        assert len(rows) == 8
        assert {(row["strategy"], row["scenario"], row["round"]) for row in rows} == {
            (strategy, scenario, number)
            for strategy in ("global", "per-region")
            for scenario in ("readers-only", "writer-storm")
            for number in (0, 1)
        }
        for row in rows:
            for name, kind in FIELDS.items():
                assert type(row[name]) is kind, name
            assert row["mapped_percent"] >= 99
            assert row["requests_per_second"] > 0
        assert "lock-path share" in done.stdout
        assert "Writer storm: with global, one receive in a thousand waits" in " ".join(done.stdout.split())

    def test_one_strategy_without_a_storm(self, tmp_path: Path) -> None:
        target = tmp_path / "rounds.json"
        done = run("lab", "seed", *SHORT, "--locks", "per-region", "--writer-interval-us", "0", "--json", str(target))
        assert done.returncode == 0
        assert [(row["strategy"], row["scenario"]) for row in json.loads(target.read_text())["rows"]] == [
            ("per-region", "readers-only")
        ]

    def test_a_storm_of_ones_own(self, tmp_path: Path) -> None:
        target = tmp_path / "rounds.json"
        storm = ["--writer-interval-us", "2000", "--writer-hold-us", "100"]
        assert run("lab", "seed", *SHORT, "--locks", "global", *storm, "--json", str(target)).returncode == 0
        rows = {row["scenario"]: row for row in json.loads(target.read_text())["rows"]}
        assert (rows["writer-storm"]["writer_interval_us"], rows["writer-storm"]["writer_hold_us"]) == (2000, 100)
        assert rows["writer-storm"]["writer_locks_per_second"] > 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--locks", "foo,global"], "no such lock strategy: foo; there are"),
            (["--locks", ","], "no lock strategy was named"),
            (["--connections", "0"], "connections must be 1 or more"),
            (["--connections", "many"], "'many' is not a valid integer"),
            (["--payload", "-1"], "payload must be"),
            (["--receive-threads", "9", "--connections", "8"], "more receive threads than connections"),
            (["--seconds", "-1"], "seconds must be"),
            (["--rounds", "0"], "rounds must be"),
            (["--writer-interval-us", "10", "--writer-hold-us", "20"], "shorter than its interval"),
            (["--writer-hold-us", "20"], "go together"),
            (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
            (["--bogus"], "No such option"),
            (["surplus"], "unexpected extra argument"),
        ],
    )
    def test_the_impossible_is_one_line_and_status_2(self, arguments: list[str], message: str) -> None:
        done = run("lab", "seed", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.startswith("zcrpc: ")
        assert done.stderr.count("\n") == 1

    def test_an_interrupt_keeps_what_was_measured(self, tmp_path: Path) -> None:
        target = tmp_path / "rounds.json"
        run_for = ["--connections", "8", "--seconds", "100", "--rounds", "400"]  # rounds of a quarter of a second
        done = interrupted(6, "lab", "seed", *run_for, "--json", str(target))
        assert done.returncode == 130
        assert "interrupted" in done.stderr
        assert 0 < len(json.loads(target.read_text())["rows"]) < 1600
        assert "lock-path share" in done.stdout

    def test_a_terminal_gets_a_progress_bar_and_a_table_of_its_width(self) -> None:
        terminal, end = pty.openpty()
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        process = subprocess.Popen(
            [*ZCRPC, "lab", "seed", *SHORT], stdout=subprocess.PIPE, stderr=end, env=environment, text=True
        )
        os.close(end)
        with ThreadPoolExecutor() as reader:  # what nobody reads fills the terminal, and holds the process up
            shown = reader.submit(all_of, terminal)
            stdout, _ = process.communicate(timeout=120)
            seen = shown.result(10)
        os.close(terminal)
        assert process.returncode == 0
        assert "readers-only" in seen
        assert all(len(line) <= 80 for line in stdout.splitlines())
        assert "…" not in stdout  # nothing was cut


class TestUpload:
    def test_upload(self, tmp_path: Path) -> None:
        target = tmp_path / "uploads.json"
        done = run("lab", "upload", "--payload", "3000000", "--seconds", "0.3", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        rows = {row["receive"]: row for row in json.loads(target.read_text())["rows"]}
        assert list(rows) == ["zerocopy", "copy", "auto"]
        assert rows["zerocopy"]["mapped_percent"] >= 99
        assert rows["copy"]["mapped_percent"] == 0
        assert all(row["wrong"] == 0 and row["gigabytes_per_second"] > 0 for row in rows.values())
        assert "GB/s" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--receive", "teleport"], "no such way of receiving: teleport"),
            (["--payload", "0"], "payload must be"),
            (["--seconds", "0"], "seconds"),
        ],
    )
    def test_the_impossible(self, arguments: list[str], message: str) -> None:
        done = run("lab", "upload", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr


def test_help() -> None:
    assert "seed" in run("lab", "--help").stdout
    assert "--writer-interval-us" in run("lab", "seed", "-h").stdout


def test_an_unknown_command() -> None:
    done = run("bake")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
