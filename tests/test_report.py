"""The report: what is said of results files, good and bad. How the page looks is in test_report_page.py."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_rows import ROWS, row_of

from zcrpc.lab import conflicts, results
from zcrpc.lab.report import figures, page, plots, reading
from zcrpc.lab.report.figures import Spread
from zcrpc.lab.report.kinds import KINDS
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.upload import Upload

ZCRPC = [sys.executable, "-c", "from zcrpc.cli import main; main()"]
ANSWERED = {
    "seed": ["share", "requests", "lock-wait", "receive"],
    "bench": ["threads", "writes", "read-latency", "write-latency"],
    "kernel": ["mmap-lock", "kernel-calls"],
    "torture": ["torture"],
    "upload": ["crossover"],
    "conflicts": ["conflicts"],
    "simulate": ["scaling", "predicted-storm"],
    "simulate-validation": ["validation", "every-point"],
}


def report(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*ZCRPC, "lab", "report", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def write(directory: Path, kind: str, rows: Sequence[object], name: str = "") -> Path:
    target = directory / (name or f"{kind}.json")
    results.write(target, kind, rows)
    return target


def read(directory: Path, kind: str, rows: Sequence[object]) -> Collection:
    return reading.read([write(directory, kind, rows)])


def section(html: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}">.*?</section>', html, re.DOTALL)
    assert found, anchor
    return found.group()


def text(html: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", html).split())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with results of every kind."""
    directory = tmp_path_factory.mktemp("everything")
    return page.render(reading.read([write(directory, kind, rows) for kind, rows in ROWS.items()]))


class TestPage:
    def test_every_kind_answers_its_questions(self, everything: str) -> None:
        assert re.findall('<section id="([^"]*)">', everything) == [
            *(anchor for kind in KINDS for anchor in ANSWERED[kind]),
            "figures",
            "files",
        ]
        assert "would answer" not in everything

    @pytest.mark.parametrize("kind", ROWS)
    def test_a_kind_alone_names_the_commands_of_the_others(self, kind: str, tmp_path: Path) -> None:
        html = page.render(read(tmp_path, kind, ROWS[kind]))
        assert set(ANSWERED[kind]) <= set(re.findall('<section id="([^"]*)">', html))
        missing = text(section(html, "missing"))
        for other, known in KINDS.items():
            assert (known.command in missing) == (other != kind)

    @pytest.mark.parametrize("kind", ROWS)
    def test_a_single_row_is_enough(self, kind: str, tmp_path: Path) -> None:
        for row in (ROWS[kind][0], ROWS[kind][-1]):
            html = page.render(read(tmp_path, kind, [row]))
            assert "<h2>Every figure with its spread</h2>" in html
            assert "nan" not in text(html).split()

    def test_drawings_are_well_formed_and_need_nothing_else(self, everything: str) -> None:
        drawings = re.findall('<svg[^>]*class="drawing".*?</svg>', everything, re.DOTALL)
        assert len(drawings) > 15
        for drawing in drawings:
            root = ElementTree.fromstring(drawing)
            assert root.get("aria-label")
            assert root.get("viewBox", "").startswith("0 0 350 ")
        assert not re.search(r'(src|href)="(?!#|data:)', everything)
        assert "<script" not in everything
        assert "@import" not in everything
        assert not re.search(r"#(?!1a1a1a|fefefe)[0-9a-f]{6}\b", "".join(drawings)), (
            "a colour that the page does not name"
        )

    def test_a_page_of_everything_is_below_2_mb(self, tmp_path: Path) -> None:
        rows = [row_of("seed", strategy=f"lock-{n}", connections=c) for n in range(40) for c in range(1, 60)]
        files = [write(tmp_path, "seed", rows), *(write(tmp_path, kind, ROWS[kind]) for kind in ROWS if kind != "seed")]
        html = page.render(reading.read(files))
        assert len(html.encode()) < 2_000_000
        assert "more groups had no room on this page" in html
        assert "more conditions are in the table of figures only" in html
        assert "20 more series are in the table of figures only" in html

    def test_names_from_files_are_text(self, tmp_path: Path) -> None:
        hostile = "<script>alert(1)</script>&\"'$\\frac{"
        html = page.render(read(tmp_path, "seed", [row_of("seed", strategy=hostile)]))
        assert "<script" not in html
        assert "&lt;script&gt;alert(1)" in section(html, "share")
        html = page.render(read(tmp_path, "torture", [row_of("torture", strategy="x", violation="</p><img src=x>")]))
        assert "<img" not in html

    def test_machines_stand_side_by_side(self, tmp_path: Path) -> None:
        here = write(tmp_path, "seed", ROWS["seed"], "here.json")
        other = json.loads(here.read_text())
        other["machine"] |= {"kernel": "6.1.0-other", "cpus": 96, "processor": "Other <b>CPU</b>"}
        there = tmp_path / "there.json"
        there.write_text(json.dumps(other))
        found = reading.read([here, there])
        share = section(page.render(found), "share")
        assert share.count("<figure>") == 4
        assert "Linux 6.1.0-other, 96 CPUs, Other &lt;b&gt;CPU" in share

    def test_files_of_the_same_machine_are_pooled(self, tmp_path: Path) -> None:
        again = [dataclasses.replace(row, requests_per_second=2 * row.requests_per_second) for row in ROWS["seed"]]
        once, twice = write(tmp_path, "seed", ROWS["seed"], "1.json"), write(tmp_path, "seed", again, "2.json")
        (table,) = figures.tables(reading.read([once, twice]).rows, KINDS)
        lines = dict(table.groups[0].lines)
        assert lines["requests_per_second"].count == 6  # three rounds in each file
        assert not any(name in ("round", "seconds", "strategy") for name in lines)


