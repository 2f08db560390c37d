"""Torture, as a user runs it: on every strategy, on plugins, and on locks that do not hold."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from plugins import changed, run

from zcrpc import locks
from zcrpc.lab import torture
from zcrpc.lab.commands.torture import torture as command
from zcrpc.lab.torture import Experiment, Tortured

ZCRPC = [sys.executable, "-c", "from zcrpc.cli import main; main()"]
COMMAND = [*ZCRPC, "lab", "torture"]


@pytest.fixture(scope="module")
def rows() -> dict[str, Tortured]:
    chosen = ("global", "per-region", "speculative", "global-mutex")
    return {row.strategy: row for row in torture.run(Experiment(locks=chosen, threads=3, seconds=0.5, seed=7))}


class TestFigures:
    def test_all_of_it_happened(self, rows: dict[str, Tortured]) -> None:
        assert list(rows) == ["global", "per-region", "speculative", "global-mutex"]
        for row in rows.values():
            assert (row.passed, row.never_happened, row.violation) == (True, (), "")
            assert (row.readers, row.writers, row.seed, row.rounds) == (3, 1, 7, 1)
            assert row.operations > 1000
            assert row.sleeps > 0
            assert row.preemptions > 0
            assert row.waits > 0
            assert 0 < row.longest_read_wait_us < 30e6
            assert 0 < row.longest_write_wait_us < 30e6
            assert 0.5 <= row.seconds < 20

    def test_counts_add_up(self, rows: dict[str, Tortured]) -> None:
        for row in rows.values():
            assert row.operations == row.read_locks + row.misses + row.looks
            assert row.operations_per_second == pytest.approx(row.operations / row.seconds)
            assert row.touches <= row.read_locks
            assert row.fallbacks <= row.read_locks
            assert row.confirmed <= row.looks
            assert 0 < row.detaches <= row.attaches
            assert row.recycles < row.write_locks
            assert row.leases_released <= row.leases_placed

    def test_what_only_some_strategies_do(self, rows: dict[str, Tortured]) -> None:
        assert [name for name, row in rows.items() if row.looks] == ["speculative"]
        assert [name for name, row in rows.items() if not row.wraps] == ["global-mutex"]
        assert rows["global-mutex"].wraps == 0
        assert rows["global"].fallbacks == 0
        assert rows["per-region"].fallbacks > 0

    def test_a_run_that_did_nothing_shows_nothing(self, rows: dict[str, Tortured]) -> None:
        row = rows["speculative"]
        assert dataclasses.replace(row, recycles=0, leases_placed=0).never_happened == ("recycles", "leases")
        assert dataclasses.replace(row, confirmed=0).never_happened == ("looks confirmed",)
        assert dataclasses.replace(rows["global"], confirmed=0).passed
        assert not dataclasses.replace(row, recycles=0).passed


class TestCommand:
    def test_every_strategy(self, tmp_path: Path) -> None:
        target = tmp_path / "torture.json"
        done = run(*COMMAND, "--seconds", "0.3", "--seed", "18446744073709551615", "--json", target)
        assert (done.returncode, done.stderr) == (0, "")
        results = json.loads(target.read_text())
        assert results["kind"] == "torture"
        assert results["settings"]["seed"] == (1 << 64) - 1
        assert [row["strategy"] for row in results["rows"]] == list(locks.names()[:13])
        for row in results["rows"]:
            assert row["operations"] > 0
            assert row["violation"] == ""
            assert row["strategy"] in done.stdout
        assert done.stdout.count(" held") == 13
        assert "seed 18446744073709551615" in done.stdout
        assert "No violation in " in done.stdout

    def test_a_seed_is_chosen_and_said(self, tmp_path: Path) -> None:
        seeds = []
        for name in ("one.json", "two.json"):
            done = run(*COMMAND, "--locks", "global", "--seconds", "0.1", "--json", tmp_path / name)
            seeds.append(json.loads((tmp_path / name).read_text())["rows"][0]["seed"])
            assert f"seed {seeds[-1]}" in done.stdout
        assert seeds[0] != seeds[1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--locks", "foo,global"], "no such lock strategy: foo; there are global, per-region"),
            (["--locks", ","], "no lock strategy was named"),
            (["--threads", "0"], "threads must be 1 to 64"),
            (["--threads", "65"], "threads must be 1 to 64"),
            (["--threads", "two"], "'two' is not a valid integer"),
            (["--writers", "0"], "writers must be 1 to 16"),
            (["--writers", "17"], "writers must be 1 to 16"),
            (["--seconds", "0"], "seconds must be more than 0 and at most 86400"),
            (["--seconds", "nan"], "seconds must be more than 0 and at most 86400"),
            (["--seconds", "86401"], "seconds must be more than 0 and at most 86400"),
            (["--seed", "-1"], "the seed must be a number of 64 bits"),
            (["--seed", "18446744073709551616"], "the seed must be a number of 64 bits"),
            (["--stalled", "0"], "stalled seconds must be more than 0"),
            (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
            (["surplus"], "unexpected extra argument"),
        ],
    )
    def test_the_impossible_is_one_line_and_status_2(self, arguments: list[str], message: str) -> None:
        done = run(*COMMAND, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.startswith("zcrpc: ")
        assert done.stderr.count("\n") == 1

    def test_an_interrupt_keeps_what_was_done(self, tmp_path: Path) -> None:
        target = tmp_path / "torture.json"
        arguments = ["--locks", "per-region,global", "--seconds", "600", "--json", str(target)]
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        _first_child(process.pid)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "interrupted; this was measured" in err
        (row,) = json.loads(target.read_text())["rows"]
        assert (row["strategy"], row["violation"]) == ("per-region", "")
        assert 0 < row["seconds"] < 60
        assert row["operations"] > 0
        assert "per-region" in out

    def test_nothing_is_left_behind(self) -> None:
        process = subprocess.Popen([*COMMAND, "--locks", "global", "--seconds", "600"], stdout=subprocess.DEVNULL)
        child = Path("/proc") / _first_child(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while child.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_idle_is_no_success(self, monkeypatch: pytest.MonkeyPatch, rows: dict[str, Tortured]) -> None:
        idle = dataclasses.replace(rows["global"], recycles=0)

        def nothing(experiment: Experiment) -> Iterator[Tortured]:
            yield idle

        monkeypatch.setattr(sys.modules["zcrpc.lab.commands.torture"], "run", nothing)
        done = CliRunner().invoke(command, ["--locks", "global"])
        assert done.exit_code == 1
        assert "global: shows nothing, as there were no recycles" in done.stdout


def _first_child(pid: int) -> str:
    """The process id of the process that tortures the first strategy."""
    deadline = time.monotonic() + 60
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]


Change = tuple[str, str]
TAKE = "!atomic_compare_exchange_weak_explicit(word, &seen, seen + 1, memory_order_acquire, memory_order_relaxed)"
LEAVE = "    atomic_fetch_sub_explicit(word_of(map), 1, memory_order_release);"
RELEASE = "    atomic_fetch_and_explicit(word_of(map), ~WRITER, memory_order_release);"

# What is broken in a plugin: the changes, and what torture says of it.
BROKEN: dict[str, tuple[tuple[Change, ...], str]] = {
    "readers that lock nothing": (
        ((TAKE, "seen & WRITER"), (LEAVE, "    (void)map;")),
        r"torture(_readers|_writers)?\.c:\d+: \w+: ",
    ),
    "readers that never unlock": (((LEAVE, "    (void)map;"),), r"stuck: broken: thread \d+ has been stuck for 2 s"),
    "a writer that never unlocks": (((RELEASE, "    (void)map;"),), "broken: has not ended after 9.3 s"),
    "read locks that are not counted": (
        (("    zc_count(&self->counters.read_locks);", ""),),
        r"add_side: stats\.lock\.read_locks is 0, not \d+",
    ),
    "a region that is none": (
        ((".region = region}", ".region = (void *)8}"),),
        "on_bad_access: signal 11: memory at 0x8 is gone, while a thread uses it",
    ),
    "a constructor that fails": (
        (("    (void)map; /* lock state comes zeroed */\n    return 0;", "    (void)map;\n    return -EBUSY;"),),
        "FailedPrecondition: torturing 'broken': Device or resource busy",
    ),
}


class TestPlugins:
    def test_one_that_holds(self, tmp_path: Path) -> None:
        plugin, target = changed(tmp_path, "from-outside"), tmp_path / "torture.json"
        arguments = ("--locks", "from-outside,global", "--seconds", "0.3", "--json", str(target))
        done = run(*COMMAND, *arguments, ZCRPC_LOCKS=str(plugin))
        assert (done.returncode, done.stderr) == (0, "")
        outside, ours = json.loads(target.read_text())["rows"]
        assert (outside["strategy"], outside["wraps"]) == ("from-outside", None)
        assert outside["operations"] > 0
        assert ours["wraps"] > 0

    def test_all_includes_plugins(self, tmp_path: Path) -> None:
        plugin = changed(tmp_path, "one-of-all")
        done = run(*COMMAND, "--seconds", "0.05", ZCRPC_LOCKS=str(plugin))
        assert "one-of-all" in done.stdout
        assert "FAILED" not in done.stdout

    @pytest.mark.parametrize("what", BROKEN)
    def test_a_lock_that_does_not_hold_is_found_out(self, tmp_path: Path, what: str) -> None:
        changes, sign = BROKEN[what]
        plugin, target = changed(tmp_path, "broken", *changes), tmp_path / "torture.json"
        arguments = ("--locks", "broken,global", "--seconds", "0.3", "--stalled", "2", "--json", str(target))
        done = run(*COMMAND, *arguments, ZCRPC_LOCKS=str(plugin))
        assert (done.returncode, done.stderr) == (1, "")
        broken, unbroken = json.loads(target.read_text())["rows"]
        assert re.search(f"ended with status 1: .*{sign}", broken["violation"])
        assert (broken["operations"], broken["wraps"]) == (0, None)
        assert f"broken: {broken['violation']}" in done.stdout
        assert "FAILED" in done.stdout
        assert unbroken["violation"] == ""  # the next one is tortured all the same
        assert unbroken["operations"] > 0
