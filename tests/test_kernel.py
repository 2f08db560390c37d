"""The kernel experiment, in short real runs: everything is mapped, the mmap lock is counted where that is allowed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from test_cli import ZCRPC, interrupted, run

from zcrpc.lab import kernel, kernel_table, results
from zcrpc.lab.kernel_receivers import KernelReceivers, KernelResult
from zcrpc.lab.results import Latency

INSTANCES = Path("/sys/kernel/tracing/instances")
RELEASE = tuple(int(part) for part in platform.release().split(".")[:2])
needs_trace = pytest.mark.skipif(
    not os.access(INSTANCES, os.W_OK) or not (INSTANCES.parent / "events" / "mmap_lock").is_dir(),
    reason="tracefs is not mounted, is not ours to use, or has no mmap_lock tracepoints",
)
SHORT = ["--seconds", "0.2", "--rounds", "1", "--area-mib", "16"]


@pytest.fixture(scope="module")
def rounds() -> list[kernel.Round]:
    return list(kernel.run(kernel.Experiment(seconds=0.6, rounds=2, area_mib=16)))


def of(rounds: list[kernel.Round], strategy: str, writer: str) -> list[kernel.Round]:
    return [each for each in rounds if (each.strategy, each.writer) == (strategy, writer)]


@pytest.mark.alone
class TestExperiment:
    def test_every_lock_runs_with_every_writer_in_every_round(self, rounds: list[kernel.Round]) -> None:
        assert [(each.round, each.strategy, each.writer) for each in rounds] == [
            (0, "kernel", "none"),
            (0, "kernel", "mprotect"),
            (0, "kernel", "mmap"),
            (0, "global", "none"),
            (0, "global", "write-lock"),
            (0, "per-region", "none"),
            (0, "per-region", "write-lock"),
            (1, "kernel", "mmap"),
            (1, "kernel", "mprotect"),
            (1, "kernel", "none"),
            (1, "per-region", "none"),
            (1, "per-region", "write-lock"),
            (1, "global", "none"),
            (1, "global", "write-lock"),
        ]
        assert len(rounds) == kernel.Experiment(seconds=0.6, rounds=2, area_mib=16).rows

    def test_everything_is_mapped_and_arrives_as_it_was_sent(self, rounds: list[kernel.Round]) -> None:
        for each in rounds:
            assert each.receives > 20
            assert each.mapped_percent >= 99
            assert each.wrong == 0

    def test_figures_are_possible(self, rounds: list[kernel.Round]) -> None:
        for each in rounds:
            assert 0 < each.receive_p50_us <= each.receive_p99_us <= each.receive_p999_us <= each.receive_max_us
            assert each.receives_per_second == pytest.approx(each.receives / each.seconds)
            assert each.receiver_cpu_us_per_receive > 0.1
            assert (each.writer_changes_per_second > 0) == (each.writer != "none")
            assert (each.writer_change_p50_us > 0) == (each.writer != "none")

    @needs_trace
    @pytest.mark.skipif(RELEASE < (6, 4), reason="before Linux 6.4, receives take the mmap lock")
    def test_receives_take_no_mmap_lock(self, rounds: list[kernel.Round]) -> None:
        for each in rounds:
            if each.strategy == "kernel":
                assert each.note == ""
                assert each.counted_receives >= 2000
                assert each.acquisitions_per_receive == each.acquisitions / each.counted_receives
                assert each.acquisitions_per_receive < 0.05
                assert each.waited_us_per_receive is not None
            else:
                assert each.acquisitions_per_receive is None

    def test_a_writer_makes_receives_wait_under_global(self, rounds: list[kernel.Round]) -> None:
        stormy = of(rounds, "global", "write-lock")
        assert max((each.longest_wait_us or 0) / each.writer_change_p50_us for each in stormy) > 0.3
        waits = [each.waited_us_per_receive or 0 for each in stormy]
        # The best round of the other: a preemption in find → locked looks like a wait, and others use these cores, too.
        assert min(each.waited_us_per_receive or 0 for each in of(rounds, "per-region", "write-lock")) < max(waits)

    def test_the_maps_writer_holds_as_long_as_the_kernels(self, rounds: list[kernel.Round]) -> None:
        (first, *_) = of(rounds, "kernel", "mprotect")
        for each in of(rounds, "global", "write-lock") + of(rounds, "per-region", "write-lock"):
            assert each.writer_change_p50_us >= 0.98 * round(first.writer_change_p50_us)

    def test_many_receivers_of_large_payloads(self) -> None:
        experiment = kernel.Experiment(seconds=0.2, rounds=1, receivers=3, payload=1 << 20, locks=())
        found = kernel.run_kernel(experiment, "none")
        assert found.mapped_percent >= 99
        assert found.wrong == 0
        assert (found.receivers, found.payload_bytes) == (3, 1 << 20)

    @needs_trace
    def test_what_a_killed_run_left_behind_is_removed(self) -> None:
        orphan = INSTANCES / "zcrpc-999999999"  # beyond the largest process id that there can be
        orphan.mkdir()
        found = kernel.run_kernel(kernel.Experiment(seconds=0.1, rounds=1, locks=()), "none")
        assert found.counted_receives >= 2000
        assert not orphan.exists()

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"locks": ("no-such-lock",)}, "no such lock strategy: no-such-lock; there are .*global.*"),
            ({"locks": ("global", "global")}, "a lock strategy was named twice"),
            ({"writers": ("fork",)}, "no such writer: fork; there are mprotect, mmap"),
            ({"writers": ("mmap", "mmap")}, "a writer was named twice"),
            ({"payload": 0}, "payload must be whole pages"),
            ({"payload": 5000}, "payload must be whole pages"),
            ({"payload": 2 << 20}, "payload must be whole pages"),
            ({"receivers": 0}, "receivers must be 1 to 64"),
            ({"receivers": 65}, "receivers must be 1 to 64"),
            ({"seconds": 0}, "seconds must be"),
            ({"seconds": float("nan")}, "seconds must be"),
            ({"rounds": 0}, "rounds must be"),
            ({"area_mib": 0}, "the area must be 1 to"),
            ({"area_mib": 1 << 40}, "the area must be 1 to"),
        ],
    )
    def test_the_impossible_is_refused(self, settings: dict[str, object], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            kernel.Experiment(**settings)  # type: ignore[arg-type]


def result(**figures: object) -> KernelResult:
    nothing = {"elapsed_seconds": 1.0, "receiver_cpu_seconds": 0.1, "payloads": 10, "receives": 10, "wrong": 0}
    more = {"bytes_mapped": 40960, "bytes_copied": 0, "receive": Latency(p50_us=2.0), "counted_receives": 0}
    rest = {"acquisitions": 0, "waited_us": 0.0, "longest_wait_us": 0.0, "not_counted": "", "changes": 0}
    return KernelResult(**{**nothing, **more, **rest, "change": Latency(), **figures})  # type: ignore[arg-type]


class TestRows:
    def test_what_was_counted_is_a_figure(self) -> None:
        counted = result(counted_receives=2000, acquisitions=2001, waited_us=4000.0, longest_wait_us=90.0)
        found = kernel.kernel_round(KernelReceivers(), counted, 3, kernel="6.1.0-50", emulated=True)
        assert found.acquisitions_per_receive == pytest.approx(1.0005)
        assert (found.waited_us_per_receive, found.longest_wait_us) == (2.0, 90.0)
        assert (found.kernel, found.emulated, found.round, found.note) == ("6.1.0-50", True, 3, "")

    def test_what_was_not_counted_is_none_and_not_zero(self) -> None:
        found = kernel.kernel_round(KernelReceivers(), result(not_counted="no tracefs"), 0, kernel="6.18")
        assert found.acquisitions_per_receive is found.waited_us_per_receive is found.longest_wait_us is None
        assert found.note == "the mmap lock was not counted: no tracefs"

    def test_the_table_shows_what_is_missing(self) -> None:
        untraced = kernel.kernel_round(KernelReceivers(), result(not_counted="no tracefs"), 0, kernel="6.18.1-x")
        unmapped = kernel.kernel_round(KernelReceivers(writer="mmap"), "no mapping", 0, kernel="6.18.1-x")
        table = kernel_table.table([untraced, unmapped])
        assert table.row_count == 2
        assert list(table.columns[1].cells) == ["–", "–"]
        assert list(table.columns[3].cells) == ["2.00", "–"]
        assert kernel_table.notes([untraced, untraced, unmapped]) == [
            "Linux 6.18: the mmap lock was not counted: no tracefs",
            "Linux 6.18: no mapping",
        ]
        assert kernel_table.conclusion([untraced, unmapped]) == ""

    @pytest.mark.parametrize(
        ("acquisitions", "verdict"),
        [
            (1, "receives take no mmap lock"),
            (1000, "up to 50 % of the receives take the mmap lock"),
            (2001, "every receive takes the mmap lock"),
        ],
    )
    def test_the_conclusion_says_what_was_counted(self, acquisitions: int, verdict: str) -> None:
        counted = result(counted_receives=2000, acquisitions=acquisitions)
        slow = result(counted_receives=2000, acquisitions=0, receive=Latency(p50_us=30.0))
        said = kernel_table.conclusion(
            [
                kernel.kernel_round(KernelReceivers(), counted, 0, kernel="6.1.0-50-cloud"),
                kernel.kernel_round(KernelReceivers(writer="mprotect"), slow, 0, kernel="6.1.0-50-cloud"),
            ]
        )
        assert said.startswith(f"Linux 6.1: {verdict}")
        assert "takes 2.00 µs alone and 30.0 µs beside mprotect" in said


class TestCommand:
    def test_json_and_table(self, tmp_path: Path, rounds: list[kernel.Round]) -> None:
        target = tmp_path / "kernel.json"
        done = run("lab", "kernel", *SHORT, "--writer", "mprotect", "--locks", "per-region", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        found = results.read(target)
        assert found.kind == "kernel"
        assert [(row["strategy"], row["writer"]) for row in found.rows] == [
            ("kernel", "none"),
            ("kernel", "mprotect"),
            ("per-region", "none"),
            ("per-region", "write-lock"),
        ]
        assert found.settings["area_mib"] == 16
        assert "+ write-lock" in done.stdout
        assert all(len(line) <= 80 for line in done.stdout.splitlines()[:12])

    def test_receives_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "kernel.json"
        done = run("lab", "kernel", *SHORT, "--writer", "none", "--locks", "", "--json", str(target))
        assert done.returncode == 0
        assert [(row["strategy"], row["writer"]) for row in results.read(target).rows] == [("kernel", "none")]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--locks", "foo,global"], "no such lock strategy: foo; there are"),
            (["--writer", "fork"], "no such writer: fork; there are mprotect, mmap"),
            (["--writer", ","], "no writer was named"),
            (["--payload", "100"], "payload must be whole pages"),
            (["--receivers", "0"], "receivers must be 1 to 64"),
            (["--receivers", "many"], "'many' is not a valid integer"),
            (["--seconds", "-1"], "seconds must be"),
            (["--area-mib", "0"], "the area must be"),
            (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
            (["surplus"], "unexpected extra argument"),
        ],
    )
    def test_the_impossible_is_one_line_and_status_2(self, arguments: list[str], message: str) -> None:
        done = run("lab", "kernel", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.startswith("zcrpc: ")
        assert done.stderr.count("\n") == 1

    def test_an_interrupt_keeps_what_was_measured_and_leaves_no_trace(self, tmp_path: Path) -> None:
        target = tmp_path / "kernel.json"
        settings = ["--seconds", "300", "--rounds", "1000"]  # rounds of 0.3 s
        done = interrupted(6, "lab", "kernel", *settings, "--json", str(target), patience=30)
        assert done.returncode == 130
        assert "interrupted; this was measured" in done.stderr
        assert len(results.read(target).rows) > 0
        assert "Linux" in done.stdout
        assert orphaned_instances() == []

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a network of its own")
    def test_where_pages_cannot_be_mapped_the_rest_is_measured(self, tmp_path: Path) -> None:
        target = tmp_path / "kernel.json"
        command = [*ZCRPC, "lab", "kernel", *SHORT, "--locks", "per-region", "--json", str(target)]
        small_segments = 'ip link set lo mtu 1500 up && exec "$@"'
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", small_segments, "sh", *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "unshare" in done.stderr or "ip:" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert (done.returncode, done.stderr) == (0, "")
        rows = results.read(target).rows
        for row in rows:
            if row["strategy"] == "kernel":
                assert (row["receives"], row["acquisitions_per_receive"]) == (0, None)
                assert row["note"].startswith("pages of a socket cannot be mapped here")
            else:
                assert row["receives"] > 0
                assert (row["mapped_percent"], row["wrong"], row["note"]) == (0, 0, "received by copying")
        assert "pages of a socket cannot be mapped here" in done.stdout


def orphaned_instances() -> list[str]:
    """Tracing instances whose process is gone."""
    if not os.access(INSTANCES, os.R_OK):
        return []
    mine = [path.name for path in INSTANCES.glob("zcrpc-*")]
    return [name for name in mine if not Path("/proc", name.removeprefix("zcrpc-")).exists()]
