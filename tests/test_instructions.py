"""What is counted is compared as it should be; and where valgrind is, that what is slower is found out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import instructions
import pytest
from instructions import Count, CountFailed

ROOT = Path(instructions.__file__).resolve().parent.parent
HERE = "x86_64, gcc 12, glibc 2.36"
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not here")

PROFILE = """\
# callgrind format
positions: line
events: Ir
summary: 2000

ob=/build/instructions
fl=/source/native/net/work.c
fn=turn
10 100
+5 300
cfi=/libc/memmove.S
cfn=__memcpy_sse2_unaligned
calls=4 20
* 900
fi=/source/native/net/frame.h
-3 200
fe=/source/native/net/work.c
* 24

fl=/libc/memmove.S
fn=__memcpy_sse2_unaligned
20 900

fl=/source/native/lab/programs/instructions.c
fn=serve
7 476
cfn=turn
calls=2 10
9 1524

totals: 2000
""".splitlines()


def of(path: float, whole: float | None = None, **functions: float) -> Count:
    return Count(path, path if whole is None else whole, functions)


class TestAProfile:
    def test_own_costs_are_added_up_without_the_driver(self) -> None:
        found = instructions._add_up(PROFILE, 4)
        assert found == Count(path=156, whole=381, functions={"turn": 156})

    def test_records_survive_a_file(self, tmp_path: Path) -> None:
        records = {HERE: {"echo": of(100, 120, turn=60.0)}}
        instructions.save(tmp_path / "r.json", records)
        assert instructions.load(tmp_path / "r.json") == records
        assert instructions.load(tmp_path / "none.json") == {}


class TestComparing:
    def test_a_tenth_more_is_a_tenth_more(self) -> None:
        (change,) = instructions.compare({"echo": of(100)}, {"echo": of(110)}, familiar=True)
        assert change.ratio == pytest.approx(1.1)

    def test_copies_count_too(self) -> None:
        (change,) = instructions.compare({"echo": of(100, 200)}, {"echo": of(100, 230)}, familiar=True)
        assert change.ratio == pytest.approx(1.15)

    def test_what_an_unfamiliar_compiler_does_to_all_is_left_out(self) -> None:
        recorded = {"a": of(100), "b": of(100), "c": of(100)}
        changes = instructions.compare(recorded, {"a": of(120), "b": of(120), "c": of(180)}, familiar=False)
        assert [change.ratio for change in changes] == pytest.approx([1.0, 1.0, 1.5])

    def test_an_unfamiliar_environment_is_compared_with_its_architecture(self) -> None:
        records = {"aarch64, gcc 12, glibc 2.36": {}, HERE: {}}
        assert instructions.nearest(HERE, records) == HERE
        assert instructions.nearest("x86_64, gcc 13, glibc 2.40", records) == HERE
        assert instructions.nearest("riscv64, gcc 13, glibc 2.40", records) is None

    def test_functions_that_changed_most_come_first(self) -> None:
        change = instructions.Change("echo", of(100, a=50.0, b=40.0, c=10.0), of(140, a=60.0, b=41.0, d=30.0), 1.4)
        assert instructions.differences(change) == [("d", 0.0, 30.0), ("a", 50.0, 60.0), ("c", 10.0, 0.0)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program, `as-it-is`, and one in which submitting takes some 120 instructions more, `slower`."""
    folder = tmp_path_factory.mktemp("instructions")
    (folder / "slower.c").write_text(
        "int __real_zc_reactor_submit(void *reactor, const void *records, unsigned long length);\n"
        "int __wrap_zc_reactor_submit(void *reactor, const void *records, unsigned long length) {\n"
        '    for (int i = 0; i < 60; i++) __asm__ volatile("");\n'
        "    return __real_zc_reactor_submit(reactor, records, length);\n"
        "}\n"
    )
    native = ROOT / "native"
    sources = [native / "lab/programs/instructions.c", folder / "slower.c"]
    for part in ("lock", "region", "net"):
        sources += sorted((native / part).glob("*.c"))
    compile_all = ["gcc", "-c", "-std=gnu11", "-O2", "-g", "-D_GNU_SOURCE", f"-I{native}", f"-I{native}/include"]
    subprocess.run([*compile_all, *sources], cwd=folder, check=True)
    objects = sorted(path.name for path in folder.glob("*.o"))
    link = ["gcc", "-pthread", "-o"]
    slower = [*objects, "-Wl,--wrap=zc_reactor_submit", "-lm", "-ldl"]
    subprocess.run([*link, "slower", *slower], cwd=folder, check=True)
    as_it_is = [name for name in objects if name != "slower.o"]
    subprocess.run([*link, "as-it-is", *as_it_is, "-lm", "-ldl"], cwd=folder, check=True)
    return folder


def command(program: Path, records: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, instructions.__file__, "--program", program, "--records", records, *more],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs_valgrind
class TestCounting:
    WORKLOAD = "echo of 64 B"

    def test_ten_per_cent_more_is_found_out_and_explained(self, programs: Path, tmp_path: Path) -> None:
        records = tmp_path / "records.json"
        assert command(programs / "as-it-is", records, "--record", self.WORKLOAD).returncode == 0
        same = command(programs / "as-it-is", records, self.WORKLOAD)
        assert same.returncode == 0, same.stdout
        slower = command(programs / "slower", records, self.WORKLOAD)
        assert slower.returncode == 1
        assert "MORE" in slower.stdout
        assert "__wrap_zc_reactor_submit" in slower.stdout
        (environment,) = instructions.load(records)
        recorded = instructions.load(records)[environment][self.WORKLOAD].path
        assert 1.05 < instructions.count(programs / "slower", self.WORKLOAD).path / recorded < 1.25

    def test_counts_can_be_repeated(self, programs: Path) -> None:
        first, second = (instructions.count(programs / "as-it-is", self.WORKLOAD, 256) for _ in range(2))
        assert first.path == pytest.approx(second.path, rel=0.001)

    def test_every_strategy_is_recorded(self, programs: Path) -> None:
        names = subprocess.run([programs / "as-it-is", "list"], capture_output=True, text=True, check=True)
        (recorded, *_) = json.loads(instructions.RECORDS.read_text()).values()
        assert set(names.stdout.splitlines()) == set(recorded)

    def test_what_is_not_recorded_is_told(self, programs: Path, tmp_path: Path) -> None:
        records = tmp_path / "records.json"
        assert command(programs / "as-it-is", records, "--record", "lock global").returncode == 0
        done = command(programs / "as-it-is", records, "lock range")
        assert done.returncode == 1
        assert "lock range is not recorded" in done.stdout


@needs_valgrind
@pytest.mark.parametrize(
    ("program", "workload", "complaint"),
    [
        (Path("/nowhere/instructions"), "lock global", "is not here"),
        (Path("/bin/true"), "lock global", "no such workload: lock global"),
        (Path("/bin/false"), "lock global", "ended with status 1"),
    ],
)
def test_the_impossible_is_one_line_and_status_2(program: Path, workload: str, complaint: str, tmp_path: Path) -> None:
    done = command(program, tmp_path / "none.json", workload)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


@needs_valgrind
def test_a_workload_that_fails_says_why(programs: Path) -> None:
    with pytest.raises(CountFailed, match="what is nonsense"):
        instructions.count(programs / "as-it-is", "nonsense")