class TestFindings:
    """What there is to see is computed, not written down."""

    def finding(self, directory: Path, kind: str, rows: Sequence[object], anchor: str) -> str:
        html = page.render(read(directory, kind, rows))
        found = re.search('<p class="finding">(.*?)</p>', section(html, anchor), re.DOTALL)
        assert found, anchor
        return text(found.group(1))

    def test_seed(self, tmp_path: Path) -> None:
        rows = [
            row_of("seed", scenario="writer-storm", strategy=name, round=n, lock_wait_p999_us=wait + n)
            for name, wait in (("global", 1499.0), ("per-region", 0.5))
            for n in (0, 1, 2)
        ]
        said = self.finding(tmp_path, "seed", rows, "lock-wait")
        assert said == "One receive in a thousand waits 1.50 ms with global, 1.50 µs with per-region, or longer."

    def test_crossover(self, tmp_path: Path) -> None:
        rows = [
            row_of("upload", receive=way, payload_bytes=size, gigabytes_per_second=speed, mapped_percent=mapped)
            for way, size, speed, mapped in (
                ("zerocopy", 4096, 9.0, 0.0),  # not mapped: says nothing
                ("zerocopy", 65536, 1.0, 100.0),
                ("zerocopy", 1 << 20, 3.0, 100.0),
                ("zerocopy", 16 << 20, 4.0, 100.0),
                ("copy", 4096, 1.0, 0.0),
                ("copy", 65536, 2.0, 0.0),
                ("copy", 1 << 20, 2.0, 0.0),
                ("copy", 16 << 20, 2.0, 0.0),
            )
        ]
        said = self.finding(tmp_path, "upload", rows, "crossover")
        assert said.startswith("Uploads are faster mapped than copied from 1 MiB on; they take less CPU at no size")

    def test_bench(self, tmp_path: Path) -> None:
        rows = [
            row_of("bench", loop="closed", strategy=name, threads=n, write_percent=0.0, operations_per_second=speed)
            for name, n, speed in (("global", 1, 1e7), ("global", 2, 5e6), ("range", 1, 1e6), ("range", 2, 1.9e6))
        ]
        said = self.finding(tmp_path, "bench", rows, "threads")
        assert said == "2 threads do 0.50 × with global, 1.90 × with range what one does."

    def test_conflicts(self, tmp_path: Path) -> None:
        rows = [
            conflicts.Conflict("global", "holding", 2.0, 2.0),
            conflicts.Conflict("per-region", "holding", 0.0, 2.0),
        ]
        said = self.finding(tmp_path, "conflicts", rows, "conflicts")
        assert said == (
            "Threads in regions of their own share nothing with per-region. Lines are shared by the others: "
            "2.00 with global."
        )

    def test_kernels(self, tmp_path: Path) -> None:
        rows = [
            row_of("kernel", kernel=kernel, emulated=True, acquisitions_per_receive=count, counted_receives=100)
            for kernel, count in (("6.1.0-44-amd64", 1.0), ("6.12.1", 0.0))
        ]
        said = self.finding(tmp_path, "kernel", rows, "mmap-lock")
        assert said == "Linux 6.1, emulated: each receive takes it. Linux 6.12, emulated: receives do not take it."

    def test_torture(self, tmp_path: Path) -> None:
        rows = [
            row_of("torture", strategy="global"),
            row_of("torture", strategy="range", recycles=0),
            row_of("torture", strategy="mine", violation="two writers at once"),
        ]
        said = self.finding(tmp_path, "torture", rows, "torture")
        assert said.startswith("1 of 3 runs found no violation")
        assert "mine: two writers at once" in said
        assert "shows nothing: range (recycles)" in said

    def test_validation(self, tmp_path: Path) -> None:
        rows = [
            row_of("simulate-validation", series="near", published=100.0, predicted=110.0, verdict="pass"),
            row_of("simulate-validation", series="far", published=100.0, predicted=40.0, verdict="fail"),
            row_of("simulate-validation", series="fitted", published=100.0, predicted=100.0, verdict="calibrated"),
        ]
        said = self.finding(tmp_path, "simulate-validation", rows, "validation")
        assert said.startswith("1 of 2 points are within 15 % of what was measured. The farthest off is far")


