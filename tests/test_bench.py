"""The lock benchmark: its native driver, its matrix, its tables, and `zcrpc lab bench` as a user runs it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli import ZCRPC, interrupted

import zcrpc
from zcrpc import locks
from zcrpc.lab import bench, bench_tables, lock_bench, new, results
from zcrpc.lab.bench import Matrix, Point, Row
from zcrpc.lab.lock_bench import Workload, measure
from zcrpc.lab.processes import ChildFailed

CORES = len(os.sched_getaffinity(0))
SHORT: dict[str, Any] = {"seconds": 0.02, "rounds": 2, "hold_ns": (0,), "write_percent": (0, 10)}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*ZCRPC, "lab", "bench", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


class TestDriver:
    @pytest.mark.parametrize("name", locks.names())
    def test_it_counts_what_it_did(self, name: str) -> None:
        done = measure(
            Workload(strategy=name, threads=3, writers=1, iterations=20_000, writer_pause_ns=20_000, hold=True)
        )
        assert (done.reads, done.writes, done.read_locks) == (60_000, 0, 60_000)
        assert done.writer_locks == done.write_locks
        assert 0 < done.ns_per_operation < 1e6
        assert done.operations_per_second > 0
        assert done.fallbacks <= done.reads
        assert 1 / 3 <= done.jain <= 1.000001
        assert done.pinned == (CORES >= 4)
        assert 0 < done.read_latency.p50_us <= done.read_latency.p999_us <= done.read_latency.max_us

    @pytest.mark.parametrize("name", locks.names())
    @pytest.mark.parametrize("hot", [False, True])
    def test_threads_that_read_and_write(self, name: str, hot: bool) -> None:
        done = measure(Workload(strategy=name, threads=2, hot=hot, write_fraction=0.1, iterations=20_000))
        assert done.reads + done.writes == 40_000
        assert done.writes == pytest.approx(4000, abs=300)  # five standard deviations
        assert done.write_locks == done.writes
        assert done.write_latency.samples >= done.writes // 64
        assert done.overtaking_p99 <= done.longest_overtaking <= done.reads

    def test_floors_are_timed_where_nothing_is_written(self) -> None:
        for name in lock_bench.NOT_LOCKS:
            assert measure(Workload(strategy=name, iterations=1000)).reads == 1000
            for writing in ({"writers": 1}, {"write_fraction": 0.5}):
                with pytest.raises(locks.UnknownStrategy, match=name):
                    measure(Workload(strategy=name, iterations=1000, **writing))

    def test_looking_costs_no_lock(self) -> None:
        looking = measure(Workload(strategy="speculative", threads=2, hot=True, iterations=1000))
        assert (looking.reads, looking.read_locks, looking.fallbacks) == (2000, 0, 0)
        holding = measure(Workload(strategy="speculative", threads=2, hot=True, iterations=1000, hold=True))
        assert (holding.reads, holding.read_locks) == (2000, 2000)

    def test_it_stops_when_time_is_up(self) -> None:
        """Where others want the processor as well, windows are longer than was asked for, and the writer may miss
        one."""
        inside = 0
        for _ in range(20):
            begun = time.perf_counter()
            done = measure(Workload(strategy="global", writers=1, writer_hold_ns=100_000, seconds=0.05))
            took = time.perf_counter() - begun
            assert 0.04 < done.reads * done.ns_per_operation * 1e-9 < took
            inside += done.writer_locks
            if inside * 100_000 > 0.01e9:
                break
        assert inside * 100_000 > 0.01e9

    def test_a_reader_that_waits_is_late_on_a_schedule(self) -> None:
        storm = Workload(
            strategy="global",
            writers=1,
            writer_hold_ns=2_000_000,
            writer_pause_ns=2_000_000,
            rate_per_thread=20_000,
            seconds=0.1,
        )
        late = measure(storm).read_latency
        assert late.samples > 1000
        assert late.p99_us > 1000  # half of all operations should have begun while the writer was inside
        assert measure(dataclasses.replace(storm, rate_per_thread=0)).read_latency.p50_us < 100

    @pytest.mark.parametrize(
        "settings",
        [{"threads": 0}, {"threads": 65}, {"regions": 10**6}, {"iterations": 0}, {"write_fraction": 2.0}],
    )
    def test_it_refuses_what_makes_no_sense(self, settings: dict[str, Any]) -> None:
        with pytest.raises(zcrpc.InvalidArgument):
            measure(dataclasses.replace(Workload(strategy="global", iterations=1), **settings))
        with pytest.raises(locks.UnknownStrategy):
            measure(Workload(strategy="no-such-lock", iterations=1))


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return Matrix(locks=("global", "per-region", "none"), **SHORT)


@pytest.fixture(scope="module")
def rows(matrix: Matrix) -> list[Row]:
    return list(bench.run(matrix))


class TestMatrix:
    def test_points(self) -> None:
        def point(threads: int, layout: bench.Layout, regions: int, percent: float) -> Point:
            return Point(threads=threads, regions=regions, layout=layout, hold_ns=0, write_percent=percent)

        assert Matrix(**SHORT).points == [
            point(1, "disjoint", 16, 0),
            point(1, "disjoint", 16, 10),  # one thread has nobody to share a hot region with
            point(2, "disjoint", 16, 0),
            point(2, "disjoint", 16, 10),
            point(2, "hot", 1, 0),
            point(2, "hot", 1, 10),
        ]
        hot = Matrix(threads=(1, 2), regions=(4, 8), hold_ns=(0,), write_percent=(0,), layouts=("hot",))
        assert hot.points == [point(1, "hot", 1, 0), point(2, "hot", 1, 0)]

    def test_the_default_takes_less_than_three_minutes(self) -> None:
        default = Matrix()
        assert set(default.write_percent) == {0, 0.1, 1, 10, 100}
        assert set(default.layouts) == {"disjoint", "hot"}
        each = default.seconds / default.rounds + bench.WARM_UP_SECONDS + 0.010  # to make threads and regions
        assert default.total * each < 175

    def test_every_round_measures_everything_in_both_loops(self, matrix: Matrix, rows: list[Row]) -> None:
        assert len(rows) == matrix.total == 2 * 2 * (3 * 3 + 3 * 2)
        first = [(row.loop, row.strategy, row.write_percent) for row in rows[:10]]
        assert first == [
            *((loop, name, 0) for loop in ("closed", "open") for name in ("global", "per-region", "none")),
            *((loop, name, 10) for loop in ("closed", "open") for name in ("global", "per-region")),
        ]
        again = [row.strategy for row in rows if row.round == 1][:3]
        assert again == ["none", "per-region", "global"]  # backwards

    def test_figures_are_possible(self, rows: list[Row]) -> None:
        for row in rows:
            assert row.reads > 0
            assert (row.writes > 0) == (row.write_percent > 0)
            assert row.operations_per_second > 0
            assert row.ns_per_operation > 0
            assert 0 < row.cpu_ns_per_operation < 1e6
            assert 1 / row.threads <= row.jain <= 1.000001
            assert row.misses == 0
            assert 0 <= row.fallback_percent <= 100
            assert 0 <= row.read_latency_p50_us <= row.read_latency_p99_us <= row.read_latency_p999_us
            assert row.read_latency_p999_us <= row.read_latency_max_us
            assert row.pinned == (row.threads <= CORES)

    def test_schedules_are_the_same_for_all_strategies_and_rounds(self, rows: list[Row]) -> None:
        offered: dict[object, set[float]] = {}
        for row in rows:
            if row.loop == "closed":
                assert row.offered_per_second == 0
                assert row.read_samples < row.reads
            else:
                offered.setdefault((row.threads, row.layout, row.write_percent), set()).add(row.offered_per_second)
                assert 0 < row.offered_per_second <= row.threads * bench.FASTEST_RATE
                assert (row.read_samples, row.write_samples) == (row.reads, row.writes)
                assert row.longest_overtaking == 0
        assert {len(rates) for rates in offered.values()} == {1}

    def test_a_rate_of_ones_own(self) -> None:
        one = Matrix(locks=("global",), threads=(1,), rate=5000, **{**SHORT, "rounds": 1, "seconds": 0.1})
        found = [row for row in bench.run(one) if row.loop == "open"]
        assert {row.offered_per_second for row in found} == {5000}
        assert all(250 < row.reads + row.writes < 1000 for row in found)

    def test_writes_are_the_same_operations_for_all(self, rows: list[Row]) -> None:
        share = [row.writes / (row.reads + row.writes) for row in rows if row.write_percent == 10]
        assert all(0.05 < each < 0.2 for each in share)

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"locks": ("no-such-lock",)}, "no such lock strategy: no-such-lock; there are .*global.*"),
            ({"locks": ()}, "no lock strategy was given"),
            ({"locks": ("global", "global")}, "a lock strategy was given twice"),
            ({"locks": ("none",), "write_percent": (1,)}, "none can only be measured where nothing is written"),
            ({"threads": (0,)}, "threads must be 1 to 64"),
            ({"threads": (1, 65), "regions": (100,)}, "threads must be 1 to 64"),
            ({"threads": ()}, "no number of threads was given"),
            ({"regions": (1 << 20,)}, "regions must be 1 to 4,096"),
            ({"regions": (0,), "layouts": ("hot",)}, "regions must be 1 to 4,096"),
            ({"regions": (3,), "threads": (4,)}, "fewer regions than threads"),
            ({"hold_ns": (-1,)}, "holds must be 0 to"),
            ({"write_percent": (200,)}, "writes must be 0 to 100 %"),
            ({"write_percent": (float("nan"),)}, "writes must be 0 to 100 %"),
            ({"layouts": ("diagonal",)}, "layouts must be of disjoint, hot"),
            ({"rounds": 0}, "rounds must be"),
            ({"seconds": 0}, "seconds must be"),
            ({"seconds": float("inf")}, "seconds must be"),
            ({"rate": -1}, "the rate must be"),
        ],
    )
    def test_the_impossible_is_refused(self, settings: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            Matrix(**settings)


def plugin(directory: Path, name: str, change: tuple[str, str] = ("", "")) -> Path:
    """The example strategy under another name, changed, and built."""
    source = new.write(name, directory)[0]
    text = source.read_text()
    assert change[0] in text
    source.write_text(text.replace(*change) if change[0] else text)
    subprocess.run(["make", "-C", source.parent, f"PYTHON={sys.executable}"], check=True, capture_output=True)
    return source.with_suffix(".so")


class TestPlugins:
    def test_a_plugin_is_measured_like_any_other(self, tmp_path: Path) -> None:
        built = plugin(tmp_path, "benched")
        target = tmp_path / "bench.json"
        one = ["--locks", "global,benched", "--threads", "2", "--seconds", "0.01", "--rounds", "1", "--hold-ns", "0"]
        done = run(*one, "--json", str(target), ZCRPC_LOCKS=str(built))
        assert (done.returncode, done.stderr) == (0, "")
        assert {row["strategy"] for row in results.read(target).rows} == {"global", "benched"}
        assert "benched" in done.stdout

    def test_one_that_crashes_is_named_and_takes_nothing_with_it(self, tmp_path: Path) -> None:
        built = plugin(tmp_path, "crashes", ("static void read_unlock", "void abort(void);\nstatic void read_unlock"))
        source = built.with_suffix(".c")
        text = source.read_text()
        at = text.index("{", text.index("static void read_unlock")) + 1
        source.write_text(text[:at] + "\n    abort();" + text[at:])
        subprocess.run(["make", "-C", source.parent, f"PYTHON={sys.executable}"], check=True, capture_output=True)
        target = tmp_path / "bench.json"
        one = ["--threads", "1", "--seconds", "0.01", "--rounds", "1", "--hold-ns", "0", "--write-percent", "0"]
        done = run(*one, "--locks", "global,crashes", "--json", str(target), ZCRPC_LOCKS=str(built))
        assert done.returncode == 1
        assert done.stderr.startswith("zcrpc: measuring crashes: zcrpc.lab.lock_bench ended with status -6")
        assert [row["strategy"] for row in results.read(target).rows] == ["global"]

    def test_a_child_that_cannot_is_a_failure(self) -> None:
        with pytest.raises(ChildFailed, match=r"measuring gone: .*UnknownStrategy"):
            measuring = bench._Bench()
            with measuring:
                measuring.measure(Workload(strategy="gone", seconds=0.01))


class TestTables:
    def test_they_fit_a_terminal_and_say_who_wins(self, rows: list[Row]) -> None:
        console = Console(width=80, record=True, file=io.StringIO())
        for part in bench_tables.report(rows):
            console.print(part)
        text = console.export_text()
        assert "2 threads, regions of their own (16)" in text
        assert "2 threads, one hot region" in text
        assert all(len(line) <= 80 for line in text.splitlines())
        assert "…" not in text
        assert text.count("\nnone ") == 3  # without writes only
        scaling, own, hot = [line for line in bench_tables.conclusions(rows) if "2 threads" in line]
        assert "throughput over that of 1 thread × " in scaling
        assert own.startswith("2 threads, regions of their own (16), 0 % writes: over global, ")
        assert hot.startswith("2 threads, one hot region, 0 % writes: over global, ")

    def test_medians(self, rows: list[Row]) -> None:
        three = [
            dataclasses.replace(row, operations_per_second=rate)
            for rate in (1e6, 9e6, 2e6)
            for row in rows
            if (row.loop, row.round, row.strategy) == ("closed", 0, "global")
        ]
        console = Console(width=80, record=True, file=io.StringIO())
        for part in bench_tables.report(three):
            console.print(part)
        assert "2.00 ±4.00" in console.export_text()

    def test_an_interrupted_run_can_be_shown(self, rows: list[Row]) -> None:
        for count in (1, 2, 4, 7):
            assert list(bench_tables.report(rows[:count]))
            bench_tables.conclusions(rows[:count])

    @pytest.mark.parametrize(
        ("value", "text"), [(0, "0"), (0.037, "0.04"), (0.996, "1.0"), (9.96, "10"), (1616, "1.6k"), (999_600, "1.0M")]
    )
    def test_numbers_are_brief(self, value: float, text: str) -> None:
        assert bench_tables.brief(value) == text


class TestCommand:
    def test_json_and_tables(self, tmp_path: Path) -> None:
        target = tmp_path / "bench.json"
        one = ["--seconds", "0.02", "--rounds", "2", "--threads", "1,2", "--hold-ns", "0,100", "--write-percent", "0,5"]
        done = run(*one, "--locks", "speculative,none", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        found = results.read(target)
        assert found.kind == "bench"
        assert found.settings["write_percent"] == [0, 5]
        assert len(found.rows) == 2 * 2 * 6 * (2 + 1)
        assert {row["strategy"] for row in found.rows} == {"speculative", "none"}
        for row in found.rows:
            assert set(row) == {field.name for field in dataclasses.fields(Row)}
        assert "2 threads, one hot region, held 100 ns" in done.stdout

    def test_all_strategies(self, tmp_path: Path) -> None:
        target = tmp_path / "bench.json"
        one = ["--seconds", "0.005", "--rounds", "1", "--threads", "2", "--hold-ns", "0", "--write-percent", "1"]
        done = run(*one, "--locks", "all", "--layout", "hot", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        assert [row["strategy"] for row in results.read(target).rows] == [*locks.names()[:13]] * 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--locks", "foo,global"], "no such lock strategy: foo; there are global, per-region"),
            (["--locks", ","], "no lock strategy was named"),
            (["--threads", "0"], "threads must be 1 to 64"),
            (["--threads", "65", "--regions", "100"], "threads must be 1 to 64"),
            (["--threads", "many"], "--threads must be numbers, separated by commas, not many"),
            (["--threads", ""], "no number of threads was given"),
            (["--regions", "100000"], "regions must be 1 to 4,096"),
            (["--regions", "1", "--threads", "2"], "fewer regions than threads"),
            (["--write-percent", "200"], "writes must be 0 to 100 %"),
            (["--write-percent", "nan"], "writes must be 0 to 100 %"),
            (["--hold-ns", "-1"], "holds must be 0 to"),
            (["--hold-ns", "1.5"], "--hold-ns must be numbers"),
            (["--layout", "round"], "layouts must be of disjoint, hot"),
            (["--rounds", "0"], "rounds must be"),
            (["--seconds", "0"], "seconds must be"),
            (["--rate", "-5"], "the rate must be"),
            (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
            (["--bogus"], "No such option"),
        ],
    )
    def test_the_impossible_is_one_line_and_status_2(self, arguments: list[str], message: str) -> None:
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.startswith("zcrpc: ")
        assert done.stderr.count("\n") == 1

    def test_an_interrupt_keeps_what_was_measured(self, tmp_path: Path) -> None:
        target = tmp_path / "bench.json"
        settings = ["--seconds", "100", "--rounds", "1000"]  # measurements of a tenth of a second
        done = interrupted(4, "lab", "bench", *settings, "--json", str(target))
        assert done.returncode == 130
        assert "interrupted" in done.stderr
        assert len(json.loads(target.read_text())["rows"]) > 0
        assert "1 thread, regions of their own" in done.stdout
