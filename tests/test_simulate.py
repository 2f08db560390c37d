"""The simulator: its invariants, and what it gets right and wrong about published measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zcrpc.cli import main
from zcrpc.lab.commands.simulate import parse_cores
from zcrpc.lab.simulate import document, machine, prediction, programs, published, topology
from zcrpc.lab.simulate.engine import LOAD, RMW, WAIT, WORK, Machine, Program, Thread
from zcrpc.lab.simulate.topology import InvalidTopology, Level, Topology
from zcrpc.lab.simulate.workload import Broken, Run, Workload, simulate

XEON = topology.builtin()
FLAT = Topology("flat", "made up", 5.0, "machine", (Level("machine", 16, 100.0, 200.0),))
MIXED = Workload(hold_ns=300, work_ns=500, write_fraction=0.2)


def one_machine(b: int = 1) -> tuple[Machine, list[tuple[float, str]]]:
    """A flat machine and a log of (time, what happened)."""
    return Machine(FLAT, b=b), []


class TestEngine:
    def test_a_line_costs_what_the_topology_says(self) -> None:
        m, log = one_machine()
        line = m.line("x")

        def program(name: str) -> Program:
            for _ in range(2):
                yield RMW, line
                log.append((m.now, name))

        m.start(Thread(0, 0), program("a"))
        m.start(Thread(1, 1), program("b"), at_ns=50)
        m.run()
        # nobody had it: 5, owned: 5; then moved once: 100, owned: 5
        assert log == [(5, "a"), (10, "a"), (150, "b"), (155, "b")]
        assert line.busy_ns == 115
        assert line.moves == 2

    @pytest.mark.parametrize(("b", "order"), [(1, "abab"), (2, "aabb")])
    def test_b_is_what_an_owner_gets_done_while_others_wait(self, b: int, order: str) -> None:
        m, log = one_machine(b)
        line = m.line("x")

        def program(name: str) -> Program:
            for _ in range(2):
                yield RMW, line
                log.append((m.now, name))

        m.start(Thread(0, 0), program("a"))
        m.start(Thread(1, 1), program("b"), at_ns=1)
        m.run()
        assert "".join(name for _, name in log) == order

    def test_an_owner_that_comes_back_late_has_lost_the_line_from_when_it_left(self) -> None:
        m, log = one_machine(b=10)
        line = m.line("x")

        def leaves() -> Program:
            yield RMW, line
            yield WORK, 1000
            yield RMW, line
            log.append((m.now, "a"))

        def waits() -> Program:
            yield RMW, line
            log.append((m.now, "b"))

        m.start(Thread(0, 0), leaves())
        m.start(Thread(1, 1), waits(), at_ns=1)
        m.run()
        assert log == [(105, "b"), (1105, "a")]

    def test_loads_are_served_side_by_side_and_then_hit(self) -> None:
        m, log = one_machine()
        line = m.line("x")

        def owner() -> Program:
            yield RMW, line
            yield WORK, 500
            yield RMW, line  # takes the copies away
            log.append((m.now, "owner"))

        def reader(name: str) -> Program:
            yield LOAD, line
            yield LOAD, line
            log.append((m.now, name))

        m.start(Thread(0, 0), owner())
        for index in (1, 2, 3):
            m.start(Thread(index, index), reader(f"reader {index}"), at_ns=1)
        m.run()
        assert log == [(106, "reader 1"), (106, "reader 2"), (106, "reader 3"), (605, "owner")]

    def test_waiting_ends_with_the_change_that_was_waited_for(self) -> None:
        m, log = one_machine()
        line, value = m.line("x"), [0]

        def waits() -> Program:
            yield WAIT, (line, lambda: value[0] == 2)
            log.append((m.now, f"saw {value[0]}"))

        def changes() -> Program:
            for _ in range(3):
                yield WORK, 1000
                yield RMW, line
                value[0] += 1

        m.start(Thread(0, 0), waits())
        m.start(Thread(1, 1), changes())
        m.run()
        assert log == [(2010 + 100, "saw 2")]

    def test_no_b_below_1(self) -> None:
        with pytest.raises(ValueError, match="1 or more"):
            Machine(FLAT, b=0)


class TestTopology:
    def test_distances(self) -> None:
        assert [XEON.between(0, other).name for other in (0, 1, 2, 56, 223, 224)] == [
            "sibling",
            "sibling",
            "socket",
            "four sockets",
            "four sockets",
            "machine",
        ]

    def test_threads_are_dealt_out_over_sockets_cores_first(self) -> None:
        placed = XEON.placement(448)
        assert placed[:9] == [0, 56, 112, 168, 224, 280, 336, 392, 2]
        assert all(cpu % 2 == 0 for cpu in placed[:224])
        assert sorted(placed) == list(range(448))

    @pytest.mark.parametrize("threads", [0, -1, 449])
    def test_threads_that_do_not_fit(self, threads: int) -> None:
        with pytest.raises(ValueError, match="1 to 448"):
            XEON.placement(threads)


@pytest.mark.parametrize("locks", programs.LOCKS)
class TestLocks:
    @pytest.mark.parametrize("b", [1, 4])
    @pytest.mark.parametrize("one_region", [True, False])
    @pytest.mark.parametrize("write_fraction", [0.0, 0.2, 1.0])
    def test_mutual_exclusion_and_progress(self, locks: str, b: int, one_region: bool, write_fraction: float) -> None:
        for seed in range(2):
            workload = Workload(hold_ns=200, work_ns=100, write_fraction=write_fraction, one_region=one_region)
            found = simulate(FLAT, locks, 6, workload, b=b, operations=400, seed=seed)  # raises Broken
            assert found.operations == 400
            assert (found.writes_per_second > 0) == (write_fraction > 0)

    def test_nothing_is_lost(self, locks: str) -> None:
        run = Run(FLAT, locks, 8, MIXED, 2, seed=5)
        found = run.measure(2000)
        assert found.operations == 2000
        assert 0 <= run.started - run.finished <= 8
        # every thread is in exactly one place
        placed = [thread.index for _, _, thread, _, _ in run.machine._heap if thread is not None]
        for line in run.machine.lines:
            placed += [thread.index for thread, _ in line.queue] + [thread.index for thread, _ in line.waiters]
        assert len(placed) == len(set(placed)) == 8

    def test_the_seed_decides(self, locks: str) -> None:
        first, again, other = (simulate(XEON, locks, 12, MIXED, operations=500, seed=seed) for seed in (3, 3, 4))
        assert first == again
        assert first != other

    @pytest.mark.parametrize("threads", [1, 3, 40])
    @pytest.mark.parametrize("workload", [Workload(), Workload(hold_ns=1000, work_ns=3000)], ids=["empty", "apart"])
    def test_the_bound_is_never_exceeded(self, locks: str, threads: int, workload: Workload) -> None:
        found = simulate(XEON, locks, threads, workload, operations=50 * threads)
        edges = 1 + 1 / 50  # operations begun before the measurement and ended in it: one for each thread at the most
        assert 0 < found.operations_per_second <= found.bound_per_second * edges

    @pytest.mark.parametrize("threads", [2, 16])
    def test_the_bound_is_never_exceeded_by_writers(self, locks: str, threads: int) -> None:
        found = simulate(XEON, locks, threads, MIXED, operations=50 * threads)
        assert 0 < found.operations_per_second <= found.bound_per_second * (1 + 2 / 50)

    def test_one_thread_alone_pays_for_nothing_but_its_own(self, locks: str) -> None:
        found = simulate(XEON, locks, 1, Workload(hold_ns=1000, work_ns=1000))
        assert found.ns_per_operation == pytest.approx(2020 + 14, rel=0.01)
        assert found.line_moves_per_operation == 0


class TestClaims:
    def test_disjoint_regions_move_no_line(self) -> None:
        moves = {
            name: simulate(XEON, name, 32, Workload(hold_ns=100, work_ns=100)).line_moves_per_operation
            for name in programs.LOCKS
        }
        assert moves["per-region"] == moves["speculative"] == moves["global-big-reader"] == 0
        assert moves["global"] == pytest.approx(2, abs=0.1)

    def test_one_hot_region_is_no_win(self) -> None:
        hot = Workload(work_ns=1000, one_region=True)
        cost = {name: simulate(XEON, name, 64, hot).ns_per_operation for name in ("global", "per-region")}
        assert cost["per-region"] > 0.95 * cost["global"]

    def test_a_reader_of_an_untouched_region_does_not_wait_for_the_writer(self) -> None:
        for name, low, high in (("per-region", 0.0, 1.0), ("global", 400.0, 600.0)):
            found = simulate(XEON, name, 8, prediction.STORM, operations=4000)
            assert low <= found.wait_p99_us <= high
            assert found.writes_per_second > 500

    def test_readers_starve_a_writer_of_pthreads_lock(self) -> None:
        assert simulate(XEON, "global-pthread", 64, prediction.STORM, operations=4000).writes_per_second == 0

    def test_a_writer_of_a_big_reader_lock_visits_all(self) -> None:
        def cost(readers: int) -> float:
            m = Machine(FLAT, b=1)
            lock = programs.BigReader(m, readers + 1, 1)

            def read(thread: Thread) -> Program:
                mode = yield from lock.read_lock(thread, 0)
                yield from lock.read_unlock(thread, 0, mode)

            def write(thread: Thread) -> Program:
                yield from lock.write_lock(thread, 0)

            for index in range(readers):
                m.start(Thread(index, index), read(Thread(index, index)))
            m.start(Thread(readers, readers), write(Thread(readers, readers)), at_ns=10_000)
            m.run()
            return m.now - 10_000

        assert cost(12) - cost(2) == 10 * 100

    def test_open_arrivals_come_at_their_own_pace(self) -> None:
        arrivals = Workload(hold_ns=1000, work_ns=1000, load=0.5)
        found = simulate(XEON, "per-region", 16, arrivals, operations=20_000)
        assert found.operations_per_second == pytest.approx(16 * 0.5 / 2e-6, rel=0.05)
        assert found.late_p99_us > 4  # some arrive while others are served


class TestBroken:
    @pytest.mark.parametrize("way", ["write_lock", "read_lock"])
    def test_a_lock_that_does_not_wait_is_noticed(self, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        def does_not_wait(self: programs.FairRwlock) -> programs.Steps:
            yield RMW, self.line

        monkeypatch.setattr(programs.FairRwlock, way, does_not_wait)
        with pytest.raises(Broken, match="global"):
            simulate(FLAT, "global", 6, Workload(hold_ns=200, work_ns=100, write_fraction=0.3, one_region=True))

    def test_a_speculation_that_always_stands_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stands(self: Any, thread: Thread, region: int, mode: str) -> programs.UnlockSteps:
            if mode == "map":
                yield from self._map.read_unlock()
            return True

        monkeypatch.setattr(programs.Speculative, "read_unlock", stands)
        with pytest.raises(Broken, match="speculative"):
            simulate(FLAT, "speculative", 6, Workload(hold_ns=200, work_ns=100, write_fraction=0.3, one_region=True))


class TestPublished:
    """Passes are asserted as passes, failures as failures: whoever improves the model is to say so here."""

    def test_every_point_up_to_112_threads(self) -> None:
        failed: dict[str, set[int]] = {}
        for each in published.rwlock((0.0, 9.0), range(1, 113)):
            failed.setdefault(each.series, set())
            assert each.verdict != "calibrated" or abs(each.error_percent) < 10
            if each.verdict == "fail":
                failed[each.series].add(each.threads)
        assert failed == {
            "pthread rwlock, 0 µs section": {2, 3, 4, 7, 8, 16, 30, 46, 62, 64, 70, 98, 100, 104, 106},
            "pthread rwlock, 9 µs section": {5, 98},
        }

    def test_long_sections_and_many_threads_fail(self) -> None:
        verdicts = {
            (each.series, each.threads): each.verdict for each in published.rwlock((9.0, 100.0, 1000.0), (28, 224, 444))
        }
        for series in ("100 µs", "1000 µs"):
            assert verdicts[f"pthread rwlock, {series} section", 28] == "pass"
        for series in ("9 µs", "100 µs", "1000 µs"):
            for threads in (224, 444):
                assert verdicts[f"pthread rwlock, {series} section", threads] == "fail"

    def test_the_kernels_slopes_pass_on_four_sockets_and_fail_on_eight(self) -> None:
        checks = list(published.kernel_slopes())
        assert len(checks) == 12
        assert all(each.verdict == ("pass" if "four" in each.series else "fail") for each in checks)

    def test_uprobes_fail_but_rank(self) -> None:
        checks = {(each.series, each.threads): each for each in published.uprobes()}
        assert {each.verdict for each in checks.values()} == {"calibrated", "fail"}
        before, after = checks["uprobes before, lookup", 80], checks["uprobes after, lookup", 80]
        assert after.predicted < before.predicted / 5

    def test_the_seeds_storm(self) -> None:
        verdicts = {each.series.partition(": ")[2]: each.verdict for each in published.seed_sketch()}
        assert verdicts == {
            "global, wait p99.9": "fail",
            "per-region, wait p99.9": "fail",
            "requests/s of global over per-region": "fail",
        }

    def test_follys_order(self) -> None:
        verdicts = {each.write_fraction: each.verdict for each in published.folly()}
        assert verdicts == {0.0: "pass", 0.01: "pass", 0.1: "fail", 1.0: "pass"}

    def test_b_is_swept_where_asked(self) -> None:
        (found,) = published.rwlock((0.0,), (28,), sweep=True)
        assert found.verdict == "calibrated"
        assert list(found.by_b) == sorted(found.by_b, reverse=True)
        assert len(found.by_b) == len(published.SWEPT)
        assert min(found.by_b, key=lambda cost: abs(cost - found.published)) == found.predicted  # that is why b is 10


class TestThisMachine:
    def test_calibration_finds_the_transfer_that_went_in(self) -> None:
        together = machine.predict("global", 12.0, 80.0)
        assert machine.predict("global", 12.0, machine.calibrate(12.0, together)) == pytest.approx(together, rel=0.01)

    def test_two_threads_are_measured_and_predicted(self) -> None:
        checks = machine.measure()
        assert len(checks) == (4 if len(os.sched_getaffinity(0)) > 1 else 0)
        for number, each in enumerate(checks):
            close = "pass" if number else "calibrated"
            assert each.verdict == (close if abs(each.error_percent) <= 15 else "fail")
        assert all(0.1 < each.predicted < 10_000 and each.low <= each.published <= each.high for each in checks)


def test_the_document_has_passes_failures_and_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    few = published.Check("a series", 2, "ns", 100.0, 90.0, 110.0, 150.0, (), "fail")
    held = [
        published.Check(f"pthread rwlock, {hold} section", 8, "ns", 9, 8, 10, 9, (), "pass")
        for hold in ("9 µs", "1000 µs")
    ]
    monkeypatch.setattr(published, "table_checks", lambda: [few, *held])
    monkeypatch.setattr(machine, "measure", list)
    locks, cores = ["global", "per-region"], [1, 8]
    done = list(prediction.predict(XEON, locks, cores))
    said: list[str] = []
    monkeypatch.setattr(published, "rwlock", lambda *_: [*held, few])
    text = document.write(XEON, done, list(prediction.predict(XEON, locks, cores, 10)), said.append)
    assert "| a series | 2 | 100 | 90.0 – 110 | 150 | +50 % | **fail** |" in text
    assert "| a series | 1 | 0 | 0 | 2 (+50 %) |" in text
    assert "| pthread rwlock, 9 µs section | 1 | 1 | 1 | none |" in text
    assert "| cores | global | per-region |" in text
    assert "At 8 cores `per-region` does" in text
    assert len(said) == 2


# ---- the command ----


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from zcrpc.cli import main; main()", "lab", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class TestCommand:
    def test_tables_and_json(self, tmp_path: Path) -> None:
        target = tmp_path / "predicted.json"
        done = run("--cores", "1,16", "--locks", "global,per-region", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        assert "saturated" in done.stdout
        rows = json.loads(target.read_text())["rows"]
        assert {(row["locks"], row["cores"], row["scenario"]) for row in rows} == {
            (name, cores, scenario)
            for name in ("global", "per-region")
            for cores in (1, 16)
            for scenario in ("saturated", "readers-only", "writer-storm")
        }
        for row in rows:
            assert row["topology"] == "xeon-8176"
            assert row["b"] == 1
            assert 0 < row["operations_per_second"] <= 1.2 * row["bound_per_second"]

    def test_a_topology_of_ones_own(self, tmp_path: Path) -> None:
        mine = {
            "name": "mine",
            "source": "made up",
            "owned_ns": 5,
            "spread_over": "machine",
            "levels": [{"name": "machine", "cpus": 4, "rmw_ns": 50, "load_rmw_ns": 90}],
        }
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(mine))
        done = run("--topology", str(path), "--cores", "4", "--locks", "global", "--b", "3")
        assert (done.returncode, done.stderr) == (0, "")
        assert "mine, b = 3" in done.stdout
        done = run("--topology", str(path), "--cores", "5")
        assert (done.returncode, done.stderr) == (2, "zcrpc: cores must be 1 to 4 on mine, not 5\n")

    @pytest.mark.parametrize(
        ("text", "counts"),
        [("8", [8]), ("64,2,8,2", [2, 8, 64]), ("1..256", [2**k for k in range(9)]), ("3..9", [3, 4, 8, 9])],
    )
    def test_cores(self, text: str, counts: list[int]) -> None:
        assert parse_cores(text, XEON) == counts

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--cores", "0"], "cores must be 1 to 256 on xeon-8176, not 0"),
            (["--cores", "1..257"], "cores must be 1 to 256"),
            (["--cores", "9..3"], "cores must be 1 to 256"),
            (["--cores", "many"], "cores must be like"),
            (["--cores", ""], "cores must be like"),
            (["--locks", "global,foo"], "no program for lock strategy foo; there are global, "),
            (["--locks", ","], "no lock strategy was named"),
            (["--b", "0"], "Invalid value for '--b'"),
            (["--topology", "/nowhere/at/all.json"], "cannot read /nowhere/at/all.json"),
            (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
        ],
    )
    def test_the_impossible_is_one_line_and_status_2(
        self,
        arguments: list[str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["zcrpc", "lab", "simulate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert message in said.err
        assert said.err.startswith("zcrpc: ")
        assert said.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is no topology: Input data was truncated"),
            ("[]", "is no topology: Expected `object`"),
            ("\xff", "is no topology"),
            ('{"name": "x"}', "missing required field"),
            ('{"name":"x","source":"","owned_ns":1,"spread_over":"m","levels":[]}', "it has no levels"),
            (
                '{"name":"x","source":"","owned_ns":-1,"spread_over":"m","levels":[]}',
                "Expected `float` > 0",
            ),
            (
                '{"name":"x","source":"","owned_ns":1,"spread_over":"m",'
                '"levels":[{"name":"a","cpus":4,"rmw_ns":1,"load_rmw_ns":1},{"name":"m","cpus":6,"rmw_ns":1,"load_rmw_ns":1}]}',
                "level m has 6 CPUs",
            ),
            (
                '{"name":"x","source":"","owned_ns":1,"spread_over":"nothing",'
                '"levels":[{"name":"a","cpus":4,"rmw_ns":1,"load_rmw_ns":1}]}',
                "spread_over names no level: nothing",
            ),
        ],
    )
    def test_a_broken_topology(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "broken.json"
        path.write_text(content, encoding="latin-1")
        with pytest.raises(InvalidTopology, match=r"broken\.json") as caught:
            topology.read(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_broken_topology_ends_the_command(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.json"
        path.write_text("{")
        done = run("--topology", str(path))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "is no topology" in done.stderr