class TestBadFiles:
    def test_the_rest_is_reported(self, tmp_path: Path) -> None:
        good = write(tmp_path, "seed", ROWS["seed"])
        content = good.read_text()
        bad = {
            "cut.json": (content[: len(content) // 2], "cut.json is not whole JSON"),
            "other.json": ("[1, 2]", "other.json is no results file of zcrpc"),
            "old.json": (content.replace('"zcrpc_results": 1', '"zcrpc_results": 7'), "old.json has version 7, not 1"),
            "kind.json": (content.replace('"kind": "seed"', '"kind": "tea"'), "kind.json is of the kind 'tea'"),
            "empty.json": ("", "empty.json is not whole JSON"),
            "binary.json": ("\x00\x01", "binary.json is not whole JSON"),
            "deep.json": ("[" * 100_000, "deep.json"),
        }
        for name, (broken, _) in bad.items():
            (tmp_path / name).write_text(broken)
        write(tmp_path, "seed", [], "none.json")
        names = [*bad, "none.json", "absent.json"]
        out = tmp_path / "report.html"
        done = report(*(tmp_path / name for name in names), tmp_path, good, "--out", out)
        assert (done.returncode, done.stdout) == (0, f"{out}\n")
        expected = [complaint for _, complaint in bad.values()]
        expected += ["none.json has no rows", "absent.json: No such file", "Is a directory"]
        lines = done.stderr.splitlines()
        assert len(lines) == len(expected)
        for line, complaint in zip(lines, expected, strict=True):
            assert line.startswith("zcrpc: ")
            assert complaint in line
        html = out.read_text()
        for line in lines:
            assert line.removeprefix("zcrpc: ").partition("'")[0] in html
        assert "1 results file." in text(html)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("requests_per_second", "many"),
            ("requests_per_second", None),
            ("requests_per_second", [1]),
            ("requests_per_second", 1e21),
            ("requests", -(10**30)),
            ("strategy", 7),
            ("strategy", "x" * 2000),
            ("scenario", "a party"),
            ("requests", 1.5),
        ],
    )
    def test_a_bad_row_is_named_and_left_out(self, field: str, value: Any, tmp_path: Path) -> None:
        rows = [dataclasses.asdict(row) for row in ROWS["seed"][:2]]
        rows[0][field] = value
        found = read(tmp_path, "seed", rows)
        (problem,) = found.problems
        assert "seed.json: row 1 is not usable: " in problem
        assert field in problem
        assert len(found.rows["seed"]) == 1

    def test_many_bad_rows_are_counted(self, tmp_path: Path) -> None:
        found = read(tmp_path, "seed", [{"strategy": n} for n in range(50)])
        assert len(found.problems) == 4
        assert found.problems[-1].endswith("47 more rows are not usable")
        assert not found.sources

    def test_fields_of_later_versions_do_no_harm(self, tmp_path: Path) -> None:
        found = read(tmp_path, "seed", [{**dataclasses.asdict(ROWS["seed"][0]), "new_us": 1.0}])
        assert not found.problems
        assert len(found.rows["seed"]) == 1

    def test_huge_files_and_devices_are_refused(self, tmp_path: Path) -> None:
        huge = tmp_path / "huge.json"
        with huge.open("wb") as file:
            file.truncate(results.LARGEST_FILE + 1)
        done = report(huge, "/dev/zero", "--out", tmp_path / "r.html")
        assert done.returncode == 1
        assert "huge.json is larger than 64 MiB" in done.stderr
        assert "/dev/zero is no file" in done.stderr

    def test_nothing_to_report(self, tmp_path: Path) -> None:
        out = tmp_path / "report.html"
        done = report(tmp_path / "absent.json", "--out", out)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith("zcrpc: there is nothing to report\n")
        assert not out.exists()

    def test_figures_at_the_edge_can_be_drawn(self, tmp_path: Path) -> None:
        for value in (0.0, 1e-300, 1e20, -5.0):
            for kind, rows in ROWS.items():
                names = [name for name in KINDS[kind].figures() if isinstance(getattr(rows[0], name), float)]
                changed = [dataclasses.replace(row, **dict.fromkeys(names, value)) for row in rows]
                assert "</html>" in page.render(read(tmp_path, kind, changed))


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Missing argument 'RESULTS...'"),
            (["x.json", "--out", "/nowhere/at/all.html"], "cannot write /nowhere/at/all.html: No such file"),
            (["x.json", "--out", "/"], "file '/' is a directory"),
            (["x.json", "--bogus"], "No such option"),
        ],
    )
    def test_what_is_refused(self, arguments: list[str], message: str) -> None:
        done = report(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message.lower() in done.stderr.lower()
        assert len(done.stderr.splitlines()) == 1

    def test_results_are_not_overwritten(self, tmp_path: Path) -> None:
        good = write(tmp_path, "conflicts", ROWS["conflicts"])
        before = good.read_bytes()
        done = report(good, "--out", good)
        assert done.returncode == 2
        assert "is one of the results" in done.stderr
        assert good.read_bytes() == before

    @pytest.mark.parametrize("absent", ["matplotlib", "jinja2"])
    def test_without_the_extra(self, absent: str, tmp_path: Path) -> None:
        (tmp_path / f"{absent}.py").write_text(f"raise ModuleNotFoundError('none', name='{absent}')")
        done = report("x.json", "--out", tmp_path / "r.html", PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"zcrpc: a report needs {absent}: pip install 'zcrpc[report]'\n"

    def test_real_results(self, tmp_path: Path) -> None:
        """From short runs of the experiments themselves."""
        made = {
            "seed": ["--connections", "8", "--seconds", "0.4", "--rounds", "2"],
            "upload": ["--payload", "65536,1048576", "--seconds", "0.2", "--rounds", "2"],
            "simulate": ["--cores", "1,2", "--locks", "global,per-region"],
        }
        files = []
        for command, settings in made.items():
            files.append(tmp_path / f"{command}.json")
            subprocess.run(
                [*ZCRPC, "lab", command, *settings, "--json", str(files[-1])],
                check=True,
                capture_output=True,
                timeout=120,
            )
        done = report(*files, "--out", tmp_path / "report.html")
        assert (done.returncode, done.stderr) == (0, "")
        html = (tmp_path / "report.html").read_text()
        assert {"share", "crossover", "scaling"} <= set(re.findall('<section id="([^"]*)">', html))
        assert "Large marks" not in section(html, "scaling") or "zcrpc lab seed" in section(html, "scaling")


class TestConflicts:
    def test_the_c_test_is_read(self, tmp_path: Path) -> None:
        program = tmp_path / "counts"
        program.write_text(
            '#!/bin/sh\necho \'[{"strategy": "global", "way": "holding", "disjoint_lines": 2.0, "hot_lines": 2.0}]\'\n'
        )
        program.chmod(0o755)
        target = tmp_path / "conflicts.json"
        assert conflicts.main([str(program), str(target)]) == 0
        assert results.read(target).rows == [dataclasses.asdict(conflicts.Conflict("global", "holding", 2.0, 2.0))]

    @pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "echo '[{}]'"])
    def test_a_test_that_fails_leaves_no_results(
        self, script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program, target = tmp_path / "counts", tmp_path / "conflicts.json"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert conflicts.main([str(program), str(target)]) == 1
        assert capsys.readouterr().err.startswith("zcrpc: counting conflicts: ")
        assert not target.exists()

    def test_usage(self) -> None:
        assert conflicts.main([]) == 2
        assert conflicts.main(["/nowhere", "/nowhere/at/all"]) == 1


class TestFigures:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ([1.0, 2.0, 3.0], "2.00 ±1.00"),
            ([5.0], "5.00"),
            ([0.29, 0.2905, 0.291], "0.29 ±0.00"),
            ([96_000.0, 97_000.0], "96.5k ±500"),
            ([0.0, 0.0], "0"),
            ([-4.0, -2.0], "-3.00 ±1.00"),
            ([0.004], "0.004"),
            ([2.5e12], "2.5e+12"),
            ([5, 7, 6], "6 ±1"),
            ([5, 6], "5.50 ±0.50"),
        ],
    )
    def test_spread(self, values: list[float], said: str) -> None:
        assert str(Spread.of(values)) == said

    @pytest.mark.parametrize(
        ("us", "said"), [(0.36, "0.36 µs"), (999, "999 µs"), (1690, "1.69 ms"), (2.5e6, "2.50 s"), (0, "0 µs")]
    )
    def test_duration(self, us: float, said: str) -> None:
        assert figures.duration(us) == said

    @pytest.mark.parametrize(
        ("size", "said"), [(1, "1 B"), (4096, "4 KiB"), (3 << 20, "3 MiB"), (1 << 30, "1 GiB"), (5000, "5.00k B")]
    )
    def test_binary(self, size: int, said: str) -> None:
        assert plots.binary(size) == said

    def test_every_field_of_a_row_is_a_setting_a_figure_or_left_out_on_purpose(self) -> None:
        for kind in KINDS.values():
            names = {each.name for each in dataclasses.fields(kind.row)}
            assert {*kind.settings, *kind.ignored} - names <= {"round"}, kind.name
            others = names - {*kind.settings, *kind.ignored, *kind.figures()}
            assert others <= {"fallbacks", "by_b", "violation", "note"}, kind.name

    def test_strategies_look_the_same_in_every_report(self) -> None:
        known = ["global", "per-region"]
        first, second = plots.styles(["mine", "global"], known), plots.styles(["per-region"], known)
        assert first("per-region") == second("per-region")
        looks = {(plots.Style(n).colour, plots.Style(n).marker, str(plots.Style(n).dash)) for n in range(28)}
        assert len(looks) == 28

    def test_upload_is_used(self) -> None:
        assert KINDS["upload"].row is Upload
